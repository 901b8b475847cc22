"""The Kafka source on the real broker: transactions, control records, and a stream that is fed while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from beam_pipelines.io.kafka import ReadFromKafka
from beam_pipelines.io.partition_reader import close_readers
from common.errors import PipelineError
from common.services.supervisor import Services
from spark_jobs.beam_runner import SparkRunner
from tests.unit.beam_pipelines.test_kafka import Broker

pytestmark = pytest.mark.slow

_rows: list[dict[str, Any]] = []


def _keep(batch: Any) -> None:
    _rows.extend(batch.to_pylist())


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    services = Services(tmp_path_factory.mktemp("services"))
    try:
        yield Broker(str(services.up(["kafka"]).bootstrap_servers))
    finally:
        close_readers()
        services.down()


@pytest.fixture
def topic(broker: Broker, request: pytest.FixtureRequest) -> str:
    name = str(request.node.name)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    admin.create_topics([NewTopic(name, 2, 1)])[name].result(30)
    _rows.clear()
    return name


def transaction(broker: Broker, topic: str, values: list[bytes], end: str) -> Producer:
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "transactional.id": f"{topic}-{values[0]!r}"})
    producer.init_transactions(30)
    producer.begin_transaction()
    for value in values:
        producer.produce(topic, value, partition=0)
    producer.flush(30)  # before an abort: otherwise nothing would have been sent
    if end == "commit":
        producer.commit_transaction(30)
    elif end == "abort":
        producer.abort_transaction(30)
    return producer


def read_all(broker: Broker, topic: str) -> list[bytes]:
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as p:
        _ = p | ReadFromKafka(broker, topic, grace_ms=0, bounded=True, batch_rows=2) | beam.Map(_keep)
    return [row["value"] for row in _rows]


def test_only_committed_records_are_read_and_the_read_ends(broker: Broker, topic: str) -> None:
    transaction(broker, topic, [b"a", b"b", b"c"], "commit")
    transaction(broker, topic, [b"x"] * 5, "abort")
    transaction(broker, topic, [b"d"], "commit")
    transaction(broker, topic, [b"y"] * 5, "abort")  # the log ends with records and markers that nobody sees
    assert read_all(broker, topic) == [b"a", b"b", b"c", b"d"]


def test_a_read_stops_before_an_open_transaction(broker: Broker, topic: str) -> None:
    transaction(broker, topic, [b"a"], "commit")
    still_open = transaction(broker, topic, [b"b"], "later")
    started = time.monotonic()
    assert read_all(broker, topic) == [b"a"]
    assert time.monotonic() - started < 20
    still_open.abort_transaction(30)


def test_a_topic_that_does_not_exist_is_named(broker: Broker) -> None:
    with pytest.raises(Exception, match="no-such-topic") as error:
        read_all(broker, "no-such-topic")
    assert isinstance(error.value, PipelineError) or "no-such-topic cannot be read" in str(error.value)


def test_a_stream_takes_what_arrives_while_it_runs(broker: Broker, topic: str, tmp_path: Path) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "linger.ms": 5})

    def feed() -> None:
        for n in range(3_000):
            producer.produce(topic, b"%d" % n, partition=n % 2)
            if n % 500 == 0:
                producer.flush(10)
                time.sleep(0.3)
        producer.flush(10)

    feeder = threading.Thread(target=feed)
    flags = ["--streaming", "--transport=local", f"--checkpoint={tmp_path}"]
    p = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(flags))
    _ = p | ReadFromKafka(broker, topic, grace_ms=0, bounded=False, slice_rows=100) | beam.Map(_keep)
    result = p.run()
    feeder.start()
    feeder.join()
    deadline = time.monotonic() + 30
    while len(_rows) < 3_000 and time.monotonic() < deadline:
        time.sleep(0.1)
    result.request_stop()
    result.wait_until_finish()
    for partition in (0, 1):
        values = [int(row["value"]) for row in _rows if row["partition"] == partition]
        assert values == list(range(partition, 3_000, 2))
