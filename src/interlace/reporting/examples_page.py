"""The sheet of examples as one self-contained HTML page, with its pictures inside."""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interlace.errors import InputError
from interlace.io import write_text
from interlace.reporting import standin
from interlace.reporting.alike import check_alike
from interlace.reporting.examples import Comparison, Example, Said, compare
from interlace.reporting.labels import MODE_LABELS, parse_variant
from interlace.reporting.render import PARTIAL, html_page
from interlace.reporting.results import load_results

# Characters of a text that are shown: the beginning, and the end, where long answers conclude.
_HEAD, _TAIL = 360, 200
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_STYLE = """<style>
h2 { border-top: 2px solid #1b1f24; padding-top: .6rem; margin-top: 2rem; }
h2 small, .quiet { color: #59636e; font-weight: 400; font-size: .84rem; }
nav { font-size: .84rem; } nav a { margin-right: .8rem; color: #0060a0; }
.example { display: grid; grid-template-columns: 258px minmax(18rem, 1fr); gap: 0 1.3rem;
           max-width: 72rem; padding: .9rem 0; border-top: 1px solid #c4cad1; }
.example img { max-width: 256px; border: 1px solid #c4cad1; display: block; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; margin: 0; }
.answer { margin: .35rem 0 .6rem; }
.answer b { font-weight: 600; }
ol.options { list-style: none; padding: 0; margin: .3rem 0; font-size: .92rem; color: #1b1f24; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1.2rem; }
.said { border-left: 3px solid #c4cad1; padding: .1rem 0 .1rem .7rem; font-size: .92rem; }
.said.hit { border-color: #009e73; } .said.miss { border-color: #d55e00; }
.said.part { border-color: #e69f00; }
.who { font-weight: 600; }
.badge { border-radius: 3px; padding: 0 .4rem; font-size: .8rem; font-weight: 600;
         white-space: nowrap; background: #eef1f4; color: #424a53; }
.hit .badge { background: #e0f3ec; color: #00573f; }
.miss .badge { background: #fbe6da; color: #8f3f00; }
.part .badge { background: #fdf0d5; color: #6b4a00; }
@media (max-width: 48rem) { .example, .pair { grid-template-columns: 1fr; gap: .6rem; } }
</style>
"""


def write_examples(
    results: Sequence[Path],
    data_root: Path,
    out: Path,
    *,
    samples: int,
    label: str,
    reasons: Sequence[str] = (),
) -> None:
    """Write the page `out` about the result files of two variants in one mode, Dense's first.

    `samples`: at most so many per benchmark; `label`: the model's name; `reasons`: why ours stand
    in, if they do. Raises InputError for anything else than two variants, for results that were not
    made in the same way, and as `compare` does.
    """
    loaded = load_results(results)
    found = {
        key: [path for score in scores.values() for path in score.files]
        for key, scores in loaded.scores.items()
    }
    if len(found) != 2 or len({(model, mode) for model, _, mode in found}) != 1:
        raise InputError(
            f"{out}: a sheet of examples compares two variants of a model in one mode, not "
            f"{', '.join('/'.join(key) for key in found) or 'nothing'}"
        )
    check_alike(loaded)
    (_, dense, mode), (_, pruned, _) = found
    comparisons = compare(*found.values(), data_root=data_root, samples=samples)
    reasons = loaded.standin_reasons(reasons)
    names = (parse_variant(dense).full_label, parse_variant(pruned).full_label)
    title = f"Examples: {label}, {names[0]} and {names[1]}"
    body = _STYLE + _contents(comparisons)
    body += "".join(_section(comparison, names) for comparison in comparisons)
    write_text(out, html_page(title, reasons, body, _remarks(comparisons, mode, reasons)))


def shortened(text: str) -> str:
    """Return a text, or its beginning and end with its length where it is long."""
    if len(text) <= _HEAD + _TAIL:
        return text
    return f"{text[:_HEAD]} […] {text[-_TAIL:]}"


def _escape(text: str) -> str:
    """Return a text as HTML; a control character, which has no place in a page, becomes a mark."""
    return html.escape(_CONTROL.sub("\ufffd", text.replace("\r\n", "\n")))


def _contents(comparisons: Sequence[Comparison]) -> str:
    links = (
        f'<a href="#{c.benchmark.name}">{html.escape(c.benchmark.name)}</a>' for c in comparisons
    )
    return f"<nav>{' '.join(links)}</nav>\n"


