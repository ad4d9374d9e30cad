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
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from interlace.evaluation.benchmarks import Benchmark
from interlace.io import digest, file_digest

# Read by vlmeval, and able to change a score, what the grader sees or an address behind our back;
# ranks make it answer a share of the rows only, and open a process group.
_VARIABLES = (
    *("EVAL_FORMAT", "SKIP_ERR", "SPLIT_THINK", "PRINT_VANILLA", "FORCE_LOCAL"),
    *("LOCAL_LLM", "OPENAI_API_KEY", "OPENAI_API_BASE", "BOYUE", "MMEVAL_ROOT"),
    *("FWD_API", "EVAL_PROXY", "VLMEVAL_MAX_IMAGE_SIZE", "VLMEVAL_MIN_IMAGE_EDGE"),
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
)


ROTATION = 1_000_000
"""The index of MMBench's rotation k of question q is q + k times this."""


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
def kit_environment(data_root: Path) -> Iterator[None]:
    """Run a block with LMUData at `data_root`, TSV predictions and nothing else set for vlmeval.

    The environment is as before afterwards.
    """
    data_root = Path(data_root).resolve()
    # vlmeval falls back to the home folder, silently, where the folder does not exist.
    assert data_root.is_dir(), data_root
    before = dict(os.environ)
    for name in _VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(LMUData=str(data_root), PRED_FORMAT="tsv")
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

    Of MMBench and HR-Bench whole questions with their rotations, at least one.
    """
    if limit is None or limit >= len(data):
        return data
    if benchmark.name == "MMBench":
        question = data["index"].astype(int) % ROTATION
    elif benchmark.name in ("HRBench4K", "HRBench8K"):
        question = question_ids(data)
    else:
        return data.iloc[:limit].copy()
    size = question.map(question.value_counts())
    kept = question.drop_duplicates()
    taken = kept[size[kept.index].cumsum() <= max(limit, int(size[kept.index[0]]))]
    return data[question.isin(taken)].copy()


def question_ids(table: pd.DataFrame) -> pd.Series:
    """Return a digest of question and picture for each row: rotations of one question share it.

    The table that vlmeval makes of a TSV above 1 GB has a path of a picture in each row instead of
    pictures, which rotations do not share.
    """
    if "image" in table:
        pictures = table["image"].map(digest)
    else:
        pictures = table["image_path"].map(file_digest)
    pairs = zip(table["question"], pictures, strict=True)
    return pd.Series([digest(pair) for pair in pairs], index=table.index)


class _InlinePool:
    """Stands in for the pool of 16 forks that vlmeval's VQA scoring opens and never closes."""

    def __init__(self, *_: Any) -> None:
        pass

    def map(self, function: Any, items: Any) -> list[Any]:
        return [function(item) for item in items]


@contextlib.contextmanager
def circular_table_in(folder: Path) -> Iterator[None]:
    """Let MMBench's evaluate() write its table between two steps into `folder`.

    vlmeval writes it to /tmp, where it stays, under a name made of the second, which two jobs may
    share.
    """
    load_vlmeval()
    from vlmeval.dataset.utils import multiple_choice

    table = os.path.relpath(Path(folder).resolve() / "circular", os.path.realpath("/tmp"))
    timestr = multiple_choice.timestr
    multiple_choice.timestr = lambda *_: table
    try:
        yield
    finally:
        multiple_choice.timestr = timestr


@contextlib.contextmanager
def scoring_patches(folder: Path) -> Iterator[None]:
    """Make vlmeval's evaluate() safe for jobs side by side; scores are the same.

    What it would leave in /tmp goes to `folder`. The VQA datasets' fork of this process, 16-fold,
    becomes a loop.
    """
    load_vlmeval()
    from vlmeval.dataset import image_vqa

    pool = image_vqa.mp
    image_vqa.mp = types.SimpleNamespace(Pool=_InlinePool)
    try:
        with circular_table_in(folder):
            yield
    finally:
        image_vqa.mp = pool
