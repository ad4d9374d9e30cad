"""Contact sheets: a few samples of every subset to look at, images beside question and answer.

Texts are set in DejaVu Sans, which matplotlib brings; scripts that it lacks (Chinese, for one) show
as boxes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from interlace.data.chat import Record, SampleDataset
from interlace.data.seeds import derive_seed
from interlace.io import atomic_path
from interlace.reporting import standin
from interlace.reporting.figures import BLUE, GREY, INK, LIGHT, VERMILION

SAMPLES_PER_SUBSET = 4
SUBSETS_PER_PAGE = 12
MAX_PAGES = 32
"""384 subsets; FineVision has 185. What is left out is said on every page."""

# Pixels.
_CELL, _THUMB, _GAP, _MARGIN = 360, 150, 12, 24
_WIDTH = 2 * _MARGIN + SAMPLES_PER_SUBSET * _CELL + (SAMPLES_PER_SUBSET - 1) * _GAP
_HEADER, _LABEL, _LINE = 64, 30, 17
_BAND = _LABEL + _THUMB + 2 * _GAP
_LINES = _THUMB // _LINE
_ANSWER_LINES = 3
_FRAME = "#C4CAD1"


class _Fonts(NamedTuple):
    title: ImageFont.FreeTypeFont
    label: ImageFont.FreeTypeFont
    text: ImageFont.FreeTypeFont
    answer: ImageFont.FreeTypeFont


def write_contact_sheets(
    samples: Path, out: Path, seed: int, reasons: Sequence[str] = ()
) -> list[Path]:
    """Write `<out>/page01.png`, ... with up to four samples of every subset of `samples`.

    Which ones depends on the seed and the subset alone. `reasons`: why the samples stand in for the
    paper's, if they do. Returns the paths. Raises `InputError` for a folder without samples.
    """
    dataset = SampleDataset(samples)
    chosen = _choose(dataset, seed)
    names = list(chosen)[: MAX_PAGES * SUBSETS_PER_PAGE]
    pages = [names[i : i + SUBSETS_PER_PAGE] for i in range(0, len(names), SUBSETS_PER_PAGE)]
    fonts = _load_fonts()
    paths = []
    with atomic_path(out, directory=True) as partial:
        for number, subsets in enumerate(pages, start=1):
            texts = [f"page {number} of {len(pages)}"] if len(pages) > 1 else []
            texts.append(f"up to {SAMPLES_PER_SUBSET} of each subset, at random (seed {seed})")
            if len(names) < len(chosen):
                texts.append(f"the first {len(names)} of {len(chosen)} subsets")
            page = _draw_page(dataset, {s: chosen[s] for s in subsets}, texts, reasons, fonts)
            name = f"page{number:02d}.png"
            # 256 colours are enough to recognise a picture, at a third of the bytes.
            page.quantize(256).save(partial / name, optimize=True)
            paths.append(out / name)
    return paths


def _choose(dataset: SampleDataset, seed: int) -> dict[str, tuple[int, list[int]]]:
    """Return for every subset how many samples it has and the positions of those shown."""
    positions: dict[str, list[int]] = {}
    for position, subset in enumerate(dataset.subsets):
        positions.setdefault(subset, []).append(position)
    chosen = {}
    for subset, group in sorted(positions.items()):
        generator = np.random.default_rng(derive_seed(seed, subset, "contact sheet"))
        shown = generator.permutation(len(group))[:SAMPLES_PER_SUBSET]
        chosen[subset] = (len(group), sorted(group[i] for i in shown))
    return chosen


def _load_fonts() -> _Fonts:
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")

    def font(name: str, size: int) -> ImageFont.FreeTypeFont:
        # Basic layout: the same pixels whether or not the machine has a library to shape text.
        return ImageFont.truetype(
            str(folder / f"{name}.ttf"), size, layout_engine=ImageFont.Layout.BASIC
        )

    return _Fonts(
        font("DejaVuSans-Bold", 22),
        font("DejaVuSans-Bold", 15),
        font("DejaVuSans", 13),
        font("DejaVuSans-Bold", 13),
    )


def _draw_page(
    dataset: SampleDataset,
    chosen: dict[str, tuple[int, list[int]]],
    texts: list[str],
    reasons: Sequence[str],
    fonts: _Fonts,
) -> Image.Image:
    page = Image.new("RGB", (_WIDTH, _HEADER + len(chosen) * _BAND + _MARGIN), "white")
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, 20), "Samples", INK, fonts.title)
    draw.text((_MARGIN + 130, 28), " · ".join(texts), GREY, fonts.text)
    if reasons:
        mark = standin.remark(reasons).capitalize()
        draw.text((_WIDTH - _MARGIN, 28), mark, VERMILION, fonts.answer, anchor="ra")
    top = _HEADER
    for subset, (size, positions) in chosen.items():
        draw.line((_MARGIN, top, _WIDTH - _MARGIN - 1, top), LIGHT, 1)
        label = _fit(subset, fonts.label, _WIDTH // 2)
        draw.text((_MARGIN, top + 7), label, INK, fonts.label)
        noun = "sample" if size == 1 else "samples"
        start = _MARGIN + fonts.label.getlength(label) + 10
        draw.text((start, top + 8), f"{size} {noun}", GREY, fonts.text)
        bottom = top
        for column, position in enumerate(positions):
            corner = (_MARGIN + column * (_CELL + _GAP), top + _LABEL)
            bottom = max(bottom, _draw_sample(page, draw, dataset[position], corner, fonts))
        assert bottom <= top + _LABEL + _THUMB, "a sample that runs into the next subset"
        top = bottom + 2 * _GAP
    return page.crop((0, 0, _WIDTH, top - 2 * _GAP + _MARGIN))


def _draw_sample(
    page: Image.Image,
    draw: ImageDraw.ImageDraw,
    record: Record,
    corner: tuple[int, int],
    fonts: _Fonts,
) -> int:
    """Draw images (if any), the first question, its answer and how many turns follow.

    Returns where the lower of the two ends.
    """
    left, top = corner
    bottom = top
    if record.images:
        thumbnail = _thumbnail(record.images)
        page.paste(thumbnail, corner)
        bottom += thumbnail.height
        left += _THUMB + _GAP
    width = corner[0] + _CELL - left
    turn = record.turns[0]
    answer = _wrap(turn["assistant"], fonts.answer, width, _ANSWER_LINES)
    more = len(record.turns) - 1
    room = _LINES - len(answer) - bool(more)
    for font, colour, lines in (
        (fonts.text, INK, _wrap(turn["user"], fonts.text, width, room)),
        (fonts.answer, BLUE, answer),
        (fonts.text, GREY, [f"+ {more} more turn{'s' if more > 1 else ''}"] if more else []),
    ):
        for line in lines:
            draw.text((left, top), line, colour, font)
            top += _LINE
    return max(top, bottom)


def _thumbnail(images: list[Image.Image]) -> Image.Image:
    """Return all images, each in a thin frame, side by side from two on; at most `_THUMB` high."""
    columns = 1 if len(images) == 1 else 2
    rows = -(-len(images) // columns)
    box = Image.new("RGB", (_THUMB, _THUMB), "white")
    draw = ImageDraw.Draw(box)
    size = (_THUMB - 4 * (columns - 1)) // columns, (_THUMB - 4 * (rows - 1)) // rows
    bottom = 0
    for number, image in enumerate(images):
        # Never enlarged more than twice: a tiny image stays recognisably tiny.
        most = [min(side - 2, 2 * own) for side, own in zip(size, image.size, strict=True)]
        small = ImageOps.contain(image, (most[0], most[1]), Image.Resampling.LANCZOS)
        left, top = number % columns * (size[0] + 4), number // columns * (size[1] + 4)
        draw.rectangle((left, top, left + small.width + 1, top + small.height + 1), outline=_FRAME)
        box.paste(small, (left + 1, top + 1))
        bottom = max(bottom, top + small.height + 2)
    return box.crop((0, 0, _THUMB, bottom))


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """Return `text` in at most `most` lines of `width` pixels, with an ellipsis where it is cut."""
    lines: list[str] = []
    line = ""
    for word in _words(text):
        wider = f"{line} {word}" if line else word
        if font.getlength(wider) <= width:
            line = wider
            continue
        if len(lines) == most - 1:
            return [*lines, _fit(wider, font, width)]
        if line:
            lines.append(line)
        line = word
        while font.getlength(line) > width and len(lines) < most - 1:
            end = _fitting(line, font, width)
            lines.append(line[:end])
            line = line[end:]
    return [*lines, _fit(line, font, width)] if line else lines


def _words(text: str) -> Iterator[str]:
    """Yield the words of the part of a text that could be shown at all; what can't be drawn is ·."""
    for word in text[:4000].split():
        yield "".join(c if c.isprintable() else "·" for c in word)


def _fit(line: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return a line cut to `width`, with an ellipsis if anything is missing."""
    if font.getlength(line) <= width:
        return line
    return line[: _fitting(line, font, width - font.getlength("…"))].rstrip() + "…"


def _fitting(line: str, font: ImageFont.FreeTypeFont, width: float) -> int:
    """Return how many characters of a line fit, at least one."""
    end = 1
    while end < len(line) and font.getlength(line[: end + 1]) <= width:
        end += 1
    return end
