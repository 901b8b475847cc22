"""The silver pipeline against the truth: each event once, flat, normalised, enriched."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
import pytest

from beam_pipelines.pipelines.bronze import bronze
from beam_pipelines.pipelines.silver import silver
from common.domain import Domain
from tests.pipelines.conftest import Log
from tests.pipelines.running import run


@pytest.fixture(scope="module", params=[(97, 16), (5_000, 1)], ids=["16 buckets", "one bucket"])
def ran(request: pytest.FixtureRequest, domain: Domain, log: Log) -> Any:
    batch_rows, buckets = request.param

    def build(p: beam.Pipeline) -> Any:
        raw = p | beam.Create(log.batches(batch_rows), reshuffle=False)
        layer = silver(bronze(raw, domain, log.writer_schemas, None).rows, domain, buckets)
        return {"rows": layer.rows, "dead": layer.dead | beam.Flatten()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINES_PII_KEY", "0123456789abcdef0123456789abcdef")
        return run(build)


def test_rows_are_exactly_the_distinct_events(ran: Any, log: Log) -> None:
    rows, _ = ran
    for row in rows["rows"]:
        del row["_topic"], row["_watermark_ms"]
    order = lambda row: row["event_id"]  # noqa: E731
    assert sorted(rows["rows"], key=order) == sorted(log.truth.silver, key=order)


def test_columns_are_those_of_the_declared_schema(ran: Any, domain: Domain) -> None:
    rows, _ = ran
    assert list(rows["rows"][0]) == [n for n in domain.silver_schema.names if n not in ("_topic", "_watermark_ms")]


def test_too_late_rows_are_dead_letters_that_say_where_bronze_keeps_them(ran: Any, log: Log) -> None:
    rows, _ = ran
    found = sorted((row["step"], row["reason"], row["partition"], row["offset"]) for row in rows["dead"])
    assert found == sorted(letter for letter in log.truth.dead if letter[0].startswith("silver/"))
    assert all(row["value"] is None and row["event_id"] and row["detail"] == "event_time" for row in rows["dead"])


def test_counters_add_up(ran: Any, log: Log) -> None:
    _, counters = ran
    assert counters == log.truth.counters()
    assert counters["bronze"] == counters["silver"] + counters["duplicates"] + counters["silver_dlq"]
