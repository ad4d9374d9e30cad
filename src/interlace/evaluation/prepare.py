"""Benchmarks made ready once, before parallel jobs read them: TSV in place, images on the disk."""

import base64
import filecmp
import hashlib
import io
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
from PIL import Image

from interlace.errors import InputError
from interlace.evaluation import kit
from interlace.evaluation.benchmarks import Benchmark, by_dataset
from interlace.io import atomic_path, digest, read_json, remove, write_json
from interlace.progress import track
from interlace.provenance import stamp

_WHOLE = re.compile(r"0|-?[1-9][0-9]*")


def prepare_benchmarks(datasets: Sequence[str], data_root: Path, source: str) -> None:
    """Run `prepare_benchmark` for several datasets; vlmeval, slow to import, is imported once."""
    for dataset in datasets:
        prepare_benchmark(dataset, data_root, source)


def prepare_benchmark(dataset: str, data_root: Path, source: str) -> None:
    """Put `<dataset>.tsv` and its images under `data_root` (the run's own LMUData root).

    `source`: a folder of TSVs, which are copied; `official`, downloaded by vlmeval and held to its
    md5; or `demo`, a TSV that is in `data_root` already. Last comes `<dataset>.json` with the md5,
    the number of rows, the folder of the images and their number, and whether the TSV is the
    official one; any other is a `fixture`. Nothing is done where all of that is there already.

    Raises InputError, naming file and row, for a TSV that is missing, cannot be read, lacks a
    column, has an empty index, two that vlmeval reads alike, one that it reads as another number or
    that leads out of the folder of images, an image that does not decode, or what its benchmark
    cannot be scored with: two splits, or an odd index or rotation of MMBench.
    """
    benchmark = by_dataset(dataset)
    data_root = Path(data_root)
    data_root.mkdir(parents=True, exist_ok=True)
    tsv, record = data_root / f"{dataset}.tsv", data_root / f"{dataset}.json"
    _place(dataset, tsv, source)
    if record.exists() and tsv.exists():
        found = read_json(record)
        is_same = found["md5"] == _md5(tsv) and (found["official"] or source != "official")
        if is_same and "images" in found and _has_images(dataset, found, data_root):
            return
        record.unlink()
    with kit.kit_environment(data_root):
        if source == "official":
            _download(dataset, tsv)
        texts = _check_table(tsv, benchmark)
        # vlmeval never refreshes images of a TSV that changed, nor the shortened copy of a long one.
        remove(data_root / f"{dataset}_local.tsv")
        folder = _image_folder(dataset)
        remove(data_root / "images" / folder)
        built = _build(dataset, tsv)
        _check_index(built, texts, tsv)
        if benchmark.name == "MMBench":
            _check_rotations(built, tsv)
        _dump_images(built, tsv)
        local = data_root / f"{dataset}_local.tsv"
    md5 = _md5(tsv)
    official = md5 == kit.official_md5(dataset)
    rows = len(built.data)
    write_json(
        record,
        {
            "provenance": stamp(
                "benchmark", config_digest=digest(source), seed=None, num_samples=rows
            ),
            "md5": md5,
            "rows": rows,
            "images": {"folder": folder, "files": _count_files(data_root / "images" / folder)},
            # vlmeval's shortened copy of a TSV above 1 GB has absolute paths.
            "root": str(data_root.resolve()) if local.exists() else None,
            "official": official,
            "fixture": not official,
        },
    )


def read_record(dataset: str, data_root: Path) -> dict[str, Any]:
    """Return what `prepare_benchmark` recorded.

    Raises InputError if it did not run, or the TSV has changed or images are missing since: jobs
    side by side would write the images again, over each other.
    """
    tsv, record = Path(data_root) / f"{dataset}.tsv", Path(data_root) / f"{dataset}.json"
    if not record.exists():
        raise InputError(f"{record}: no such file; prepare the benchmark first (prepare_benchmark)")
    found = read_json(record)
    if not tsv.exists() or _md5(tsv) != found["md5"]:
        raise InputError(f"{tsv}: missing or changed since it was prepared; prepare it again")
    if "images" in found and not _has_images(dataset, found, data_root):
        raise InputError(
            f"{Path(data_root) / 'images' / found['images']['folder']}: images are missing, or were "
            f"moved, since it was prepared; remove {record} and prepare it again"
        )
    return found


