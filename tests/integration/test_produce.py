"""The producer against a real broker and a real registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from typer.testing import CliRunner

from beam_pipelines.cli.produce import LogRequest, open_source, produce_demo, produce_log
from common import produce
from common.config import Settings
from common.domain import load_domain
from common.errors import ConfigError
from common.produce import ProduceError, ensure_topic, produce_events
from common.schema_registry import Registry
from common.services.supervisor import Services

pytestmark = pytest.mark.slow

REPO = Path(__file__).parents[2] / "feature_repo"
FAULTS = {"malformed": 20, "duplicates": 50}
Sent = dict[int, list[tuple[bytes, bytes | None, int]]]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    state_dir = tmp_path_factory.mktemp("state")
    with Services(state_dir).running(["kafka", "registry"]) as endpoints:
        yield Settings(
            state_dir=state_dir,
            repo=REPO,
            bootstrap_servers=endpoints.bootstrap_servers or "",
            registry_url=endpoints.registry_url or "",
        )


def read_topic(settings: Settings, topic: str, partitions: int, count: int) -> Sent:
    """(key, value, timestamp) of `count` messages, by partition in the order of their offsets."""
    consumer = Consumer({"bootstrap.servers": settings.bootstrap_servers, "group.id": topic})
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in range(partitions)])
    sent: Sent = {partition: [] for partition in range(partitions)}
    messages = consumer.consume(count, 30)
    for message in messages:
        assert message.error() is None
        sent[message.partition()].append((message.key(), message.value(), message.timestamp()[1]))
    assert not consumer.consume(1, 0.5), "more messages than were produced"
    consumer.close()
    return sent


def planned(settings: Settings, request: LogRequest, partitions: int) -> Sent:
    """What the log says should be in each partition."""
    domain = load_domain(settings.repo)
    registry = Registry(settings.registry_url)
    ids = [registry.register("planned-value", schema) for schema in domain.schemas]
    source = open_source(domain, request, partitions)
    sent: Sent = {partition: [] for partition in range(partitions)}
    for batch in source.batches(ids, 0, source.count):
        columns = batch.keys.to_pylist(), batch.values.to_pylist(), batch.timestamps_ms.tolist()
        for partition, *message in zip(batch.partitions.tolist(), *columns, strict=True):
            sent[partition].append(tuple(message))
    return sent


def test_every_message_is_there_once_in_order_with_its_time(settings: Settings) -> None:
    request = LogRequest(events=3_000, faults=FAULTS)
    report = produce_log(settings.with_values("test", topic="whole"), request, partitions=3)
    assert (report.produced, report.partitions, report.reference) == (3_000, 3, None)
    assert read_topic(settings, "whole", 3, 3_000) == planned(settings, request, 3)


def test_parts_make_the_whole(settings: Settings) -> None:
    request, in_parts = LogRequest(events=2_000), settings.with_values("test", topic="parts")
    first = produce_log(in_parts, request, stop_at=700, rate=7_000)
    second = produce_log(in_parts, request, start_at=700)
    assert first.truth == second.truth
    assert (first.produced, second.produced) == (700, 1_300)
    assert first.seconds > 0.09, "the rate was not kept"
    assert read_topic(settings, "parts", 4, 2_000) == planned(settings, request, 4)


def test_schemas_are_registered_oldest_first_and_found_by_the_ids_in_the_messages(settings: Settings) -> None:
    produce_demo(settings.with_values("test", topic="schemas"), events=500)
    domain = load_domain(REPO)
    values = [value for part in read_topic(settings, "schemas", 4, 500).values() for _, value, _ in part if value]
    ids = sorted({int.from_bytes(value[1:5], "big") for value in values if value[0] == 0 and len(value) > 100})
    registry = Registry(settings.registry_url)
    assert [registry.schema(schema_id)["fields"] for schema_id in ids] == [s["fields"] for s in domain.schemas]


def test_a_replay_brings_its_reference_table(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,2,4.0,828124615\n")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n2,Jumanji (1995),Adventure|Fantasy\n")
    replaying = settings.with_values("test", topic="ratings")
    report = produce_demo(replaying, events=0, replay=tmp_path / "ratings.csv", format="movielens")
    assert report.truth["silver"] == 1
    assert report.reference is not None
    assert "Jumanji" in report.reference.read_text()
    ((key, _, timestamp_ms),) = [message for part in read_topic(settings, "ratings", 4, 1).values() for message in part]
    assert (key, timestamp_ms) == (b"u1", 828_124_615_000), "a log of 1996 keeps its clock"


def test_the_command(settings: Settings) -> None:
    import typer

    from beam_pipelines.cli.produce import produce as command

    app = typer.Typer()
    app.command()(command)
    arguments = ["--events", "1000", "--late", "11", "--topic", "command", "--repo", str(REPO), "--output", "json"]
    addresses = ["--bootstrap-servers", settings.bootstrap_servers, "--registry-url", settings.registry_url]
    result = CliRunner().invoke(app, [*arguments, *addresses], catch_exceptions=False)
    assert result.exit_code == 0
    report: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    assert report["produced"] == report["truth"]["consumed"] == 1_000
    assert report["truth"]["late"] == 11 + 1


def test_what_cannot_be_produced_says_what_to_do(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = load_domain(REPO)
    with pytest.raises(ConfigError, match="knows: movielens"):
        open_source(domain, LogRequest(0, replay=Path("x.csv"), format="netflix"), 1)
    with pytest.raises(ConfigError, match="goes with --replay"):
        open_source(domain, LogRequest(0, format="movielens"), 1)
    with pytest.raises(ConfigError, match="the log has 10"):
        produce_log(settings, LogRequest(10, faults=dict.fromkeys(("duplicates", "late", "too_late"), 0)), stop_at=11)

    monkeypatch.setattr(produce, "_METADATA_TIMEOUT_SECONDS", 1)
    nobody = {"bootstrap.servers": "127.0.0.1:9"}
    with pytest.raises(ProduceError) as unavailable:
        ensure_topic(nobody, "t", 1)
    assert unavailable.value.code == "kafka_unavailable"


def test_an_undelivered_message_is_an_error(settings: Settings) -> None:
    kafka = {"bootstrap.servers": settings.bootstrap_servers}
    ensure_topic(kafka, "one_partition", 1)
    source = open_source(load_domain(REPO), LogRequest(1_000), 4)  # planned for four
    with pytest.raises(ProduceError) as undelivered:
        produce_events(source, [1, 2, 3], kafka=kafka, topic="one_partition")
    assert undelivered.value.code == "not_delivered"
