"""What became of every sample of a benchmark: the Parquet beside each result.

Loads without torch or vlmeval.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from interlace.errors import InputError
from interlace.io import atomic_path

SCHEMA = pa.schema(
    [
        # Of the benchmark's row; of MMBench, of a question's first rotation.
        pa.field("index", pa.string(), nullable=False),
        # A digest; rows that share it are resampled together (HR-Bench's four rotations).
        pa.field("question", pa.string(), nullable=False),
        pa.field("prediction", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        # Credit of this row alone, 0 to 1; null where a grader's answer could not be read.
        pa.field("hit", pa.float64()),
        # The score is 100 * sum(value) / sum(weight).
        pa.field("value", pa.float64(), nullable=False),
        pa.field("weight", pa.float64(), nullable=False),
        pa.field("empty", pa.bool_(), nullable=False),
        # Null where the engine does not tell. `finished`: false if cut at max_new_tokens.
        pa.field("new_tokens", pa.int32()),
        pa.field("finished", pa.bool_()),
    ]
)
COLUMNS: tuple[str, ...] = tuple(SCHEMA.names)
_PANDAS = {pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}


def write_outcomes(path: Path, table: pd.DataFrame) -> None:
    """Write outcomes with the columns of `SCHEMA`, in any order, as Parquet, atomically.

    Raises InputError, naming file and column, where a column is missing or holds something else,
    where a number is infinite, a row's index stands twice, or there are no rows.
    """
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise InputError(f"{path}: outcomes lack {', '.join(missing)}; write all of {COLUMNS}")
    if table.empty:
        raise InputError(f"{path}: no outcomes; a benchmark has at least one row")
    twice = table["index"][table["index"].duplicated()]
    if len(twice):
        raise InputError(f"{path}: index {twice.iloc[0]} has two outcomes; keep one")
    arrays = []
    for field in SCHEMA:
        try:
            array = pa.Array.from_pandas(table[field.name], type=field.type)
        except (pa.ArrowException, UnicodeEncodeError) as error:
            line = str(error).splitlines()[0]
            raise InputError(f"{path}: column {field.name}: {line}; it is {field.type}") from None
        if array.null_count and not field.nullable:
            raise InputError(f"{path}: column {field.name} has {array.null_count} empty cells")
        if (
            pa.types.is_floating(field.type)
            and np.isinf(array.to_numpy(zero_copy_only=False)).any()
        ):
            raise InputError(f"{path}: column {field.name} has an infinite number; score again")
        arrays.append(array)
    with atomic_path(path) as partial:
        pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), partial)


def read_outcomes_file(path: Path, columns: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """Return outcomes that `write_outcomes` wrote; InputError if missing, torn or something else.

    Only `columns`: predictions may be long. `new_tokens` and `finished` are pandas' nullable types,
    `hit` is NaN where it is null.
    """
    path = Path(path)
    try:
        file = pq.ParquetFile(path)
        table = file.read(columns=list(columns))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run the evaluation that writes it") from None
    except (pa.ArrowException, OSError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise InputError(f"{path}: not a Parquet file ({line}); delete it, run again") from None
    if not file.schema_arrow.equals(SCHEMA):
        raise InputError(
            f"{path}: its columns are not those of outcomes ({', '.join(COLUMNS)}); delete it and "
            "run its evaluation again"
        )
    frame = table.to_pandas(types_mapper=_PANDAS.get)[list(columns)]
    return frame.astype({"empty": bool}) if "empty" in frame else frame
