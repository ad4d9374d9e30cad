"""How many rows each subset of FineVision has, as its authors published it.

`finevision_rows.csv` holds the counts of HuggingFaceM4/FineVision's 185 subsets from
`dataset_sample_counts.json` of the article about it (the Space HuggingFaceM4/FineVision at commit
120e1bb): 24,243,243 rows, of which the paper's 1 % of each subset are 242,343.
"""

import csv
from pathlib import Path

BYTES = 5_000_000_000_000
"""Size of the whole data set, as the same article gives it: 5 TB."""


def published_rows() -> dict[str, int]:
    """Return the rows of each subset, in the order of the file."""
    with (Path(__file__).parent / "finevision_rows.csv").open(encoding="utf-8", newline="") as file:
        return {row["subset"]: int(row["rows"]) for row in csv.DictReader(file)}
