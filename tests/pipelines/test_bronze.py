"""The bronze pipeline against the truth: every record becomes a row or a dead letter with its bytes."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
import pytest

from beam_pipelines.pipelines.bronze import bronze
from common.domain import Domain
from tests.pipelines.conftest import Log
from tests.pipelines.running import run


@pytest.fixture(scope="module", params=[97, 5_000], ids=["small batches", "one batch per partition"])
def ran(request: pytest.FixtureRequest, domain: Domain, log: Log) -> Any:
    def build(p: beam.Pipeline) -> Any:
        raw = p | beam.Create(log.batches(request.param), reshuffle=False)
        layer = bronze(raw, domain, log.writer_schemas, None)
        return {"rows": layer.rows, "dead": layer.dead | beam.Flatten()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINES_PII_KEY", "0123456789abcdef0123456789abcdef")
        return run(build)


def test_rows_are_exactly_the_sound_events(ran: Any, log: Log) -> None:
    rows, _ = ran
    for row in rows["rows"]:
        del row["_topic"], row["_watermark_ms"]
    order = lambda row: (row["_partition"], row["_offset"])  # noqa: E731
    assert sorted(rows["rows"], key=order) == sorted(log.truth.bronze, key=order)


def test_rows_keep_the_order_of_their_partition(ran: Any) -> None:
    rows, _ = ran
    for partition in range(3):
        offsets = [row["_offset"] for row in rows["rows"] if row["_partition"] == partition]
        assert offsets == sorted(offsets)


def test_every_other_record_is_a_dead_letter_with_its_reason(ran: Any, log: Log) -> None:
    rows, _ = ran
    found = sorted((row["step"], row["reason"], row["partition"], row["offset"]) for row in rows["dead"])
    assert found == sorted(letter for letter in log.truth.dead if letter[0].startswith("bronze/"))


def test_dead_letters_hold_the_bytes_that_kafka_held(ran: Any, log: Log) -> None:
    rows, _ = ran
    raw = {(p, row["offset"]): row for p, batch in enumerate(log.partitions) for row in batch.to_pylist()}
    for letter in rows["dead"]:
        record = raw[letter["partition"], letter["offset"]]
        assert (letter["key"], letter["value"]) == (record["key"], record["value"])
        assert letter["failed_at_ms"] == letter["kafka_ts_ms"] == record["kafka_ts_ms"]
        assert letter["layer"] == "bronze"


def test_counters_add_up(ran: Any, log: Log) -> None:
    _, counters = ran
    expected = log.truth.counters()
    assert counters == {name: expected[name] for name in ("consumed", "bronze", "bronze_dlq")}
    assert counters["consumed"] == counters["bronze"] + counters["bronze_dlq"]


def test_the_generator_and_the_oracle_agree(log: Log) -> None:
    truth = log.generator.truth().as_dict()
    assert log.truth.counters() == {name: truth[name] for name in log.truth.counters()}
