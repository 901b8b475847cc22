"""Schema resolution: a writer and a reader schema become one tree of readers, built once per pair.

Rules of the Avro specification ("Schema Resolution"): fields match by name or by the reader's aliases; the reader's
defaults fill what the writer does not have; what the reader does not have is skipped; int -> long -> float -> double
and string <-> bytes are promoted; unions resolve branch by branch.
"""

from __future__ import annotations

from typing import Any

from common.avro.arrow_types import arrow_field, arrow_type
from common.avro.readers import (
    BooleanReader,
    BytesReader,
    ConstantReader,
    DecimalReader,
    EnumReader,
    FixedReader,
    FloatReader,
    IntegerReader,
    NullReader,
    Reader,
    RecordReader,
    StringReader,
    UnionReader,
)
from common.avro.repeated import ArrayReader, MapReader
from common.avro.schema import (
    MISSING,
    NULL,
    Array,
    AvroSchemaError,
    AvroType,
    Enum,
    Field,
    Fixed,
    Map,
    Primitive,
    Record,
    Union,
    describe,
)

_PROMOTIONS = {
    "int": {"int", "long", "float", "double"},
    "long": {"long", "float", "double"},
    "float": {"float", "double"},
    "string": {"string", "bytes"},
    "bytes": {"bytes", "string"},
}


class SchemaMismatchError(AvroSchemaError):
    """The writer's data cannot be read as the reader's type."""

    def __init__(self, writer: AvroType, reader: AvroType, path: str) -> None:
        super().__init__(
            f"a writer's {describe(writer)} cannot be read as {describe(reader)} at '{path or '(top)'}'",
            hint="check the subject's compatibility mode in the registry: it should be BACKWARD or stricter",
        )


def resolve_record(writer: Record, reader: Record, path: str = "") -> RecordReader:
    """The reader of a record: steps in the writer's order, then constants for fields only the reader has.

    Raises:
        AvroSchemaError: the two do not resolve; the message names the field's path.
    """
    if not _same_name(writer.name, reader.name, reader.aliases):
        raise SchemaMismatchError(writer, reader, path)
    target: dict[str, int] = {}
    for position, field in enumerate(reader.fields):
        source = _writer_field(writer, field)
        if source is not None:
            target[source.name] = position
    steps: list[tuple[Reader, int | None]] = []
    for field in writer.fields:
        position_or_none = target.get(field.name)
        child = f"{path}.{field.name}".lstrip(".")
        as_type = field.type if position_or_none is None else reader.fields[position_or_none].type
        steps.append((resolve(field.type, as_type, child), position_or_none))
    for position, field in enumerate(reader.fields):
        if position not in target.values():
            steps.append((_constant(field, f"{path}.{field.name}".lstrip(".")), position))
    return RecordReader(tuple(steps), tuple(arrow_field(field.name, field.type) for field in reader.fields))


def resolve(writer: AvroType, reader: AvroType, path: str) -> Reader:
    """The reader of one value."""
    if isinstance(writer, Union):
        return UnionReader(tuple(_branch(branch, reader, path) for branch in writer.branches), arrow_type(reader))
    if isinstance(reader, Union):
        return resolve(writer, _matching_branch(writer, reader, path), path)
    match writer, reader:
        case Primitive(), Primitive():
            return _primitive(writer, reader, path)
        case Fixed(size=size), Fixed() if size == reader.size and _same_name(writer.name, reader.name, reader.aliases):
            return FixedReader(size) if reader.logical is None else DecimalReader(arrow_type(reader), size)
        case Enum(), Enum() if _same_name(writer.name, reader.name, reader.aliases):
            known = set(reader.symbols)
            return EnumReader(tuple(symbol if symbol in known else reader.default for symbol in writer.symbols))
        case Array(), Array():
            return ArrayReader(resolve(writer.items, reader.items, f"{path}[]"), arrow_type(reader))
        case Map(), Map():
            return MapReader(StringReader(), resolve(writer.values, reader.values, f"{path}{{}}"), arrow_type(reader))
        case Record(), Record():
            return resolve_record(writer, reader, path)
    raise SchemaMismatchError(writer, reader, path)


def _primitive(writer: Primitive, reader: Primitive, path: str) -> Reader:
    if reader.kind not in _PROMOTIONS.get(writer.kind, {writer.kind}):
        raise SchemaMismatchError(writer, reader, path)
    if writer.logical and reader.logical and writer.logical != reader.logical:
        raise AvroSchemaError(
            f"{writer.logical.name} cannot be read as {reader.logical.name} at '{path}': Avro does not convert units",
            hint="give the reader's field the writer's logical type and convert downstream",
        )
    type_ = arrow_type(reader)
    match writer.kind:
        case "null":
            return NullReader(type_)
        case "boolean":
            return BooleanReader()
        case "int" | "long":
            return IntegerReader(type_, is_int=writer.kind == "int")
        case "float" | "double":
            return FloatReader(4 if writer.kind == "float" else 8, type_)
        case _ if reader.logical is not None:
            return DecimalReader(type_, None)
        case _:
            return StringReader() if reader.kind == "string" else BytesReader()


def _branch(writer: AvroType, reader: AvroType, path: str) -> Reader | None:
    """A writer's union branch as the reader's type; None if the reader has no place for it.

    Only messages that hold that branch are then faulty.
    """
    if writer == NULL and isinstance(reader, Union) and reader.null_branch is not None:
        return NullReader(arrow_type(reader))
    try:
        return resolve(writer, reader, path)
    except SchemaMismatchError:
        return None


def _matching_branch(writer: AvroType, reader: Union, path: str) -> AvroType:
    """The first branch of the reader's union that takes the writer's type; an exact match goes first."""
    for branch in sorted(reader.branches, key=lambda branch: describe(branch) != describe(writer)):
        try:
            resolve(writer, branch, path)
        except SchemaMismatchError:
            continue
        return branch
    raise SchemaMismatchError(writer, reader, path)


def _writer_field(writer: Record, field: Field) -> Field | None:
    """The writer's field that feeds a reader's field: by name, else by alias."""
    by_name = {candidate.name: candidate for candidate in writer.fields}
    return next((by_name[name] for name in (field.name, *field.aliases) if name in by_name), None)


def _same_name(writer: str, reader: str, aliases: tuple[str, ...]) -> bool:
    """Unqualified names must match, or an alias the full name (specification, "Schema Resolution")."""
    return writer.rpartition(".")[2] == reader.rpartition(".")[2] or writer in aliases


def _constant(field: Field, path: str) -> Reader:
    if field.default is MISSING:
        raise AvroSchemaError(
            f"the reader's field '{path}' has no default and the writer does not have it",
            hint="give the new field a default: then old events stay readable",
        )
    return ConstantReader(_default(field.type, field.default), arrow_type(field.type))


def _default(avro_type: AvroType, value: Any) -> Any:
    """A default as JSON gives it, as `pa.scalar` takes it."""
    match avro_type:
        case Union(branches=branches):
            return _default(branches[0], value)  # a union's default is of its first branch
        case Primitive(kind="bytes") | Fixed():
            return value.encode("latin-1")
        case Array(items=items):
            return [_default(items, item) for item in value]
        case Map(values=values):
            return [(key, _default(values, item)) for key, item in value.items()]
        case Record(fields=fields):
            return {field.name: _default(field.type, value.get(field.name, field.default)) for field in fields}
        case _:
            return value
