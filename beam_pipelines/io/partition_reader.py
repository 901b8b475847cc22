"""Reading one Kafka partition from an offset on, with consumers that a worker process keeps between bundles."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from common.errors import Origin, PipelineError
from common.kafka_config import KafkaSettings, kafka_config

STEP = "source/kafka"

_log = logging.getLogger(__name__)

# consume() returns when it has all it was asked for, or after this time: the wait at the end of a partition.
POLL_SECONDS = 0.1
# Neither a record nor the end of the partition for so long: the broker is gone, which is not the same as idle.
SILENCE_SECONDS = 60.0
METADATA_SECONDS = 30.0
# Each keeps threads, a connection and up to 16 MB of records fetched ahead.
KEPT_CONSUMERS = 16

_CONFIG: Mapping[str, str | int | bool] = {
    "group.id": "beam-pipelines-source",  # required by the client, never committed to
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
    "enable.partition.eof": True,
    # Records that retention deleted before they were read are lost: that must not pass in silence.
    "auto.offset.reset": "error",
    "queued.max.messages.kbytes": 16_384,
    "fetch.max.bytes": 16_777_216,
    "max.partition.fetch.bytes": 8_388_608,
    "fetch.wait.max.ms": 50,
}


def list_partitions(kafka: KafkaSettings, topic: str) -> list[int]:
    """The topic's partition numbers. Raises PipelineError if it does not exist or Kafka does not answer."""
    with _client(kafka) as consumer:
        try:
            found = consumer.list_topics(topic, timeout=METADATA_SECONDS).topics[topic]
        except KafkaException as error:
            raise _unreachable(kafka, error) from error
    if found.error is not None:
        raise PipelineError(
            f"topic {topic} cannot be read: {found.error.str()}",
            code="no_topic",
            step=STEP,
            hint="python -m beam_pipelines produce creates and fills it",
        )
    return sorted(found.partitions)


def committed_range(kafka: KafkaSettings, topic: str, partition: int) -> tuple[int, int]:
    """[earliest offset, last stable offset) of a partition, now."""
    with _client(kafka) as consumer:
        try:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=METADATA_SECONDS)
        except KafkaException as error:
            raise _unreachable(kafka, error) from error
    return low, high


def count_records(kafka: KafkaSettings, topic: str) -> int:
    """Offsets between the ends of all partitions of a topic; 0 if there is no such topic."""
    try:
        partitions = list_partitions(kafka, topic)
    except PipelineError as error:
        if error.code == "no_topic":
            return 0
        raise
    ranges = [committed_range(kafka, topic, partition) for partition in partitions]
    return sum(high - low for low, high in ranges)


class PartitionReader:
    """A consumer assigned to one partition. Reading goes on from `position` without a seek."""

    def __init__(self, kafka: KafkaSettings, topic: str, partition: int, offset: int) -> None:
        self._origin = (topic, partition)
        self._consumer = _consumer(kafka)
        self.seek(offset)

    def seek(self, offset: int) -> None:
        self._consumer.assign([TopicPartition(*self._origin, offset)])
        self.position = self._fetched = offset
        self._at_end = False

    def read(self, rows: int, stop: int) -> list[Message]:
        """The next `rows` records before offset `stop`; fewer only at the end of the partition.

        Raises:
            PipelineError: Kafka reports an error, or says nothing for `SILENCE_SECONDS`.
        """
        records: list[Message] = []
        deadline = time.monotonic() + SILENCE_SECONDS
        while len(records) < rows and self._fetched < stop:
            polled = self._consumer.consume(rows - len(records), POLL_SECONDS)
            fresh, errors = polled, [error for error in map(Message.error, polled) if error is not None]
            if errors:
                fresh = [record for record in polled if record.error() is None]
                self._note(errors)
            if fresh:
                records += fresh
                self._fetched = fresh[-1].offset() + 1
                self._at_end = polled[-1].error() is not None
                deadline = time.monotonic() + SILENCE_SECONDS
            elif self._at_end:
                break
            elif time.monotonic() > deadline:
                raise self._failed(f"neither records nor the end of the partition for {SILENCE_SECONDS:.0f} s")
        while records and records[-1].offset() >= stop:
            records.pop()
        return records

    def accept(self, records: list[Message]) -> None:
        """Says that the records were claimed: only then may the next reader go on behind them."""
        self.position = records[-1].offset() + 1

    @property
    def is_resumable(self) -> bool:
        """Whether all that was fetched was accepted."""
        return self.position == self._fetched

    def close(self) -> None:
        self._consumer.close()

    def _note(self, errors: list[KafkaError]) -> None:
        for error in errors:
            if error.code() != KafkaError._PARTITION_EOF:
                raise self._failed(error.str())
            self._at_end = True

    def _failed(self, why: str) -> PipelineError:
        return PipelineError(
            f"Kafka: {why}",
            code="kafka_read",
            step=STEP,
            origin=Origin(*self._origin, self._fetched),
            hint="python -m beam_pipelines doctor",
        )


_kept: OrderedDict[tuple[str, str, int], PartitionReader] = OrderedDict()
_kept_lock = threading.Lock()


@contextmanager
def borrow_reader(kafka: KafkaSettings, topic: str, partition: int, offset: int) -> Iterator[PartitionReader]:
    """A reader at `offset`, from those that this process keeps. An error inside throws it away."""
    key = (kafka.bootstrap_servers, topic, partition)
    with _kept_lock:
        reader = _kept.pop(key, None)
    if reader is None:
        reader = PartitionReader(kafka, topic, partition, offset)
    elif reader.position != offset or not reader.is_resumable:
        reader.seek(offset)
    try:
        yield reader
    except BaseException:
        reader.close()
        raise
    with _kept_lock:
        displaced = [_kept.pop(key)] if key in _kept else []
        _kept[key] = reader
        while len(_kept) > KEPT_CONSUMERS:
            displaced.append(_kept.popitem(last=False)[1])
    for other in displaced:
        other.close()


def close_readers() -> None:
    """Closes the kept readers; runs at the end of the process."""
    with _kept_lock:
        readers = list(_kept.values())
        _kept.clear()
    for reader in readers:
        reader.close()


atexit.register(close_readers)


def _consumer(kafka: KafkaSettings) -> Consumer:
    # Without a logger librdkafka writes to stderr on its own, in the middle of the progress display.
    return Consumer({**kafka_config(kafka), **_CONFIG}, logger=_log)


@contextmanager
def _client(kafka: KafkaSettings) -> Iterator[Consumer]:
    consumer = _consumer(kafka)
    try:
        yield consumer
    finally:
        consumer.close()


def _unreachable(kafka: KafkaSettings, error: KafkaException) -> PipelineError:
    return PipelineError(
        f"Kafka at {kafka.bootstrap_servers} does not answer: {error.args[0].str()}",
        code="kafka_unreachable",
        step=STEP,
        hint="python -m beam_pipelines doctor",
    )
