"""The domain of a feature repo: everything the engine knows about the events, read from `<repo>/domain.yaml`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import yaml

from common.avro.arrow_types import arrow_schema
from common.declaration import DomainError, Section
from common.records import bronze_schema, flat_fields, silver_schema

PiiAction = Literal["hmac", "sha256", "mask_email", "mask_ip", "drop"]
AggregateOp = Literal["count", "sum", "min", "max", "mean"]

_TIMESTAMP = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class EventColumns:
    """Names of the event's identity, type and time columns, and the event types that exist."""

    id: str
    type: str
    time: str
    types: tuple[str, ...]


@dataclass(frozen=True)
class Lateness:
    """`grace_ms`: how far the source's watermark stays behind the newest record. A row whose event time is below
    its watermark is late; one that is more than `allowed_lateness_ms` below it is a dead letter, and so is one more
    than `max_future_ms` after its Kafka timestamp."""

    grace_ms: int = 60_000
    allowed_lateness_ms: int = 86_400_000
    max_future_ms: int = 300_000


@dataclass(frozen=True)
class Quality:
    """Rules a decoded event must meet. Columns are named by path (`device.os`)."""

    required: tuple[str, ...] = ()
    range: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # inclusive; null passes
    one_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # null passes


@dataclass(frozen=True)
class Reference:
    """A table that silver rows are enriched from: `columns` of the row whose `key` equals theirs."""

    name: str
    key: str
    file: Path
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Normalise:
    """Silver columns whose text is lower-cased or trimmed."""

    lower: tuple[str, ...] = ()
    trim: tuple[str, ...] = ()


@dataclass(frozen=True)
class Aggregate:
    """One feature column: `op` over `column` of the rows that equal `where`. `type` is the feature's Arrow type."""

    name: str
    op: AggregateOp
    column: str | None
    where: Mapping[str, str]
    type: pa.DataType


@dataclass(frozen=True)
class FeatureView:
    """Features of one entity over tumbling tiles of event time."""

    name: str
    entity: str
    key: str
    key_type: pa.DataType
    tile_ms: int
    aggregates: tuple[Aggregate, ...]

    def schema(self) -> pa.Schema:
        """The feature columns alone."""
        return pa.schema([(aggregate.name, aggregate.type) for aggregate in self.aggregates])

    def gold_schema(self) -> pa.Schema:
        """Rows of table gold/<view>: see docs/architecture.md for what each column promises."""
        return pa.schema(
            [
                (self.key, self.key_type),
                ("event_timestamp", _TIMESTAMP),  # the tile's end: no row is true before it
                ("tile_start", _TIMESTAMP),
                *self.schema(),
                ("pane", pa.string()),
                ("version_ms", pa.int64()),
                ("events", pa.int64()),
                ("created_timestamp", _TIMESTAMP),
                ("feature_date", pa.string()),
                ("feature_type", pa.string()),
            ]
        )


@dataclass(frozen=True)
class Domain:
    """A feature repo's declarations. `schemas` are Avro schemas, oldest first; the last one is canonical."""

    repo: Path
    name: str
    topic: str
    schemas: tuple[Mapping[str, Any], ...]
    event: EventColumns
    lateness: Lateness
    pii: Mapping[str, PiiAction]
    quality: Quality
    reference: Reference | None
    normalise: Normalise
    features: tuple[FeatureView, ...]
    generator: str | None = None  # module:function, the module relative to the repo
    replays: Mapping[str, str] = field(default_factory=dict)  # format -> module:function

    @property
    def canonical_schema(self) -> Mapping[str, Any]:
        return self.schemas[-1]

    @cached_property
    def event_schema(self) -> pa.Schema:
        """The canonical schema in Arrow types."""
        return arrow_schema(self.canonical_schema)

    @property
    def reference_columns(self) -> tuple[str, ...]:
        return self.reference.columns if self.reference else ()

    @cached_property
    def bronze_schema(self) -> pa.Schema:
        return bronze_schema(self.event_schema)

    @cached_property
    def silver_schema(self) -> pa.Schema:
        return silver_schema(self.event_schema, self.reference_columns)

    def view(self, name: str) -> FeatureView:
        """Raises DomainError if there is no such feature view."""
        for view in self.features:
            if view.name == name:
                return view
        raise DomainError(f"feature view {name!r} is not declared", hint=f"declared: {', '.join(self._view_names())}")

    def _view_names(self) -> list[str]:
        return [view.name for view in self.features]


def load_domain(repo: Path) -> Domain:
    """Reads `<repo>/domain.yaml`.

    Raises:
        DomainError: the file or a schema is missing, a key is unknown (with a suggestion), a value has the wrong type,
            or a rule or feature names a column that no event has.
    """
    path = repo / "domain.yaml"
    try:
        document = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise DomainError(f"{path} is missing", hint="name a feature repo with --repo") from None
    except yaml.YAMLError as error:
        raise DomainError(f"{path} is not YAML: {error}") from None
    root = Section(document, str(path))
    schemas = tuple(_read_schema(repo / name) for name in root.strings("schemas", required=True))
    event_schema = arrow_schema(schemas[-1])
    paths = dict(_leaf_paths(event_schema))
    reference = _reference(root.section("reference"), repo) if "reference" in root else None
    silver = silver_schema(event_schema, reference.columns if reference else ())
    if len(set(silver.names)) < len(silver):
        raise DomainError(f"{path}: two columns of silver have the same name", hint="rename a reference column")
    event = _event(root.section("event"), event_schema)
    if reference is not None:
        root.check_known([reference.key], [flat.name for flat in flat_fields(event_schema)], "reference.key")
    domain = Domain(
        repo=repo,
        name=root.string("name"),
        topic=root.string("topic"),
        schemas=schemas,
        event=event,
        lateness=_lateness(root.section("lateness", {})),
        pii=_pii(root.section("pii", {}), paths),
        quality=_quality(root.section("quality", {}), paths),
        reference=reference,
        normalise=_normalise(root.section("normalise", {}), silver),
        features=tuple(_view(section, silver) for section in root.sections("features")),
        generator=root.string("generator", None),
        replays=root.section("replays", {}).mapping(str),
    )
    root.refuse_unread()
    return domain