def _section(comparison: Comparison, names: tuple[str, str]) -> str:
    benchmark, counts = comparison.benchmark, comparison.counts
    mark = PARTIAL if comparison.partial else ""
    before, after = comparison.scores
    total = sum(counts.values())
    who = [html.escape(name) for name in names]
    return (
        f'<h2 id="{benchmark.name}">{html.escape(benchmark.name)} <small>'
        f"{html.escape(benchmark.unit)}: {before:.1f}{mark} → {after:.1f}{mark}</small></h2>\n"
        f'<p class="quiet">Of {total} {"sample" if total == 1 else "samples"}, hit by '
        f"{who[0]} alone: {counts['dense']}, by {who[1]} alone: {counts['pruned']}, by both: "
        f"{counts['both']}, by neither: {counts['neither']}.</p>\n"
        + "".join(_example(example, comparison, names) for example in comparison.examples)
    )


def _example(example: Example, comparison: Comparison, names: tuple[str, str]) -> str:
    picture = base64.b64encode(example.picture).decode()
    options = "".join(
        f'<li class="text">{letter}. {_escape(shortened(text))}</li>'
        for letter, text in example.options.items()
    )
    hint = f'<p class="text quiet">{_escape(shortened(example.hint))}</p>\n' if example.hint else ""
    word = "Graded" if comparison.benchmark.needs_grader else "Answer"
    width, height = example.size
    return (
        '<div class="example">\n<div>'
        f'<img alt="image of the question" src="data:image/jpeg;base64,{picture}">'
        f'<span class="quiet">index {_escape(example.index)} · {width} × {height}</span></div>\n'
        f'<div>{hint}<p class="text">{_escape(shortened(example.question))}</p>\n'
        + (f'<ol class="options">{options}</ol>\n' if options else "")
        + f'<p class="text answer"><b>{word}:</b> {_escape(shortened(example.answer))}</p>\n'
        f'<div class="pair">\n{_said(example.dense, names[0])}{_said(example.pruned, names[1])}'
        "</div></div>\n</div>\n"
    )


def _said(said: Said, name: str) -> str:
    kind, badge = _verdict(said.hit)
    facts = []
    if said.new_tokens is not None:
        facts.append(f"{said.new_tokens} new token{'' if said.new_tokens == 1 else 's'}")
    if said.finished is False:
        facts.append("cut off")
    if len(said.text) > _HEAD + _TAIL:
        facts.append(f"{len(said.text):,} characters, shortened")
    text = _escape(shortened(said.text))
    if not said.text.strip():
        text = '<span class="quiet">(empty)</span>'
    return (
        f'<div class="said {kind}"><span class="who">{html.escape(name)}</span> '
        f'<span class="badge">{badge}</span> <span class="quiet">{" · ".join(facts)}</span>\n'
        f'<p class="text">{text}</p></div>\n'
    )


def _verdict(hit: float | None) -> tuple[str, str]:
    """Return class and words of a credit; the words say it without the colour."""
    if hit is None:
        return "ungraded", "? not graded"
    if hit >= 1:
        return "hit", "✓ hit"
    return ("miss", "✗ miss") if hit <= 0 else ("part", f"◐ {hit:.2f} of 1")


def _remarks(comparisons: Sequence[Comparison], mode: str, reasons: Sequence[str]) -> list[str]:
    """Return what has to be known: how examples were chosen, what marks mean, what was cut."""
    shown = {comparison.benchmark.name: comparison for comparison in comparisons}
    limits = sorted({c.max_new_tokens for c in comparisons if c.max_new_tokens is not None})
    tokens = f", at most {' or '.join(map(str, limits))} new tokens" if limits else ""
    remarks: list[Any] = [
        standin.sentence(reasons),
        "Not a fair sample: questions whose credit changed most come first (hits lost and won in "
        "turns, then other changes, then none).",
        "A hit has full credit by VLMEvalKit's score; the numbers above it are those of all samples.",
        f"Mode {MODE_LABELS.get(mode, mode)}{tokens}; `cut off` is what came to the limit.",
    ]
    if "MMBench" in shown:
        remarks.append(
            "A question of MMBench is a hit if all its rotations are right; options and predictions "
            "shown are those of the first."
        )
    if "MIABench" in shown:
        remarks.append(f"MIA-Bench: graded by {shown['MIABench'].grader}.")
    if any(c.partial for c in comparisons):
        remarks.append(f"{PARTIAL} from part of a benchmark (evaluation.limit).")
    return [remark for remark in remarks if remark]
