"""pack1.json, pack2.json, pack3.json: the means of all windows of one size, for people and plots."""

from pathlib import Path
from typing import Any

from interlace.io import write_json
from interlace.scoring.released_files import SIZES
from interlace.scoring.store import Windows, window_means


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
    num_windows = windows.info["num_layers"] - size + 1
    columns = [windows.windows.index((size, start)) for start in range(num_windows)]
    known = windows.info["counts_known"]
    sums_NW2, counts_N2 = windows.sums[:, columns], windows.counts
    token_means, sample_means = window_means(sums_NW2.sum(2), counts_N2.sum(1))
    text_means, visual_means = (
        window_means(sums_NW2[:, :, index], counts_N2[:, index])[0] for index in range(2)
    )
    return [
        {
            "start": start,
            "token_mean": token_means[start] if known else None,
            "sample_mean": sample_means[start],
            "text_mean": text_means[start] if known else None,
            "visual_mean": visual_means[start] if known else None,
        }
        for start in range(num_windows)
    ]


def _num_tokens(windows: Windows) -> dict[str, int]:
    text, visual = windows.counts.sum(0)
    return {"text": int(text), "visual": int(visual)}
