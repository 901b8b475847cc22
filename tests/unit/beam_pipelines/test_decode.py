"""Decoding by writer schema: which schemas count as this event's, and what an outage does."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.transforms.decode import Decode
from common.domain import Domain, load_domain
from common.records import RAW_SCHEMA, decoded_schema
from common.schema_registry import RegistryError, UnknownSchemaId

EVENT = {
    "event_id": "e1",
    "event_type": "view",
    "event_time": 1_700_000_000_000,
    "user_id": "u1",
    "email": None,
    "ip": None,
    "device": {"device_id": "d", "os": "ios", "os_version": "1", "app_version": "2", "model": "m", "locale": None},
    "session_id": "s1",
    "video_id": "v1",
    "watch_ms": 5,
    "duration_ms": None,
    "properties": {"k": "v"},
    "country": "FR",
    "referrer": None,
}


class Registry:
    def __init__(self, schemas: Mapping[int, Any]) -> None:
        self.schemas, self.asked = schemas, []  # type: ignore[var-annotated]

    def schema(self, schema_id: int) -> Mapping[str, Any]:
        self.asked.append(schema_id)
        if schema_id not in self.schemas:
            raise UnknownSchemaId(schema_id, "test")
        found: Mapping[str, Any] | Exception = self.schemas[schema_id]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture(scope="module")
def domain() -> Domain:
    return load_domain(Path(__file__).parents[3] / "feature_repo")


def framed(schema_id: int, schema: Mapping[str, Any], event: Mapping[str, Any] = EVENT) -> bytes:
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(dict(schema)), dict(event))
    return b"\x00" + schema_id.to_bytes(4, "big") + body.getvalue()


def decode(domain: Domain, registry: Registry, *values: bytes | None) -> tuple[list[Any], list[Any]]:
    """-> (decoded rows, dead letters)."""
    raw = pa.RecordBatch.from_pylist(
        [
            {
                "topic": "t",
                "partition": 0,
                "offset": i,
                "kafka_ts_ms": 9,
                "watermark_ms": 0,
                "key": b"k",
                "value": value,
            }
            for i, value in enumerate(values)
        ],
        schema=RAW_SCHEMA,
    )
    dofn = Decode(registry, domain)
    dofn.setup()
    good: list[Any] = []
    dead: list[Any] = []
    for output in dofn.process(raw):
        if isinstance(output, TaggedOutput):
            dead += output.value.to_pylist()
        else:
            assert output.schema == decoded_schema(domain.event_schema)
            good += output.to_pylist()
    return good, dead


def test_rows_of_several_writers_keep_their_order(domain: Domain) -> None:
    v1, v2, v3 = domain.schemas
    registry = Registry({1: v1, 2: v2, 3: v3})
    good, dead = decode(domain, registry, framed(3, v3), framed(1, v1), b"junk", framed(2, v2), framed(1, v1))
    assert [(row["_offset"], row["_schema_id"], row["country"]) for row in good] == [
        (0, 3, "FR"),
        (1, 1, None),
        (3, 2, "FR"),
        (4, 1, None),
    ]
    assert [(row["offset"], row["reason"], row["value"]) for row in dead] == [(2, "not_confluent_framed", b"junk")]
    assert registry.asked == [1, 2, 3]


def test_a_newer_schema_than_ours_is_read_as_ours(domain: Domain) -> None:
    newest = {**domain.schemas[-1]}
    newest["fields"] = [*newest["fields"], {"name": "mood", "type": "string"}]
    good, dead = decode(domain, Registry({4: newest}), framed(4, newest, {**EVENT, "mood": "happy"}))
    assert [row["event_id"] for row in good] == ["e1"]
    assert dead == []


@pytest.mark.parametrize("change", [{"name": "Payment"}, {"namespace": "shop"}, {"fields": []}])
def test_bytes_of_another_schema_are_not_read_as_an_event(domain: Domain, change: dict[str, Any]) -> None:
    other = {**domain.schemas[-1], **change}
    value = framed(5, other, {} if change == {"fields": []} else EVENT)
    good, dead = decode(domain, Registry({5: other}), value)
    assert good == []
    assert [(row["reason"], row["schema_id"]) for row in dead] == [("incompatible_schema", 5)]


def test_an_unknown_id_is_asked_for_once(domain: Domain) -> None:
    registry = Registry({})
    _, dead = decode(domain, registry, *[framed(9, domain.schemas[0])] * 3)
    assert [row["reason"] for row in dead] == ["unknown_schema_id"] * 3
    assert registry.asked == [9]


def test_malformed_bytes_say_how(domain: Domain) -> None:
    sound = framed(1, domain.schemas[0])
    _, dead = decode(domain, Registry({1: domain.schemas[0]}), sound[:-1], sound + b"\x00", sound)
    assert [(row["reason"], row["detail"], row["schema_id"]) for row in dead] == [
        ("malformed_avro", "truncated", 1),
        ("malformed_avro", "trailing_bytes", 1),
    ]


def test_an_outage_of_the_registry_is_not_the_records_fault(domain: Domain) -> None:
    registry = Registry({1: RegistryError("down", code="registry_unreachable")})
    with pytest.raises(RegistryError):
        decode(domain, registry, framed(1, domain.schemas[0]))
