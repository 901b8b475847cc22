"""How Arrow types are stored in a Delta table, and how a table's schema may grow."""

from __future__ import annotations

import pyarrow as pa


def storage_schema(schema: pa.Schema) -> pa.Schema:
    """Arrow schema -> the Arrow schema its rows have in Delta.

    Delta knows one timestamp (microseconds, UTC), no dictionary or large types; all columns become nullable, since a
    column that is required today cannot be dropped from a table tomorrow.
    """
    return pa.schema([pa.field(field.name, _storage_type(field.type)) for field in schema])


def _storage_type(dtype: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(dtype):
        return pa.timestamp("us", dtype.tz)
    if pa.types.is_dictionary(dtype):
        return _storage_type(dtype.value_type)
    if pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype):
        return pa.string()
    if pa.types.is_large_binary(dtype) or pa.types.is_binary_view(dtype):
        return pa.binary()
    if pa.types.is_struct(dtype):
        return pa.struct([pa.field(field.name, _storage_type(field.type)) for field in dtype])
    if pa.types.is_map(dtype):
        return pa.map_(_storage_type(dtype.key_type), _storage_type(dtype.item_type))
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return pa.list_(_storage_type(dtype.value_type))
    return dtype


def conflicts(table: pa.DataType, rows: pa.DataType, path: str = "") -> list[str]:
    """Why rows of one storage type cannot be appended to a table of another: one line per field, [] if they can.

    A field that only one side has is no conflict: the table grows, or the rows are null there.

    >>> conflicts(pa.struct([("a", pa.int64())]), pa.struct([("a", pa.string()), ("b", pa.int64())]))
    ['a is int64 in the table and string in the rows']
    """
    if pa.types.is_struct(table) and pa.types.is_struct(rows):
        known = {field.name: field.type for field in table}
        return [
            line
            for field in rows
            if field.name in known
            for line in conflicts(known[field.name], field.type, f"{path}.{field.name}".lstrip("."))
        ]
    if pa.types.is_map(table) and pa.types.is_map(rows):
        return conflicts(table.key_type, rows.key_type, f"{path}.key") + conflicts(
            table.item_type, rows.item_type, f"{path}.value"
        )
    if pa.types.is_list(table) and pa.types.is_list(rows):
        return conflicts(table.value_type, rows.value_type, f"{path}.item")
    return [] if table == rows else [f"{path} is {table} in the table and {rows} in the rows"]


def has_new_fields(table: pa.DataType, rows: pa.DataType) -> bool:
    """Whether rows have a column or nested field that the table lacks."""
    if pa.types.is_struct(table) and pa.types.is_struct(rows):
        known = {field.name: field.type for field in table}
        return any(field.name not in known or has_new_fields(known[field.name], field.type) for field in rows)
    if pa.types.is_map(table) and pa.types.is_map(rows):
        return has_new_fields(table.item_type, rows.item_type)
    if pa.types.is_list(table) and pa.types.is_list(rows):
        return has_new_fields(table.value_type, rows.value_type)
    return False
