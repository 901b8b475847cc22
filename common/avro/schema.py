"""Avro schemas as frozen dataclasses: parsed once, named types resolved, recursion refused.

Follows the Avro 1.12 specification ("Schema Declaration"). Unknown logical types and unknown attributes are ignored,
as the specification asks; everything else that is not understood is refused here, before a single message is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from common.errors import PipelineError

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})

# Which physical type may carry which logical type; any other pairing is ignored (specification, "Logical Types").
_LOGICAL = {
    "int": {"date", "time-millis"},
    "long": {
        "time-micros",
        "timestamp-millis",
        "timestamp-micros",
        "timestamp-nanos",
        "local-timestamp-millis",
        "local-timestamp-micros",
        "local-timestamp-nanos",
    },
    "bytes": {"decimal"},
    "fixed": {"decimal"},
}

# Deep enough for any sane event; keeps a hostile schema from exhausting Python's stack.
MAX_DEPTH = 32

# Types in all, a named one counted again wherever it is referred to. Without this bound 30 records that refer to each
# other twice stand for 2**30 columns.
MAX_TYPES = 10_000


class AvroSchemaError(PipelineError):
    """A schema that cannot be used: malformed, recursive, or outside what Arrow can hold."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, code="avro_schema", hint=hint)


class _Missing:
    """The type of `MISSING`: a field without a default (None is a legal default)."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()


@dataclass(frozen=True)
class Logical:
    """A logical type's name, and precision and scale where it is a decimal."""

    name: str
    precision: int = 0
    scale: int = 0


@dataclass(frozen=True)
class Primitive:
    kind: str
    logical: Logical | None = None


@dataclass(frozen=True)
class Fixed:
    name: str
    size: int
    aliases: tuple[str, ...] = ()
    logical: Logical | None = None


@dataclass(frozen=True)
class Enum:
    name: str
    symbols: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    default: str | None = None


@dataclass(frozen=True)
class Array:
    items: AvroType


@dataclass(frozen=True)
class Map:
    values: AvroType


@dataclass(frozen=True)
class Union:
    branches: tuple[AvroType, ...]

    @property
    def null_branch(self) -> int | None:
        """The index of the `null` branch, if there is one."""
        return next((i for i, branch in enumerate(self.branches) if branch == NULL), None)


@dataclass(frozen=True)
class Field:
    name: str
    type: AvroType
    default: Any = MISSING
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    name: str
    fields: tuple[Field, ...]
    aliases: tuple[str, ...] = ()


AvroType: TypeAlias = Primitive | Fixed | Enum | Array | Map | Union | Record

NULL = Primitive("null")

_Named = TypeVar("_Named", Record, Enum, Fixed)


def parse_schema(schema: object) -> AvroType:
    """Parses a schema as `json.loads` gives it.

    Raises:
        AvroSchemaError: malformed, recursive, too deep, or a name that is not defined.
    """
    return _Parser().parse(schema, namespace="", depth=0)


def parse_record(schema: object) -> Record:
    """Parses a schema whose top level must be a record, as every event's is."""
    parsed = parse_schema(schema)
    if not isinstance(parsed, Record):
        raise AvroSchemaError(f"the top level of an event schema must be a record, not {describe(parsed)}")
    return parsed


def describe(avro_type: AvroType) -> str:
    """A short name for error messages: 'long', 'record Device', 'array'."""
    match avro_type:
        case Primitive(kind=kind):
            return kind
        case Fixed(name=name) | Enum(name=name) | Record(name=name):
            return f"{type(avro_type).__name__.lower()} {name}"
        case _:
            return type(avro_type).__name__.lower()


