"""Predictions of one checkpoint for any benchmark, by either engine, on one device or several."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from interlace.evaluation.benchmarks import Benchmark
from interlace.evaluation.engine import Engine, ordered
from interlace.evaluation.predictions import PredictionStore
from interlace.evaluation.reference import predict_reference
from interlace.evaluation.replicas import Replicas, num_replicas
from interlace.evaluation.settings import pixel_limits
from interlace.progress import track


class Predictor:
    """Generates what is missing, and keeps the model, or its replicas, for the next benchmark.

    `settings` are the config's evaluation section with `dtype` and `attention`. Engine `batched`
    runs `replicas` copies of the model (None: one per visible GPU, one on the CPU); a single one
    lives in this process, several in processes of their own, which end with the `with` block.
    Engine `vlmevalkit` is VLMEvalKit's own loop and always a single one.
    """

    def __init__(self, checkpoint: Path, settings: dict[str, Any], mode: str, seed: int) -> None:
        self.checkpoint = Path(checkpoint)
        self.settings, self.mode, self.seed = settings, mode, seed
        self._engine = Engine(self.checkpoint, settings, mode, seed)
        self._replicas: Replicas | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._replicas is not None:
            self._replicas.close()
            self._replicas = None

    def predict(self, benchmark: Benchmark, dataset: Any, work: Path) -> PredictionStore:
        """Return the store in `work` with a prediction for every row of `dataset`.

        `dataset` is vlmeval's, of the benchmark; to be called in its `kit_environment`. Only rows
        without a prediction are generated.
        """
        work = Path(work)
        work.mkdir(parents=True, exist_ok=True)
        store = PredictionStore(work)
        indices = [str(index) for index in dataset.data["index"]]
        missing = {index for index in indices if index not in store.predictions}
        if not missing:
            return store
        print(
            f"{benchmark.name}: {len(indices) - len(missing)} of {len(indices)} rows are "
            "predicted already",
            flush=True,
        )
        try:
            if self.settings.get("engine", "batched") == "vlmevalkit":
                model = self._engine.kit_model(benchmark.name)
                predict_reference(model, dataset, store, seed=self.seed)
            else:
                self._predict_batched(benchmark, dataset, missing, store)
        finally:
            store.close()
        store = PredictionStore(work)
        without = [index for index in indices if index not in store.predictions]
        assert not without, (benchmark.name, without[:3])
        return store

    def _predict_batched(
        self, benchmark: Benchmark, dataset: Any, missing: set[str], store: PredictionStore
    ) -> None:
        kit_model = self._engine.kit_model(benchmark.name, with_weights=False)
        rows = (dataset.data.iloc[position] for position in range(len(dataset.data)))
        messages = (
            (str(line["index"]), kit_model.message(dataset, line))
            for line in rows
            if str(line["index"]) in missing
        )
        prompts = ordered(messages, *pixel_limits(self.settings, benchmark.name))
        if num_replicas(self.settings) == 1:
            counts = self._engine.answer(benchmark, prompts, store)
        else:
            if self._replicas is None:
                self._replicas = Replicas(self.checkpoint, self.settings, self.mode, self.seed)
            counts = self._replicas.answer(benchmark, prompts, store.folder, store.attempt)
        name = f"{benchmark.name} ({self.mode}) predictions"
        for _ in track(counts, name, total=len(prompts), unit="rows", amount=lambda count: count):
            pass
