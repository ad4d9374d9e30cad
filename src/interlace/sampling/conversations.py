"""Samples as the `conversations` JSON of Qwen's fine-tuning code, and such JSON as a data source.

An item is `{"image": path or [paths], "conversations": [{"from": "human", "value": ...}, {"from":
"gpt", "value": ...}, ...]}`; text-only items have no `image`. Qwen's loader (QwenLM/Qwen3-VL,
qwen-vl-finetune, `data_processor.py`) puts an image wherever `<image>` stands in what the human
says and refuses an item whose counts differ, `<video>` likewise. The keys `id` and `subset`, which
it passes over, lead back to the sample.

An export puts one `<image>` line per image at the head of the first message, where our own chat
messages have the images. A literal `<image>` or `<video>` that a user typed would count as one
more, so it gets a zero-width space (U+200B) before its name; the import takes one away again,
so that any text survives the round trip. Answers are not searched for images and stay as they are.
Exported is what this project would fine-tune on: no sample that is held out for calibration.

    python -m interlace.sampling.conversations <file.json or .jsonl> <folder>

turns such a file into a folder to draw from (`data.source: local`, `data.path: <folder>`).
"""

import json
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from interlace.data.chat import finetune_ids
from interlace.data.images import ImageDecodeError, image_format
from interlace.errors import InputError
from interlace.io import atomic_path, read_json, write_json
from interlace.progress import track
from interlace.sampling.domain import IMAGES, TEXTS
from interlace.sampling.source import OWN_FILES
from interlace.sampling.writer import RowWriter

JSON_NAME = "conversations.json"
_COUNTS = "import.json"
_TAKEN = (_COUNTS, *OWN_FILES)  # what an import and a sample hold beside
TAG = "<image>"
MOST_IMAGE_BYTES = 256 * 1024**2
"""An image file that is larger is left alone."""
_LONGEST_NAME = 200  # bytes of a subset's; file systems take 255, and more is put to it
_IMPORTED = pa.schema([("images", IMAGES), ("texts", TEXTS)])  # and the id
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}


class _UnusableItem(Exception):
    """An item that stands for no conversation of ours."""


def export_conversations(samples: str | Path, out: str | Path) -> dict[str, int]:
    """Write `samples` as `<out>/conversations.json` and `<out>/images/<subset>/*`.

    Images keep the bytes they have in the samples, under the suffix of their true format; paths in
    the JSON are relative to its folder. Returns how many samples, images and literal tags there
    were, and how many samples are held out of fine-tuning and left out here. Raises `InputError` for
    a folder without samples or without their manifest.
    """
    files = sorted(Path(samples).glob("*/*.parquet"))
    if not files:
        raise InputError(f"{samples}: holds no samples; run the stage `samples` first")
    wanted = finetune_ids(samples)
    counts = {"samples": 0, "images": 0, "escaped": 0, "held_out": 0}
    with (
        atomic_path(out, directory=True) as partial,
        (partial / JSON_NAME).open("w", encoding="utf-8") as stream,
    ):
        separator = "[\n"
        numbers: Counter[str] = Counter()
        for path in track(files, "exporting conversations", unit="file"):
            subset = path.parent.name
            for row in _rows(path):
                if wanted is not None and row["id"] not in wanted:
                    counts["held_out"] += 1
                    continue
                item = _to_item(row, subset, numbers[subset], partial, counts)
                numbers[subset] += 1
                stream.write(separator + json.dumps(item))
                separator = ",\n"
        stream.write("\n]\n" if counts["samples"] else "[]\n")
    return counts


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["id", "images", "texts"])
            yield from table.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable samples file ({reason}); draw again") from error