class _Parser:
    """One parse: the named types seen so far, by full name; None while a record's fields are still being read."""

    def __init__(self) -> None:
        self._named: dict[str, AvroType | None] = {}
        self._types = 0  # as MAX_TYPES counts them
        self._types_before: dict[str, int] = {}
        self._types_of: dict[str, int] = {}

    def parse(self, schema: object, namespace: str, depth: int) -> AvroType:
        if depth > MAX_DEPTH:
            raise AvroSchemaError(f"the schema nests deeper than {MAX_DEPTH} levels")
        self._count(1)
        if isinstance(schema, str):
            return Primitive(schema) if schema in PRIMITIVES else self._reference(schema, namespace)
        if isinstance(schema, list):
            return self._union(schema, namespace, depth)
        if not isinstance(schema, Mapping):
            raise AvroSchemaError(f"a schema is a name, a list or an object, not {type(schema).__name__}")
        match kind := schema.get("type"):
            case "record" | "error":
                return self._record(schema, namespace, depth)
            case "enum":
                return self._enum(schema, namespace)
            case "fixed":
                return self._fixed(schema, namespace)
            case "array":
                return Array(self.parse(_required(schema, "items"), namespace, depth + 1))
            case "map":
                return Map(self.parse(_required(schema, "values"), namespace, depth + 1))
            case str() if kind in PRIMITIVES:
                return Primitive(kind, _logical(schema, kind))
            case None:
                raise AvroSchemaError("a schema object has no 'type'")
            case _:  # {"type": {...}} and {"type": "a.Name"} stand for what they hold
                return self.parse(kind, namespace, depth + 1)

    def _reference(self, name: str, namespace: str) -> AvroType:
        full = _full_name(name, namespace)
        full = full if full in self._named else name  # a name without a namespace may also be a global one
        if full not in self._named:
            raise AvroSchemaError(f"type '{name}' is not defined before its use")
        found = self._named[full]
        if found is None:
            raise AvroSchemaError(
                f"record '{full}' contains itself: Arrow has no recursive types",
                hint="flatten the recursion into an array of records with parent ids",
            )
        self._count(self._types_of[full])
        return found

    def _count(self, types: int) -> None:
        self._types += types
        if self._types > MAX_TYPES:
            raise AvroSchemaError(f"the schema stands for more than {MAX_TYPES} types")

    def _union(self, branches: list[object], namespace: str, depth: int) -> Union:
        if not branches:
            raise AvroSchemaError("a union needs at least one branch")
        return Union(tuple(self.parse(branch, namespace, depth + 1) for branch in branches))

    def _record(self, schema: Mapping[str, Any], namespace: str, depth: int) -> Record:
        full, namespace = self._define(schema, namespace)
        fields = tuple(
            Field(
                name=_required(field, "name"),
                type=self.parse(_required(field, "type"), namespace, depth + 1),
                default=field.get("default", MISSING),
                aliases=tuple(field.get("aliases", ())),
            )
            for field in _required(schema, "fields")
        )
        if len({field.name for field in fields}) != len(fields):
            raise AvroSchemaError(f"record '{full}' names a field twice")
        return self._defined(full, Record(full, fields, _aliases(schema, namespace)))

    def _enum(self, schema: Mapping[str, Any], namespace: str) -> Enum:
        full, namespace = self._define(schema, namespace)
        symbols = tuple(_required(schema, "symbols"))
        return self._defined(full, Enum(full, symbols, _aliases(schema, namespace), schema.get("default")))

    def _fixed(self, schema: Mapping[str, Any], namespace: str) -> Fixed:
        full, namespace = self._define(schema, namespace)
        size = _required(schema, "size")
        if not isinstance(size, int) or size < 0:
            raise AvroSchemaError(f"fixed '{full}' needs a size >= 0")
        return self._defined(full, Fixed(full, size, _aliases(schema, namespace), _logical(schema, "fixed")))

    def _define(self, schema: Mapping[str, Any], namespace: str) -> tuple[str, str]:
        """Reserves a named type; gives its full name and the namespace of what it encloses."""
        full = _full_name(_required(schema, "name"), schema.get("namespace", namespace))
        if full in self._named:
            raise AvroSchemaError(f"type '{full}' is defined twice")
        self._named[full] = None
        self._types_before[full] = self._types
        return full, full.rpartition(".")[0]

    def _defined(self, full: str, parsed: _Named) -> _Named:
        self._named[full] = parsed
        self._types_of[full] = self._types - self._types_before[full] + 1
        return parsed


def _required(schema: Mapping[str, Any], key: str) -> Any:
    if key not in schema:
        raise AvroSchemaError(f"{schema.get('type', 'a schema')} '{schema.get('name', '?')}' has no '{key}'")
    return schema[key]


def _full_name(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _aliases(schema: Mapping[str, Any], namespace: str) -> tuple[str, ...]:
    return tuple(_full_name(alias, namespace) for alias in schema.get("aliases", ()))


def _logical(schema: Mapping[str, Any], kind: str) -> Logical | None:
    name = schema.get("logicalType")
    if not isinstance(name, str) or name not in _LOGICAL.get(kind, ()):
        return None
    if name != "decimal":
        return Logical(name)
    precision, scale = schema.get("precision"), schema.get("scale", 0)
    if not (isinstance(precision, int) and isinstance(scale, int) and 0 <= scale <= precision and precision > 0):
        return None  # "implementations must ignore" an invalid decimal
    return Logical(name, precision, scale)
