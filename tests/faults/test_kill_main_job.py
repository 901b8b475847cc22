"""The main job on real services, killed three times while events are produced: nothing lost, nothing doubled.

The truth is computed by tests/pipelines/oracle.py from what a plain consumer finds in the topic.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from common.domain import load_domain
from common.lake import Lake, current_rows, read
from common.pii import KEY_VARIABLE
from common.schema_registry import Registry
from common.services.supervisor import Endpoints, Services
from tests.pipelines.oracle import ENTITY_KEY, Truth, gold_of, truth_of
from tests.pipelines.running import to_rows

ROOT = Path(__file__).resolve().parents[2]
REPO = ROOT / "feature_repo"
PII_KEY = "0123456789abcdef0123456789abcdef"
TOPIC = "engagement"
EVENTS = int(os.environ.get("KILL_TEST_EVENTS", "40000"))
RATE = EVENTS / 40  # the producer works for 40 s, while the job dies and comes back

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Endpoints]:
    with Services(tmp_path / "state").running() as endpoints:
        yield endpoints


class Commands:
    """The command line against one set of services."""

    def __init__(self, folder: Path, endpoints: Endpoints) -> None:
        self.folder = folder
        self.addresses = [
            f"--bootstrap-servers={endpoints.bootstrap_servers}",
            f"--registry-url={endpoints.registry_url}",
            f"--state-dir={folder / 'state'}",
        ]
        self.redis = f"--redis-url={endpoints.redis_url}"
        self.environment = {**os.environ, KEY_VARIABLE: PII_KEY}

    def start(self, command: str, *flags: str) -> subprocess.Popen[str]:
        with open(self.folder / f"{command}.log", "a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "beam_pipelines", command, *self.addresses, *flags],
                cwd=ROOT,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def start_job(self, *flags: str) -> subprocess.Popen[str]:
        return self.start("run", self.redis, "--events=0", "--slice-rows=1500", *flags)

    def finish(self, process: subprocess.Popen[str], command: str) -> dict[str, Any]:
        out, _ = process.communicate(timeout=400)
        assert process.returncode == 0, (self.folder / f"{command}.log").read_text()[-3000:]
        document: dict[str, Any] = json.loads(out.splitlines()[-1])
        return document


def epochs(folder: Path) -> int:
    return len(list((folder / "state/checkpoints/stream/epochs").glob("*.json")))


def kill_after_epochs(job: subprocess.Popen[str], commands: Commands, more: int, delay_s: float) -> None:
    """SIGKILL of driver, JVM and Python workers, `delay_s` after the job committed `more` epochs."""
    target, deadline = epochs(commands.folder) + more, time.monotonic() + 180
    while epochs(commands.folder) < min(target, 8):  # a checkpoint keeps its eight newest manifests
        assert job.poll() is None, (commands.folder / "run.log").read_text()[-3000:]
        assert time.monotonic() < deadline, "the job commits no epochs"
        time.sleep(0.005)
    time.sleep(delay_s)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()


def raw_records(bootstrap_servers: str) -> list[dict[str, Any]]:
    """Everything in the topic, in offset order within each partition."""
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "oracle", "enable.auto.commit": False})
    records = []
    for partition in sorted(consumer.list_topics(TOPIC, timeout=10).topics[TOPIC].partitions):
        _, end = consumer.get_watermark_offsets(TopicPartition(TOPIC, partition), timeout=10)
        consumer.assign([TopicPartition(TOPIC, partition, 0)])
        taken = 0
        while taken < end:
            for message in consumer.consume(min(10_000, end - taken), 5):
                assert message.error() is None
                taken = message.offset() + 1
                records.append(
                    {
                        "partition": partition,
                        "offset": message.offset(),
                        "kafka_ts_ms": message.timestamp()[1],
                        "value": message.value(),
                    }
                )
    consumer.close()
    return records


def truth_in(endpoints: Endpoints) -> Truth:
    domain = load_domain(REPO)
    registry = Registry(str(endpoints.registry_url))
    ids = [registry.register(f"{TOPIC}-value", schema) for schema in domain.schemas]
    return truth_of(
        raw_records(str(endpoints.bootstrap_servers)),
        dict(zip(ids, domain.schemas, strict=True)),
        domain.schemas[-1],
        PII_KEY.encode(),
        REPO / "reference/videos.csv",
    )


def assert_rows_equal(got: list[dict[str, Any]], expected: list[dict[str, Any]], key: tuple[str, ...]) -> None:
    """As multisets, over the columns that the truth has."""
    columns = sorted(expected[0])
    order = [tuple(row[name] for name in key) for row in got]
    assert len(set(order)) == len(order), "a row is there twice"
    found = {at: {name: row[name] for name in columns} for at, row in zip(order, got, strict=True)}
    wanted = {tuple(row[name] for name in key): row for row in expected}
    assert found.keys() == wanted.keys()
    assert [at for at in wanted if found[at] != wanted[at]] == []


def test_three_kills_while_events_arrive_leave_exact_tables(tmp_path: Path, services: Endpoints) -> None:
    commands = Commands(tmp_path, services)
    flags = [f"--events={EVENTS}", f"--malformed={EVENTS // 100}", f"--invalid={EVENTS // 100}"]
    first = commands.start("produce", *flags, f"--stop-at={EVENTS // 8}", "--output=json")
    commands.finish(first, "produce")
    producer = commands.start("produce", *flags, f"--start-at={EVENTS // 8}", f"--rate={RATE}", "--output=json")
    for more, delay_s in ((1, 0.0), (2, 0.2), (2, 0.6)):
        kill_after_epochs(commands.start_job("--forever"), commands, more, delay_s)
    commands.finish(producer, "produce")
    report = commands.finish(commands.start_job("--until-drained", "--output=json"), "run")

    truth = truth_in(services)
    counters = truth.counters()
    assert counters["consumed"] == EVENTS
    assert {name: report[name] for name in counters} == counters
    lake = Lake(str(tmp_path / "state/warehouse/stream"))
    origin = ("_partition", "_offset")
    assert_rows_equal(to_rows(read(lake, "bronze")), truth.bronze, origin)
    assert_rows_equal(to_rows(read(lake, "silver")), truth.silver, ("event_id",))
    dead = to_rows(read(lake, "dlq", ["step", "reason", "partition", "offset"]))
    assert sorted((d["step"], d["reason"], d["partition"], d["offset"]) for d in dead) == sorted(truth.dead)
    for view, key in ENTITY_KEY.items():
        rows = [
            {**row, "tile_start_ms": row["tile_start"]} for row in to_rows(current_rows(lake, f"gold/{view}", [key]))
        ]
        assert_rows_equal(rows, gold_of(truth.silver, view), (key, "tile_start_ms"))
    assert report["online_sample"]["matches_gold"]
