"""VLMEvalKit, imported and called so that it leaves no trace in this process.

`import vlmeval` turns TLS verification off, disables autograd, seeds torch, configures the root
logger and reads a `.env` file into the environment. All of that is undone here.
"""

import contextlib
import functools
import logging
import os
import ssl
import types
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from interlace.evaluation.benchmarks import Benchmark

# Read by vlmeval, and able to change a score or an address behind our back.
_VARIABLES = (
    *("EVAL_FORMAT", "SKIP_ERR", "SPLIT_THINK", "PRINT_VANILLA", "FORCE_LOCAL"),
    *("LOCAL_LLM", "OPENAI_API_KEY", "OPENAI_API_BASE", "BOYUE", "MMEVAL_ROOT"),
)


@functools.cache
def load_vlmeval() -> types.ModuleType:
    """Import vlmeval with its datasets and Qwen3-VL, restore what the import changes; return it."""
    import torch

    tls = ssl._create_default_https_context
    grad, generator = torch.is_grad_enabled(), torch.get_rng_state()
    environment, filters = dict(os.environ), list(warnings.filters)
    handlers, level = list(logging.root.handlers), logging.root.level
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        import vlmeval
        import vlmeval.dataset
        import vlmeval.vlm
    finally:
        ssl._create_default_https_context = tls
        torch.set_grad_enabled(grad)
        torch.set_rng_state(generator)
        os.environ.clear()
        os.environ.update(environment)
        warnings.filters[:] = filters
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        logging.disable(disabled)
    return vlmeval


@contextlib.contextmanager
def kit_environment(data_root: Path, **variables: str) -> Iterator[None]:
    """Run a block with LMUData at `data_root`, TSV predictions and nothing else set for vlmeval.

    `variables` are set besides. The environment is as before afterwards.
    """
    data_root = Path(data_root).resolve()
    # vlmeval falls back to the home folder, silently, where the folder does not exist.
    assert data_root.is_dir(), data_root
    before = dict(os.environ)
    for name in _VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(LMUData=str(data_root), PRED_FORMAT="tsv", **variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def official_md5(dataset: str) -> str | None:
    """Return the md5 of the official TSV that vlmeval pins, or None where it pins none."""
    return _pins().get(dataset)


@functools.cache
def _pins() -> dict[str, str]:
    classes = load_vlmeval().dataset.DATASET_CLASSES
    return {k: v for c in classes for k, v in getattr(c, "DATASET_MD5", {}).items() if v}


def accept_local_tsv(dataset: str) -> None:
    """Let vlmeval take the TSV that is there: with a pin, it would overwrite any other by a download.

    The md5 is not forgotten: `prepare` records it, with whether it is the official one.
    """
    _pins()  # remember the official ones before they go
    for cls in load_vlmeval().dataset.DATASET_CLASSES:
        getattr(cls, "DATASET_MD5", {}).pop(dataset, None)


def build_dataset(dataset: str) -> Any:
    """Return vlmeval's dataset object over the local TSV (inside a `kit_environment`)."""
    accept_local_tsv(dataset)
    return load_vlmeval().dataset.build_dataset(dataset)


def build_benchmark(benchmark: Benchmark, limit: int | None) -> Any:
    """Return `build_dataset` of a benchmark, cut to its first `limit` rows (`limited`)."""
    built = build_dataset(benchmark.dataset)
    built.data = limited(built.data, benchmark, limit)
    return built


def limited(data: pd.DataFrame, benchmark: Benchmark, limit: int | None) -> pd.DataFrame:
    """Return the first `limit` rows (all if None).

    Of MMBench and HR-Bench whole questions with their rotations, at least one. A question of
    HR-Bench is a question text and its picture.
    """
    if limit is None or limit >= len(data):
        return data
    if benchmark.name == "MMBench":
        question = data["index"].astype(int) % 1_000_000
    elif benchmark.name in ("HRBench4K", "HRBench8K"):
        picture = "image" if "image" in data else "image_path"
        question = data.groupby(["question", picture], sort=False).ngroup()
    else:
        return data.iloc[:limit].copy()
    size = question.map(question.value_counts())
    kept = question.drop_duplicates()
    taken = kept[size[kept.index].cumsum() <= max(limit, int(size[kept.index[0]]))]
    return data[question.isin(taken)].copy()


class _InlinePool:
    """Stands in for the pool of 16 forks that vlmeval's VQA scoring opens and never closes."""

    def __init__(self, *_: Any) -> None:
        pass

    def map(self, function: Any, items: Any) -> list[Any]:
        return [function(item) for item in items]


@contextlib.contextmanager
def scoring_patches() -> Iterator[None]:
    """Make vlmeval's evaluate() safe for jobs side by side; scores are the same.

    MMBench's writes a table to the system's temporary folder under a name made of the second, which
    two jobs may share; here the name is unique and the file goes away. The VQA datasets' fork of
    this process, 16-fold, becomes a loop.
    """
    load_vlmeval()
    from vlmeval.dataset import image_vqa
    from vlmeval.dataset.utils import multiple_choice

    unique = f"interlace-{os.getpid()}-{uuid.uuid4().hex}"
    timestr, pool = multiple_choice.timestr, image_vqa.mp
    multiple_choice.timestr = lambda *_: unique
    image_vqa.mp = types.SimpleNamespace(Pool=_InlinePool)
    try:
        yield
    finally:
        multiple_choice.timestr, image_vqa.mp = timestr, pool
        import tempfile

        for folder in {Path("/tmp"), Path(tempfile.gettempdir())}:
            for file in folder.glob(f"{unique}.*"):
                file.unlink()
