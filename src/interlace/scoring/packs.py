"""pack1.json, pack2.json, pack3.json: the means of all windows of one size, for people and plots."""

from pathlib import Path
from typing import Any

import numpy as np

from interlace.io import write_json
from interlace.scoring.released_files import SIZES
from interlace.scoring.store import Windows


def write_packs(folder: str | Path, windows: Windows) -> None:
    """Write the packs of 1, 2 and 3 layers to `folder`."""
    info = windows.info
    known = info["counts_known"]
    for size in SIZES:
        body = {
            "provenance": info["provenance"],
            "model": info["model"],
            "size": size,
            "num_layers": info["num_layers"],
            "num_samples": len(windows.ids),
            "num_tokens": _num_tokens(windows) if known else None,
            "left_out": info["left_out"],
            "text": info["text"],
            "convention": info["convention"],
            "windows": pack(windows, size),
        }
        write_json(Path(folder) / f"pack{size}.json", body)


def pack(windows: Windows, size: int) -> list[dict[str, Any]]:
    """Return the means of every window of `size`, starts ascending.

    `token_mean` is over all tokens of all samples (the paper's), `sample_mean` the mean over
    samples of each one's token mean (the released code's); `text_mean` and `visual_mean` are over
    the tokens of one modality. None where there is no such token, where counts are unknown (all
    but the sample mean) or where the window was not scored.
    """
    place = {window: index for index, window in enumerate(windows.windows)}
    text_tokens, visual_tokens = windows.counts.sum(0)
    tokens_N = windows.counts.sum(1)
    known = windows.info["counts_known"]
    result = []
    for start in range(windows.info["num_layers"] - size + 1):
        sums_N2 = windows.sums[:, place[size, start]]
        there = bool(np.isfinite(sums_N2).all())
        text, visual = sums_N2.sum(0)

        def mean(total: float, count: float, usable: bool = there and known) -> float | None:
            return float(total / count) if usable and count else None

        result.append(
            {
                "start": start,
                "token_mean": mean(text + visual, text_tokens + visual_tokens),
                "sample_mean": float((sums_N2.sum(1) / tokens_N).mean()) if there else None,
                "text_mean": mean(text, text_tokens),
                "visual_mean": mean(visual, visual_tokens),
            }
        )
    return result


def _num_tokens(windows: Windows) -> dict[str, int]:
    text, visual = windows.counts.sum(0)
    return {"text": int(text), "visual": int(visual)}
