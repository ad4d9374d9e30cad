"""The Parquet of outcomes: what it holds, what it refuses, and that reading it needs no torch."""

import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlace.errors import InputError
from interlace.evaluation.outcomes import COLUMNS, SCHEMA, read_outcomes_file, write_outcomes

SURROGATE = pd.Series(["\ud800"] * 3, dtype=object)


def make_outcomes(rows=3, **columns):
    return pd.DataFrame(
        {
            "index": [str(number) for number in range(rows)],
            "question": [f"q{number}" for number in range(rows)],
            "prediction": "A",
            "answer": "B",
            "hit": 0.0,
            "value": 0.0,
            "weight": 1.0,
            "empty": False,
            "new_tokens": 2,
            "finished": True,
        }
        | columns
    )


@pytest.mark.parametrize("column", ["hit", "value", "weight"])
@pytest.mark.parametrize("number", [float("inf"), -float("inf")])
def test_infinite_numbers_are_refused(tmp_path, column, number):
    path = tmp_path / "AI2D.parquet"
    with pytest.raises(InputError, match=rf"AI2D\.parquet: column {column} has an infinite number"):
        write_outcomes(path, make_outcomes(**{column: [0.0, number, 1.0]}))
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "seed=1" / "AI2D.parquet"  # a folder that looks like a partition is none
    table = make_outcomes(
        prediction=["", 'Mü\r\n\t"x"', "long " * 20000],
        hit=[None, 0.3, 1.0],
        empty=[True, False, False],
        new_tokens=pd.array([None, 7, 50], dtype="Int32"),
        finished=pd.array([None, True, False], dtype="boolean"),
    )
    write_outcomes(path, table[list(reversed(COLUMNS))])
    found = read_outcomes_file(path)
    assert tuple(found.columns) == COLUMNS
    assert list(found["prediction"]) == list(table["prediction"])
    assert found["hit"].isna().tolist() == [True, False, False]
    assert found["new_tokens"].isna().tolist() == [True, False, False]
    assert found["new_tokens"][1:].tolist() == [7, 50]
    assert found["finished"].isna().tolist() == [True, False, False]
    assert found["finished"][1:].tolist() == [True, False]
    assert found["empty"].dtype == bool
    assert pq.read_schema(path).equals(SCHEMA, check_metadata=True)
    first = path.read_bytes()
    write_outcomes(path, found)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["AI2D.parquet"]


def test_an_engine_that_does_not_tell_tokens(tmp_path):
    write_outcomes(tmp_path / "o.parquet", make_outcomes(new_tokens=None, finished=None))
    found = read_outcomes_file(tmp_path / "o.parquet")
    assert found["new_tokens"].isna().all()
    assert found["finished"].isna().all()


texts = st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=8)


@given(texts)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None
)
def test_any_prediction_comes_back(tmp_path, predictions):
    write_outcomes(tmp_path / "o.parquet", make_outcomes(len(predictions), prediction=predictions))
    assert list(read_outcomes_file(tmp_path / "o.parquet")["prediction"]) == predictions


@pytest.mark.parametrize(
    ("table", "line"),
    [
        (make_outcomes().drop(columns=["hit", "empty"]), "outcomes lack hit, empty"),
        (make_outcomes(0), "no outcomes"),
        (make_outcomes(index=["0", "1", "0"]), "index 0 has two outcomes"),
        (make_outcomes(value=[0.0, None, 1.0]), "column value has 1 empty cells"),
        (make_outcomes(question=[1, 2, 3]), "column question: .*; it is string"),
        (make_outcomes(new_tokens=[1.5, 2, 3]), "column new_tokens: .*; it is int32"),
        (make_outcomes(prediction=SURROGATE), "column prediction: .*; it is string"),
    ],
)
def test_outcomes_that_are_not_whole_are_refused(table, line, tmp_path):
    with pytest.raises(InputError, match=line):
        write_outcomes(tmp_path / "o.parquet", table)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_none_is_named(tmp_path):
    path = tmp_path / "o.parquet"
    with pytest.raises(InputError, match=r"o\.parquet: no such file"):
        read_outcomes_file(path)
    write_outcomes(path, make_outcomes())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"o\.parquet: not a Parquet file"):
        read_outcomes_file(path)
    pq.write_table(pa.table({"index": ["0"]}), path)
    with pytest.raises(InputError, match=r"o\.parquet: its columns are not those of outcomes"):
        read_outcomes_file(path)


def test_reading_outcomes_and_intervals_loads_neither_torch_nor_vlmeval():
    code = (
        "import sys, interlace.evaluation.outcomes, interlace.evaluation.intervals\n"
        "sys.exit(bool({'torch', 'vlmeval', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
