"""The Kafka source on librdkafka's in-process mock broker. The real broker has its turn in tests/integration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.io.restriction_trackers import OffsetRange
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.utils.timestamp import Duration
from confluent_kafka import Producer

from beam_pipelines.io import partition_reader
from beam_pipelines.io.kafka import NO_WATERMARK_MS, ReadFromKafka, _ReadUnbounded, _SliceTracker
from beam_pipelines.io.partition_reader import borrow_reader, close_readers, list_partitions
from common.errors import PipelineError

TOPIC = "events"
GRACE_MS = 100
PARTITIONS = 4  # the mock broker's default
RECORDS = 400


@dataclass(frozen=True)
class Broker:
    bootstrap_servers: str
    security_protocol: str = "plaintext"
    sasl_mechanism: str | None = None
    sasl_username: str | None = None
    ssl_ca_location: str | None = None


@pytest.fixture(scope="module")
def producer() -> Iterator[Producer]:
    producer = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock:1", "log_level": 0})
    # Partition 3 stays empty; every third record is older than the one before it.
    for n in range(RECORDS):
        time_ms = 1_700_000_000_000 + n * 10 - (n % 9 == 0) * 250
        producer.produce(
            TOPIC, key=b"k%d" % n, value=None if n % 50 == 7 else b"v%d" % n, timestamp=time_ms, partition=n % 3
        )
    producer.flush()
    yield producer
    close_readers()


@pytest.fixture(scope="module")
def broker(producer: Producer) -> Broker:
    (address,) = producer.list_topics(timeout=5).brokers.values()
    return Broker(f"{address.host}:{address.port}")


_rows: list[dict[str, Any]] = []


def _keep(batch: Any) -> None:
    _rows.extend(batch.to_pylist())


def check(rows: list[dict[str, Any]]) -> None:
    """Every record once, in order, with the watermark that the log's own times give."""
    by_partition = defaultdict(list)
    for row in rows:
        by_partition[row["partition"]].append(row)
    assert sorted(by_partition) == [0, 1, 2]
    for partition, found in by_partition.items():
        numbers = range(partition, RECORDS, 3)
        assert [row["offset"] for row in found] == list(range(len(numbers)))
        assert [row["key"] for row in found] == [b"k%d" % n for n in numbers]
        assert [row["value"] for row in found] == [None if n % 50 == 7 else b"v%d" % n for n in numbers]
        newest = None
        for row, n in zip(found, numbers, strict=True):
            assert row["kafka_ts_ms"] == 1_700_000_000_000 + n * 10 - (n % 9 == 0) * 250
            assert row["watermark_ms"] == (NO_WATERMARK_MS if newest is None else newest - GRACE_MS)
            newest = max(row["kafka_ts_ms"], newest or 0)


@pytest.mark.parametrize("batch_rows", [7, 1_000])
def test_a_bounded_read_gives_every_record_and_ends(broker: Broker, batch_rows: int) -> None:
    _rows.clear()
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as p:
        source = ReadFromKafka(broker, TOPIC, grace_ms=GRACE_MS, bounded=True, batch_rows=batch_rows)
        _ = p | source | beam.Map(_keep)
    check(_rows)


def test_an_unbounded_read_goes_on_where_the_slice_before_it_ended(broker: Broker) -> None:
    dofn = _ReadUnbounded(broker, TOPIC, GRACE_MS, batch_rows=30, slice_rows=50)
    rows: list[dict[str, Any]] = []
    for partition in range(PARTITIONS):
        restriction, watermark, delay = OffsetRange(0, 2**63 - 1), None, Duration(0)
        while delay == Duration(0):
            tracker, estimator = _SliceTracker(restriction), ManualWatermarkEstimator(watermark)
            deferred: list[Duration] = []
            tracker.defer_remainder = deferred.append
            got = [value.value for value in dofn.process(partition, tracker, estimator)]
            assert sum(batch.num_rows for batch in got) <= 50
            rows += [row for batch in got for row in batch.to_pylist()]
            (delay,) = deferred
            _, restriction = tracker.try_split(0) or (None, restriction)
            watermark = estimator.current_watermark()
    check(rows)


def test_a_slice_is_only_cut_where_it_is() -> None:
    tracker = _SliceTracker(OffsetRange(0, 100))
    assert tracker.try_claim(10)
    assert tracker.try_split(0.5) is None
    assert tracker.try_split(0) == (OffsetRange(0, 11), OffsetRange(11, 100))


def test_records_that_were_not_claimed_are_read_again(broker: Broker) -> None:
    with borrow_reader(broker, TOPIC, 0, 0) as reader:
        assert len(reader.read(20, 1_000)) == 20
    with borrow_reader(broker, TOPIC, 0, 0) as again:
        assert again is reader
        assert [record.offset() for record in again.read(3, 1_000)] == [0, 1, 2]


def test_records_behind_the_end_are_not_given(broker: Broker) -> None:
    with borrow_reader(broker, TOPIC, 0, 10) as reader:
        assert [record.offset() for record in reader.read(50, 13)] == [10, 11, 12]


def test_a_reader_that_failed_is_not_kept(broker: Broker) -> None:
    with pytest.raises(RuntimeError), borrow_reader(broker, TOPIC, 1, 0) as reader:
        raise RuntimeError
    with borrow_reader(broker, TOPIC, 1, 0) as other:
        assert other is not reader


def test_few_consumers_are_kept(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_reader, "KEPT_CONSUMERS", 2)
    for partition in range(PARTITIONS):
        with borrow_reader(broker, TOPIC, partition, 0):
            pass
    assert [partition for _, _, partition in partition_reader._kept] == [2, 3]


def test_silence_is_not_the_end(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_reader, "SILENCE_SECONDS", 0.3)
    nobody = Broker("127.0.0.1:1")
    with pytest.raises(PipelineError) as error, borrow_reader(nobody, TOPIC, 0, 0) as reader:
        reader.read(1, 10)
    assert error.value.code == "kafka_read"
    assert str(error.value.origin) == "events[0]@0"


def test_a_broker_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_reader, "METADATA_SECONDS", 0.3)
    with pytest.raises(PipelineError, match=r"127\.0\.0\.1:1 does not answer") as error:
        list_partitions(Broker("127.0.0.1:1"), TOPIC)
    assert error.value.code == "kafka_unreachable"
