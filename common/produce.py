"""Sends an event source's log to Kafka, in order, each message once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from common.errors import ConfigError, PipelineError
from common.event_source import EventSource, MessageBatch
from common.schema_registry import Registry

_METADATA_TIMEOUT_SECONDS = 15
_FLUSH_SECONDS = 1.0
# How often at most the queue is served and progress told while messages are handed over.
_SLICE_ROWS = 5_000
_SLICES_PER_SECOND = 20

_PRODUCER: Mapping[str, Any] = {
    "enable.idempotence": "true",  # a retried send is neither lost, doubled nor reordered
    "acks": "all",
    "compression.type": "lz4",
    # Large batches: 350k messages/s on one core where the defaults give half of that.
    "linger.ms": "20",
    "batch.num.messages": "50000",
    "queue.buffering.max.messages": "500000",
    "queue.buffering.max.kbytes": "262144",
    "log_level": 3,  # what is retried is no news
    # A report per message costs more than sending it; what fails is all one needs to hear of.
    "delivery.report.only.error": True,
}

_TOPIC = {
    # Logs are simulated or replayed: their timestamps may lie decades back, or ahead of this machine's clock, and
    # retention by time would delete them on arrival.
    "retention.ms": "-1",
    "message.timestamp.after.max.ms": str(2**63 - 1),
}


class ProduceError(PipelineError):
    """Messages could not be delivered."""


@dataclass(frozen=True)
class ProduceReport:
    """What was produced. `truth` is about the whole log (GroundTruth.as_dict), also if only a part was sent.

    `reference`: the CSV that replaces the domain's reference table for this log, if one does.
    """

    topic: str
    partitions: int
    produced: int
    seconds: float
    truth: Mapping[str, Any]
    reference: Path | None = None

    @property
    def events_per_second(self) -> float:
        return self.produced / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "topic": self.topic,
            "partitions": self.partitions,
            "produced": self.produced,
            "seconds": round(self.seconds, 3),
            "events_per_second": round(self.events_per_second),
            "truth": dict(self.truth),
            "reference": None if self.reference is None else str(self.reference),
        }


def ensure_topic(kafka: Mapping[str, str], topic: str, partitions: int) -> int:
    """Creates the topic if it is absent; gives its number of partitions, which for an old topic may be another.

    Raises:
        ProduceError: the brokers do not answer, or refuse.
    """
    admin = AdminClient(dict(kafka))
    try:
        existing = admin.list_topics(timeout=_METADATA_TIMEOUT_SECONDS).topics.get(topic)
        if existing is not None and existing.error is None:
            return len(existing.partitions)
        created = admin.create_topics(
            [NewTopic(topic, partitions, config=_TOPIC)], request_timeout=_METADATA_TIMEOUT_SECONDS
        )
        created[topic].result()
    except KafkaException as error:
        kafka_error = error.args[0]
        if kafka_error.code() == KafkaError.TOPIC_ALREADY_EXISTS:  # somebody was faster
            return ensure_topic(kafka, topic, partitions)
        raise ProduceError(
            f"topic '{topic}' cannot be made at {kafka['bootstrap.servers']}: {kafka_error.str()}",
            code="kafka_unavailable",
            hint="python -m beam_pipelines doctor",
        ) from None
    return partitions


def register_schemas(registry: Registry, topic: str, schemas: Sequence[Mapping[str, Any]]) -> list[int]:
    """Registers the versions, oldest first, under the topic's value subject; gives their ids in the same order."""
    return [registry.register(f"{topic}-value", schema) for schema in schemas]


def produce_events(
    source: EventSource,
    schema_ids: Sequence[int],
    *,
    kafka: Mapping[str, str],
    topic: str,
    start: int = 0,
    stop: int | None = None,
    rate: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Sends messages start..stop-1 of the source, at most `rate` per second; gives how many.

    Returns when the brokers have acknowledged every message. Parts of one log, sent one after the other, are the
    same as the whole. A call that is killed leaves a beginning of each partition, not of the log.

    Raises:
        ConfigError: start and stop are not within the log.
        ProduceError: a message could not be delivered within librdkafka's delivery timeout (5 minutes).
    """
    stop = source.count if stop is None else stop
    if not 0 <= start <= stop <= source.count:
        raise ConfigError(f"no messages {start}..{stop}: the log has {source.count}", code="bad_range")
    failures: list[KafkaError] = []

    def on_delivery(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            failures.append(error)

    producer = Producer({**kafka, **_PRODUCER, "on_delivery": on_delivery})
    slice_rows = _SLICE_ROWS if rate is None else max(1, min(_SLICE_ROWS, int(rate / _SLICES_PER_SECOND)))
    began, sent = time.monotonic(), 0
    for batch in source.batches(schema_ids, start, stop):
        for part in _slices(batch, slice_rows):
            sent += _enqueue(producer, topic, part)
            producer.poll(0)
            _refuse_failures(failures, topic)
            if on_progress is not None:
                on_progress(sent, stop - start)
            if rate is not None:
                time.sleep(max(0.0, sent / rate - (time.monotonic() - began)))
    while producer.flush(_FLUSH_SECONDS):
        _refuse_failures(failures, topic)
    _refuse_failures(failures, topic)
    return sent


def _slices(batch: MessageBatch, rows: int) -> Iterator[MessageBatch]:
    for first in range(0, len(batch.keys), rows):
        yield MessageBatch(
            batch.keys.slice(first, rows),
            batch.values.slice(first, rows),
            batch.partitions[first : first + rows],
            batch.timestamps_ms[first : first + rows],
        )


def _enqueue(producer: Producer, topic: str, batch: MessageBatch) -> int:
    """Hands over messages one by one: librdkafka's call for many takes no timestamps."""
    produce = producer.produce
    columns = (
        batch.values.to_pylist(),
        batch.keys.to_pylist(),
        batch.partitions.tolist(),
        batch.timestamps_ms.tolist(),
    )
    for value, key, partition, timestamp_ms in zip(*columns, strict=True):
        while True:
            try:
                produce(topic, value, key, partition, timestamp=timestamp_ms)
                break
            except BufferError:  # the queue is full: let some of it go
                producer.poll(0.05)
    return len(batch.keys)


def _refuse_failures(failures: Sequence[KafkaError], topic: str) -> None:
    if failures:
        raise ProduceError(
            f"{len(failures)} messages were not delivered to '{topic}', the first because: {failures[0].str()}",
            code="not_delivered",
            hint="python -m beam_pipelines doctor",
        )