def _read_schema(path: Path) -> Mapping[str, Any]:
    try:
        schema: Mapping[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise DomainError(f"schema {path} is missing", hint="check `schemas` in domain.yaml") from None
    except json.JSONDecodeError as error:
        raise DomainError(f"schema {path} is not JSON: line {error.lineno}, {error.msg}") from None
    return schema


def _leaf_paths(fields: pa.Schema | pa.StructType, prefix: str = "") -> Iterator[tuple[str, pa.DataType]]:
    for each in fields:
        if pa.types.is_struct(each.type):
            yield from _leaf_paths(each.type, f"{prefix}{each.name}.")
        else:
            yield prefix + each.name, each.type


def _event(section: Section, schema: pa.Schema) -> EventColumns:
    event = EventColumns(
        section.string("id"), section.string("type"), section.string("time"), section.strings("types", required=True)
    )
    section.check_known([event.id, event.type, event.time], schema.names, "event")
    if not pa.types.is_timestamp(schema.field(event.time).type):
        raise DomainError(f"{section.where}.time: column {event.time} is not an Avro timestamp")
    section.refuse_unread()
    return event


def _lateness(section: Section) -> Lateness:
    default = Lateness()
    lateness = Lateness(
        section.integer("grace_ms", default.grace_ms),
        section.integer("allowed_lateness_ms", default.allowed_lateness_ms),
        section.integer("max_future_ms", default.max_future_ms),
    )
    section.refuse_unread()
    return lateness


def _pii(section: Section, paths: Mapping[str, pa.DataType]) -> Mapping[str, PiiAction]:
    actions = section.mapping(str)
    section.check_known(actions, list(paths), "pii")
    section.check_known(actions.values(), list(get_args(PiiAction)), "pii")
    wrong = [path for path, action in actions.items() if action != "drop" and not pa.types.is_string(paths[path])]
    if wrong:
        raise DomainError(f"{section.where}: {', '.join(wrong)} is not a string", hint="only `drop` applies to it")
    return actions  # type: ignore[return-value]  # the values were checked against PiiAction


def _quality(section: Section, paths: Mapping[str, pa.DataType]) -> Quality:
    ranges, one_of = section.section("range", {}).mapping(list), section.section("one_of", {}).mapping(list)
    if any(len(bounds) != 2 for bounds in ranges.values()):
        raise DomainError(f"{section.where}.range: each range is [least, greatest]")
    quality = Quality(
        section.strings("required"),
        {path: (int(least), int(greatest)) for path, (least, greatest) in ranges.items()},
        {path: tuple(map(str, values)) for path, values in one_of.items()},
    )
    section.check_known([*quality.required, *ranges, *one_of], list(paths), "quality")
    section.refuse_unread()
    return quality


def _reference(section: Section, repo: Path) -> Reference:
    reference = Reference(
        section.string("name"),
        section.string("key"),
        (repo / section.string("file")).absolute(),  # workers of a cluster have another working folder
        section.strings("columns", required=True),
    )
    section.refuse_unread()
    return reference


def _normalise(section: Section, silver: pa.Schema) -> Normalise:
    normalise = Normalise(section.strings("lower"), section.strings("trim"))
    section.check_known([*normalise.lower, *normalise.trim], silver.names, "normalise")
    section.refuse_unread()
    return normalise


def _view(section: Section, silver: pa.Schema) -> FeatureView:
    key = section.string("key")
    section.check_known([key], silver.names, "key")
    view = FeatureView(
        name=section.string("view"),
        entity=section.string("entity"),
        key=key,
        key_type=silver.field(key).type,
        tile_ms=section.integer("tile_ms"),
        aggregates=tuple(
            _aggregate(name, each, silver) for name, each in section.section("aggregates").sections_by_name()
        ),
    )
    section.refuse_unread()
    names = view.gold_schema().names
    if len(set(names)) < len(names):
        raise DomainError(f"{section.where}.aggregates: a feature has the name of a gold column", hint="rename it")
    return view


def _aggregate(name: str, section: Section, silver: pa.Schema) -> Aggregate:
    op, column, where = section.string("op"), section.string("column", None), section.section("where", {}).mapping(str)
    section.check_known([op], list(get_args(AggregateOp)), "op")
    section.check_known([*where, *([column] if column else [])], silver.names, "column")
    section.refuse_unread()
    if (column is None) != (op == "count"):
        raise DomainError(f"{section.where}: count takes no column, the other operations need one")
    column_type = pa.int64() if column is None else silver.field(column).type
    if not (pa.types.is_integer(column_type) or pa.types.is_floating(column_type)):
        raise DomainError(f"{section.where}: column {column} is not a number")
    return Aggregate(name, op, column, where, _feature_type(op, column_type))


def _feature_type(op: str, column_type: pa.DataType) -> pa.DataType:
    if op == "count":
        return pa.int64()
    if op == "mean":
        return pa.float64()
    if op == "sum":
        return pa.float64() if pa.types.is_floating(column_type) else pa.int64()
    return column_type