def _to_item(
    row: dict[str, Any], subset: str, serial: int, folder: Path, counts: dict[str, int]
) -> dict[str, Any]:
    paths = []
    for number, image in enumerate(row["images"] or []):
        # Numbered, since an id may hold what no file name can.
        name = f"{serial:07d}-{number}{_suffix(image['bytes'])}"
        path = folder / "images" / subset / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image["bytes"])
        paths.append(path.relative_to(folder).as_posix())
    messages = []
    for number, turn in enumerate(row["texts"]):
        asked, escaped = _escape(turn["user"])
        counts["escaped"] += escaped
        head = f"{TAG}\n" * len(paths) if number == 0 else ""
        messages.append({"from": "human", "value": head + asked})
        messages.append({"from": "gpt", "value": turn["assistant"]})
    counts["samples"] += 1
    counts["images"] += len(paths)
    item: dict[str, Any] = {"id": row["id"], "subset": subset}
    if paths:
        item["image"] = paths[0] if len(paths) == 1 else paths
    return item | {"conversations": messages}


def _suffix(data: bytes) -> str:
    format = image_format(data)
    return _SUFFIXES.get(format, f".{format.lower()}")


def _escape(text: str) -> tuple[str, int]:
    return re.subn("<(\u200b*)(image|video)>", "<\\1\u200b\\2>", text)


def _unescape(text: str) -> str:
    return re.sub("<(\u200b*)\u200b(image|video)>", r"<\1\2>", text)


def import_conversations(path: str | Path, out: str | Path) -> dict[str, Any]:
    """Write a `conversations` JSON as `<out>/<subset>/*.parquet`, a folder to draw samples from.

    `path` is a list of items or, as Qwen's packing tool writes it, of lists of items; or JSON
    lines. Image paths are relative to its folder or absolute; images are taken over byte for byte.
    Items are named by their `id` (or number) and go to the subset they name, or one named after the
    file. All images come to stand before the first message's text.

    Items that are no conversation between a human and gpt, or whose `<image>` do not match their
    images, are left out and counted by what is wrong, in `<out>/import.json` and in what is
    returned, next to how many items had an image elsewhere than at an end of the first message.
    An image that is no regular file of a raster format, or larger than `MOST_IMAGE_BYTES`, is left
    empty and counted by what is wrong (`no_image`), so that its row is rejected when samples are
    drawn; whatever else is wrong with an item is seen then too. Raises `InputError` for a file that
    is no list of items.
    """
    path = Path(path)
    subsets: dict[str, list[dict[str, Any]]] = {}
    counts: dict[str, Any] = {"source": str(path), "items": 0, "kept": 0, "moved_images": 0}
    problems: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    for number, item in enumerate(_read_items(path)):
        counts["items"] += 1
        try:
            row, moved = _to_row(item, path.parent)
            row["id"] = _id(item.get("id", number))
            name = _subset_name(item.get("subset", path.stem))
        except _UnusableItem as error:
            problems[str(error)] += 1
            continue
        counts["kept"] += 1
        counts["moved_images"] += moved
        subsets.setdefault(name, []).append(row)
    if not subsets:
        raise InputError(
            f"{path}: none of its {counts['items']} items is a conversation ({dict(problems)})"
        )
    counts["left_out"] = dict(problems)
    with atomic_path(out, directory=True) as partial:
        for name, rows in track(sorted(subsets.items()), "importing", unit="subset"):
            (partial / name).mkdir()
            file = partial / name / "train-00000-of-00001.parquet"
            with RowWriter(file, _IMPORTED) as writer:
                for row in rows:
                    loaded = _load_images(row, missing)
                    writer.add(pa.Table.from_pylist([loaded], schema=_IMPORTED), row["id"])
        counts["no_image"] = dict(missing)
        write_json(partial / _COUNTS, counts)
    return counts


def _read_items(path: Path) -> Iterator[Any]:
    if path.suffix == ".jsonl":
        try:
            body = [
                json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()
            ]
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not readable as JSON lines ({error})") from error
        except RecursionError:
            raise InputError(f"{path}: nested too deep for a list of items") from None
    else:
        try:
            body = read_json(path)
        except RecursionError:
            raise InputError(f"{path}: nested too deep for a list of items") from None
    if not isinstance(body, list):
        raise InputError(f"{path}: not a list of items with `conversations`")
    for item in body:
        yield from item if isinstance(item, list) else [item]


