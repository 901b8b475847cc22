"""Feast objects generated from a domain's `features:`, so that a view is declared once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import pyarrow as pa
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_format import DeltaFormat
from feast.types import Bool, FeastType, Float32, Float64, Int32, Int64, String

from common import domain as declared
from common.lake import Lake

# How long a tile's features stay good: a training row whose entity's last tile is older gets nulls.
TTL = timedelta(days=7)

_FEAST_TYPES: dict[pa.DataType, FeastType] = {
    pa.string(): String,
    pa.int32(): Int32,
    pa.int64(): Int64,
    pa.float32(): Float32,
    pa.float64(): Float64,
    pa.bool_(): Bool,
}
_KEY_TYPES = {pa.string(): ValueType.STRING, pa.int32(): ValueType.INT32, pa.int64(): ValueType.INT64}


@dataclass(frozen=True)
class Declarations:
    """All Feast objects of a domain."""

    entities: tuple[Entity, ...]
    views: tuple[FeatureView, ...]
    service: FeatureService

    def objects(self) -> list[Entity | FeatureView | FeatureService]:
        return [*self.entities, *self.views, self.service]


def service_name(domain: declared.Domain) -> str:
    """The feature service with all views of the domain."""
    return f"{domain.topic}_v1"


def declare(domain: declared.Domain, warehouse: str) -> Declarations:
    """A Feast entity per distinct entity, a feature view per view on its table gold/<view>, one service of all."""
    entities = {
        view.entity: Entity(name=view.entity, join_keys=[view.key], value_type=_KEY_TYPES[view.key_type])
        for view in domain.features
    }
    lake = Lake(warehouse)
    views = tuple(_view(view, entities[view.entity], lake) for view in domain.features)
    service = FeatureService(name=service_name(domain), features=list(views))
    return Declarations(tuple(entities.values()), views, service)


def _view(view: declared.FeatureView, entity: Entity, lake: Lake) -> FeatureView:
    key = Field(name=view.key, dtype=_FEAST_TYPES[view.key_type])
    features = [Field(name=field.name, dtype=_FEAST_TYPES[field.type]) for field in view.schema()]
    source = FileSource(
        name=f"gold_{view.name}",
        path=lake.uri(f"gold/{view.name}"),
        file_format=DeltaFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
    )
    return FeatureView(name=view.name, entities=[entity], schema=[key, *features], source=source, ttl=TTL)
