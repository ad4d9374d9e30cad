"""The reference engine: VLMEvalKit's own inference loop, one row at a time."""

import contextlib
import pickle
import time
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch

from interlace.data.seeds import derive_seed
from interlace.evaluation.model import LocalQwen3VL
from interlace.evaluation.predictions import Prediction, PredictionStore


def predict_reference(
    model: LocalQwen3VL, dataset: Any, store: PredictionStore, *, seed: int
) -> None:
    """Fill `store` by VLMEvalKit's loop, which resumes from its own pickle beside the store.

    A pickle torn by a kill is removed. `seed` counts only when sampling; where the loop resumes,
    it draws anew from there.
    """
    from vlmeval.inference import infer_data_job

    work = store.folder / "vlmevalkit"
    work.mkdir(exist_ok=True)
    for file in work.glob("*.pkl"):
        try:
            pickle.loads(file.read_bytes())
        except Exception as error:  # torn bytes may raise anything
            print(f"{file}: torn by an interrupted run ({type(error).__name__}), removed")
            file.unlink()
    start = time.perf_counter()
    with _seeded(model.model.device, derive_seed(seed, dataset.dataset_name)):
        infer_data_job(model, work_dir=str(work), model_name="reference", dataset=dataset)
    table = pd.read_csv(
        work / f"reference_{dataset.dataset_name}.tsv", sep="\t", dtype=str, keep_default_na=False
    )
    texts = dict(zip(table["index"], table["prediction"], strict=True))
    store.add(
        {index: Prediction(text, None, None) for index, text in texts.items()},
        time.perf_counter() - start,
    )


@contextlib.contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
