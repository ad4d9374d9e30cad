"""One schema for the rows of shards whose columns differ."""

import pyarrow as pa

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
