"""One schema for the rows of files whose columns differ."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from interlace.sampling.ranges import one_line


def unify(schemas: list[pa.Schema]) -> tuple[pa.Schema, dict[int, str]]:
    """Return the schema of all and, by position, why some can't be joined with those before."""
    unified, contradicting = pa.schema([]), {}
    for position, schema in enumerate(schemas):
        try:
            # Arrow would widen text to binary, and no row would have texts any more.
            for place, is_text in _texts(schema).items():
                if _texts(unified).get(place, is_text) != is_text:
                    raise pa.ArrowTypeError(f"{place}: text here, binary there")
            unified = pa.unify_schemas([unified, schema], promote_options="permissive")
        except pa.ArrowException as error:
            contradicting[position] = (
                f"its columns contradict those of other shards ({one_line(error)})"
            )
    return unified, contradicting


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table in the columns of `schema`: those it lacks null, types widened.

    Raises `pa.ArrowException` where `schema` is not that of `unify`.
    """
    tables = [schema.empty_table(), table.replace_schema_metadata(None)]
    return pa.concat_tables(tables, promote_options="permissive").cast(schema)


def rewrite(source: Path, target: Path, schema: pa.Schema) -> None:
    """Write a Parquet file once more in the columns of `schema`, row group by row group."""
    with pq.ParquetFile(source) as file, pq.ParquetWriter(target, schema) as writer:
        for group in range(file.num_row_groups):
            writer.write_table(conform(file.read_row_group(group, use_threads=False), schema))


def _texts(schema: pa.Schema) -> dict[str, bool]:
    """Return whether each string or binary, however deep in lists and structs, is a string."""
    found: dict[str, bool] = {}

    def visit(place: str, kind: pa.DataType) -> None:
        if pa.types.is_struct(kind):
            for field in kind:
                visit(f"{place}.{field.name}", field.type)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            visit(f"{place}[]", kind.value_type)
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            found[place] = True
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            found[place] = False

    for field in schema:
        visit(field.name, field.type)
    return found
