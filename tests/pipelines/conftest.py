"""One seeded log for all pipeline tests, as RAW batches, with the truth about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from common.domain import Domain, load_domain
from common.event_source import GenerateOptions
from common.pii import KEY_VARIABLE
from common.records import RAW_SCHEMA
from common.schema_registry import UnknownSchemaId
from feature_repo.generator import Generator, generate
from tests.pipelines.oracle import ALLOWED_MS, GRACE_MS, MAX_FUTURE_MS, Truth, truth_of

REPO = Path(__file__).parents[2] / "feature_repo"
PII_KEY = "0123456789abcdef0123456789abcdef"
PARTITIONS = 3
EVENTS = 4_000
SCHEMA_IDS = (11, 12, 13)


@dataclass(frozen=True)
class FixedSchemas:
    """A registry of the domain's schemas only."""

    by_id: Mapping[int, Any]

    def schema(self, schema_id: int) -> Mapping[str, Any]:
        if schema_id not in self.by_id:
            raise UnknownSchemaId(schema_id, "test")
        schema: Mapping[str, Any] = self.by_id[schema_id]
        return schema


@dataclass(frozen=True)
class Log:
    """Raw records by partition, as one batch each, and what must become of them."""

    partitions: list[pa.RecordBatch]
    writer_schemas: FixedSchemas
    truth: Truth
    generator: Generator

    def batches(self, rows: int) -> list[pa.RecordBatch]:
        """In offset order per partition, partitions interleaved, as a source with small fetches gives them."""
        longest = max(batch.num_rows for batch in self.partitions)
        pieces = [batch.slice(at, rows) for at in range(0, longest, rows) for batch in self.partitions]
        return [piece for piece in pieces if piece.num_rows]


@pytest.fixture(scope="session")
def domain() -> Domain:
    return load_domain(REPO)


@pytest.fixture(autouse=True)
def pii_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, PII_KEY)


@pytest.fixture(scope="session")
def log(domain: Domain) -> Log:
    faults = {"duplicates": 150, "late": 60, "too_late": 25, "malformed": 40, "invalid": 40}
    options = GenerateOptions(EVENTS, 7, PARTITIONS, GRACE_MS, ALLOWED_MS, MAX_FUTURE_MS, {"users": 200}, faults)
    generator = generate(domain.schemas, options)
    messages = list(generator.batches(SCHEMA_IDS, 0, EVENTS))
    rows: dict[int, list[dict[str, Any]]] = {number: [] for number in range(PARTITIONS)}
    newest: dict[int, int] = {}
    for batch in messages:
        keys, values = batch.keys.to_pylist(), batch.values.to_pylist()
        for key, value, number, time_ms in zip(
            keys, values, batch.partitions.tolist(), batch.timestamps_ms.tolist(), strict=True
        ):
            watermark_ms = newest[number] - GRACE_MS if number in newest else np.iinfo(np.int64).min // 1000
            newest[number] = max(time_ms, newest.get(number, time_ms))
            row = {"topic": "engagement", "partition": number, "offset": len(rows[number]), "kafka_ts_ms": time_ms}
            rows[number].append({**row, "watermark_ms": watermark_ms, "key": key, "value": value})
    partitions = [pa.RecordBatch.from_pylist(each, schema=RAW_SCHEMA) for each in rows.values()]
    writers = dict(zip(SCHEMA_IDS, domain.schemas, strict=True))
    everything = [row for each in rows.values() for row in each]
    truth = truth_of(everything, writers, domain.schemas[-1], PII_KEY.encode(), REPO / "reference" / "videos.csv")
    return Log(partitions, FixedSchemas(writers), truth, generator)