def _id(value: Any) -> str:
    if not _is_unicode(str(value)):
        raise _UnusableItem("an `id` that is no text")
    return str(value)


def _subset_name(name: Any) -> str:
    if (
        not isinstance(name, str)
        or not name
        or name.startswith(".")
        or re.search(r"[/\\\0]", name)
        or not _is_unicode(name)
        or len(name.encode("utf-8")) > _LONGEST_NAME
    ):
        raise _UnusableItem("a `subset` that is no folder name")
    if name in _TAKEN:
        raise _UnusableItem("a `subset` with the name of a file of ours")
    return name


def _to_row(item: Any, folder: Path) -> tuple[dict[str, Any], bool]:
    """Return the row of an item, its images as paths, and whether an image changed its place."""
    if not isinstance(item, dict) or not isinstance(item.get("conversations"), list):
        raise _UnusableItem("no `conversations`")
    if item.get("video"):
        raise _UnusableItem("videos")
    images = item.get("image") or []
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(
        isinstance(image, str) and _is_unicode(image) for image in images
    ):
        raise _UnusableItem("`image` is neither a path nor a list of paths")
    messages = item["conversations"]
    roles = [message.get("from") if isinstance(message, dict) else None for message in messages]
    if not roles or roles != ["human", "gpt"] * (len(roles) // 2):
        raise _UnusableItem("messages do not alternate between human and gpt")
    values = [message.get("value") for message in messages]
    if not all(isinstance(value, str) and _is_unicode(value) for value in values):
        raise _UnusableItem("a message that is no text")
    if sum(value.count(TAG) for value in values[::2]) != len(images):
        raise _UnusableItem("as many `<image>` as images are wanted")
    if any("<video>" in value for value in values[::2]):
        raise _UnusableItem("videos")
    asked = [_without_tags(value) for value in values[::2]]
    moved = any(TAG in value for value in values[2::2]) or asked[0][1]
    turns = [
        {"user": _unescape(user), "assistant": answer}
        for (user, _), answer in zip(asked, values[1::2], strict=True)
    ]
    return {"images": [folder / image for image in images], "texts": turns}, moved


def _is_unicode(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)  # JSON can spell lone surrogates


def _without_tags(text: str) -> tuple[str, bool]:
    """Return a message without its tags and the line breaks beside them; whether any is amid text."""
    text = re.sub(f"^(?:{TAG}\n?)+", "", text)
    text = re.sub(f"(?:\n?{TAG})+$", "", text)
    return text.replace(TAG, ""), TAG in text


def _load_images(row: dict[str, Any], missing: Counter[str]) -> dict[str, Any]:
    """Return the row with its images' bytes; one that is none has none, which `missing` counts."""
    images = []
    for path in row["images"]:
        data, problem = _read_image(path)
        if problem is not None:
            missing[problem] += 1
        images.append({"bytes": data, "path": path.name})
    return row | {"images": images}


def _read_image(path: Path) -> tuple[bytes | None, str | None]:
    """Return the bytes of an image file, or what is wrong with it; no device or pipe is opened."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            return None, "not a regular file"
        if about.st_size > MOST_IMAGE_BYTES:
            return None, f"more than {MOST_IMAGE_BYTES} bytes"
        with path.open("rb") as file:
            data = file.read(MOST_IMAGE_BYTES)
    except FileNotFoundError:
        return None, "not there"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return None, f"not readable ({type(error).__name__})"
    try:
        image_format(data)
    except ImageDecodeError as error:
        return None, "not an image" if error.reason != "too_many_pixels" else "too many pixels"
    return data, None


def main(arguments: list[str]) -> None:
    """Import the file that is named first into the folder that is named second."""
    if len(arguments) != 2:
        sys.exit("usage: python -m interlace.sampling.conversations <file.json> <folder>")
    try:
        counts = import_conversations(*arguments)
    except InputError as error:
        sys.exit(f"interlace: {error}")
    print(json.dumps(counts, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
