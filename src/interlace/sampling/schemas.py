"""One schema for the rows of files whose columns differ."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from interlace.secrets import one_line


def unify(schemas: list[pa.Schema]) -> tuple[pa.Schema, dict[int, str]]:
    """Return the schema of all and, by position, why some can't be joined with those before.

    Its types are `plain`, so that a column that is stored as a dictionary (pandas' categories) in
    one file and as text in the other is one.
    """
    unified, contradicting = pa.schema([]), {}
    for position, schema in enumerate(schemas):
        try:
            schema = plain(schema)
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


def plain(schema: pa.Schema) -> pa.Schema:
    """Return `schema` with the values in place of dictionaries, and no views, at any depth.

    Rows that are read alone have dictionaries of their own, which no file of Arrow's can hold, and
    few functions of Arrow know of views, or of extension types (UUID, JSON) within lists and
    structs: these become what they are stored as.
    """
    fields = []
    for field in schema:
        kind = _plain_type(field.type)
        # One that is a column of its own can stay.
        stays = isinstance(field.type, pa.BaseExtensionType) and kind == field.type.storage_type
        fields.append(field if stays else field.with_type(kind))
    return pa.schema(fields, schema.metadata)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table in the columns of `schema`: those it lacks null, types `plain` and widened.

    Raises `pa.ArrowException` where `schema` is not that of `unify`.
    """
    table = table.replace_schema_metadata(None)
    if (decoded := plain(table.schema)) != table.schema:
        table = table.cast(decoded)
    tables = [schema.empty_table(), table]
    return pa.concat_tables(tables, promote_options="permissive").cast(schema)


def rewrite(source: Path, target: Path, schema: pa.Schema) -> None:
    """Write a Parquet file once more in the columns of `schema`, row group by row group."""
    with pq.ParquetFile(source) as file, pq.ParquetWriter(target, schema) as writer:
        for group in range(file.num_row_groups):
            writer.write_table(conform(file.read_row_group(group, use_threads=False), schema))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([_plain_field(field) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(
            _plain_field(kind.key_field), _plain_field(kind.item_field), kind.keys_sorted
        )
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain_field(kind.value_field), kind.list_size)
    for is_kind, make in _LISTS:
        if is_kind(kind):
            return make(_plain_field(kind.value_field))
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type)
    return kind


_LISTS = (
    (pa.types.is_list, pa.list_),
    (pa.types.is_large_list, pa.large_list),
    (pa.types.is_list_view, pa.list_view),
    (pa.types.is_large_list_view, pa.large_list_view),
)


def _plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(_plain_type(field.type))


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