def _has_images(dataset: str, record: dict[str, Any], data_root: Path) -> bool:
    images, root = record["images"], record.get("root")
    if root:
        local = Path(root) / f"{dataset}_local.tsv"
        if Path(root) != Path(data_root).resolve() or not local.exists():
            return False
    return _count_files(Path(data_root) / "images" / images["folder"]) >= images["files"]


def _count_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def _place(dataset: str, tsv: Path, source: str) -> None:
    if source == "official":
        return
    if source == "demo":
        if not tsv.exists():
            raise InputError(f"{tsv}: no such file; the demo writes it, run that stage again")
        return
    given = Path(source) / tsv.name
    if not given.is_file():
        raise InputError(
            f"{given}: no such file; put the benchmark's TSV there, leave it out of "
            "evaluation.benchmarks, or set evaluation.source"
        )
    if given.resolve() == tsv.resolve():
        return
    # A copy, not a link: an edit in place during a job would change what is scored.
    if tsv.exists() and not given.samefile(tsv) and filecmp.cmp(given, tsv, shallow=False):
        return
    with atomic_path(tsv) as partial:
        shutil.copyfile(given, partial)


def _check_table(tsv: Path, benchmark: Benchmark) -> pd.Series:
    """Check a TSV before vlmeval reads it; return its index as it is written."""
    try:
        columns = pd.read_csv(tsv, sep="\t", nrows=0).columns
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{tsv}: not a table separated by tabs ({_line(error)})") from None
    missing = [column for column in benchmark.columns if column not in columns]
    if missing:
        raise InputError(
            f"{tsv}: column {', '.join(missing)} is missing; {benchmark.name} needs "
            f"{', '.join(benchmark.columns)}"
        )
    names = [name for name in ("index", "image_path", "split") if name in columns]
    try:
        table = pd.read_csv(tsv, sep="\t", usecols=names, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(f"{tsv}: cannot be read ({_line(error)})") from None
    if table.empty:
        raise InputError(f"{tsv}: no rows")
    _check_indices(tsv, table["index"])
    _check_names(tsv, table.drop(columns="split", errors="ignore"))
    is_choice = "A" in benchmark.columns and "cycle_category" not in benchmark.columns
    if is_choice and "split" in table:
        splits = table["split"]
        other = splits.index[(splits != splits[0]) | (splits == "")]
        if len(other):
            raise InputError(
                f"{tsv}: row {other[0] + 2}: column split is '{splits[other[0]]}'; without the same "
                f"one in all rows ('{splits[0]}' in row 2) there is no single score"
            )
    return table["index"]


def _check_names(tsv: Path, names: pd.DataFrame) -> None:
    """Refuse what vlmeval names an image's file by if it leads out of the folder of images."""
    for column in names:
        for position, name in enumerate(names[column]):
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise InputError(
                    f"{tsv}: row {position + 2}: {column} '{name}' leads out of the folder of "
                    "images; give one without '..' that does not begin with '/'"
                )


def _check_index(built: Any, texts: pd.Series, tsv: Path) -> None:
    """Hold the index to what vlmeval makes of it: `1` and `01` are both its 1, `NA` is empty.

    A number that is not written as vlmeval writes it (`1.0`, `1e3`, `007`) is not found again in
    its tables of predictions.
    """
    read = built.data["index"].astype(str)
    _check_indices(tsv, read.mask(read.isin(["nan", "None", "<NA>"]), ""))
    for position, text in enumerate(texts):
        if _is_number(text) and not _WHOLE.fullmatch(text):
            raise InputError(
                f"{tsv}: row {position + 2}: index '{text}' is a number that VLMEvalKit writes "
                "otherwise; give a whole number without zeros, signs or spaces before it"
            )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_rotations(built: Any, tsv: Path) -> None:
    """Refuse an index that is no number, and a rotation whose question lacks its first."""
    index = built.data["index"]
    for position, value in enumerate(index):
        if not isinstance(value, int) and not str(value).isdecimal():
            raise InputError(
                f"{tsv}: row {position + 2}: index {value} is no whole number; MMBench counts "
                "rotations by it"
            )
    firsts = {int(value) for value in index}
    for position, value in enumerate(map(int, index)):
        if value % kit.ROTATION not in firsts:
            raise InputError(
                f"{tsv}: row {position + 2}: index {value} is a rotation of question "
                f"{value % kit.ROTATION}, which is missing; add it, or remove the row"
            )


def _check_indices(tsv: Path, index: pd.Series) -> None:
    """Refuse an empty index and one that stands twice; labels are positions in the TSV's table."""
    index = index.str.strip()
    empty, twice = index.index[index == ""], index.index[index.duplicated()]
    if len(empty):
        raise InputError(f"{tsv}: row {empty[0] + 2}: the index is empty; give it one of its own")
    if len(twice):
        rows = [label + 2 for label in index.index[index == index[twice[0]]]]
        raise InputError(
            f"{tsv}: row {rows[1]}: index {index[twice[0]]} stands in more than one row "
            f"(row {rows[0]} too); give each its own"
        )


def _build(dataset: str, tsv: Path) -> Any:
    try:
        return kit.build_dataset(dataset)
    except (OSError, ValueError, SyntaxError):
        # Above 1 GB vlmeval decodes all of them, and does not say which failed.
        _check_pictures(tsv)
        raise
    except AssertionError:
        raise InputError(
            f"{tsv}: an image that is shorter than 64 characters is not the index of a row with one"
        ) from None


def _dump_images(built: Any, tsv: Path) -> None:
    for position in track(range(len(built.data)), f"{built.dataset_name} images", unit="rows"):
        line = built.data.iloc[position]
        try:
            for path in built.dump_image(line):
                with Image.open(path) as image:
                    image.load()
        except (OSError, ValueError, SyntaxError) as error:
            raise _no_picture(tsv, position, line["index"], error) from None


def _check_pictures(tsv: Path) -> None:
    """Raise InputError for the first picture that does not decode."""
    columns = ["index", "image"]
    for chunk in pd.read_csv(tsv, sep="\t", usecols=columns, dtype=str, chunksize=64):
        for position, index, picture in chunk[columns].itertuples():
            if len(str(picture)) <= 64:  # another row's, or none
                continue
            try:
                with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
                    image.load()
            except (OSError, ValueError, SyntaxError) as error:
                raise _no_picture(tsv, position, index, error) from None


def _no_picture(tsv: Path, position: int, index: str, error: Exception) -> InputError:
    return InputError(
        f"{tsv}: row {position + 2}: the image of index {index} does not decode "
        f"({_line(error)}); mend or remove the row"
    )


def _download(dataset: str, tsv: Path) -> None:
    """Let vlmeval fetch the official TSV, unless it is there; hold it to its md5."""
    if tsv.exists() and _md5(tsv) == kit.official_md5(dataset):
        return
    vlmeval = kit.load_vlmeval()
    cls = next(c for c in vlmeval.dataset.DATASET_CLASSES if dataset in c.supported_datasets())
    try:
        with atomic_path(tsv) as partial:
            vlmeval.smp.download_file(cls.DATASET_URL[dataset], str(partial))
    except Exception as error:  # vlmeval raises the base class
        raise InputError(
            f"{tsv}: could not be downloaded ({_line(error)}); fetch {cls.DATASET_URL[dataset]} "
            "elsewhere and set evaluation.source to the folder that holds it"
        ) from None
    if _md5(tsv) != kit.official_md5(dataset):
        remove(tsv)
        raise InputError(f"{tsv}: the download is not the official file (md5); try again")


def _image_folder(dataset: str) -> str:
    kit.load_vlmeval()
    from vlmeval.dataset.image_base import img_root_map

    return img_root_map(dataset)


def _md5(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
