"""The reference engine: VLMEvalKit's own inference loop, one row at a time."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from interlace.data.seeds import derive_seed
from interlace.evaluation.model import LocalQwen3VL
from interlace.evaluation.predictions import Prediction, PredictionStore
from interlace.io import remove


def predict_reference(
    model: LocalQwen3VL, dataset: Any, store: PredictionStore, *, seed: int
) -> None:
    """Let VLMEvalKit's loop answer the rows that `store` lacks; each is added as it is answered.

    To be called in a `kit_environment`. What is added is what the model returned. The loop's own
    files are torn by a kill, and an empty answer or one that looks like a number does not come back
    from them as it was: they are written beside the store, never read, and removed by the next
    attempt. Sampling draws from a generator seeded by `seed` and the row, so that an interrupted run
    says what an uninterrupted one says.
    """
    from vlmeval.inference import infer_data_job

    work = store.folder / "vlmevalkit"
    remove(work)
    work.mkdir()
    name = dataset.dataset_name
    missing = ~dataset.data["index"].astype(str).isin(list(store.predictions))
    rows = copy.copy(dataset)
    rows.data = dataset.data[missing].copy()  # the loop changes the table that it gets
    index, start, generate = "", time.perf_counter(), model.generate

    def noting(build: Callable[..., Any]) -> Callable[..., Any]:
        def built(line: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal index
            index = str(line["index"])
            return build(line, *args, **kwargs)

        return built

    def keeping(*args: Any, **kwargs: Any) -> str:
        nonlocal start
        with _seeded(model.model.device, derive_seed(seed, name, index)):
            text = generate(*args, **kwargs)
        now = time.perf_counter()
        store.add({index: Prediction(text, None, None)}, now - start)
        start = now
        return text

    # A prompt does not say which row it is of.
    rows.build_prompt, model.build_prompt = noting(rows.build_prompt), noting(model.build_prompt)
    model.generate = keeping
    try:
        infer_data_job(model, work_dir=str(work), model_name="reference", dataset=rows)
    finally:
        del model.generate, model.build_prompt


@contextlib.contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
