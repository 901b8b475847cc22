"""The real broker, registry and Redis server: what they keep over a restart and over SIGKILL, and where they listen."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from common.services.jre import find_jre
from common.services.process import ProcessId
from common.services.supervisor import Endpoints, Services

pytestmark = pytest.mark.slow
PARTITION = TopicPartition("t", 0, OFFSET_BEGINNING)
DECADES_AGO_MS = 828_000_000_000  # 1996, as in a replayed log: the broker must take and keep it
STARTED_RUN = r"""
import os, sys, time
from pathlib import Path
from common.services.supervisor import Services
# One write a line: services report from their own threads.
Services(Path(sys.argv[1]), lambda line: os.write(1, f"{line}\n".encode())).up(owner_pid=os.getpid())
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("a state folder, with a comma")
    yield folder
    Services(folder).down()


def produce(endpoints: Endpoints, value: bytes) -> None:
    admin = AdminClient({"bootstrap.servers": endpoints.bootstrap_servers})
    with contextlib.suppress(Exception):  # it may exist
        admin.create_topics([NewTopic("t", 1, 1)])["t"].result(10)
    producer = Producer({"bootstrap.servers": endpoints.bootstrap_servers})
    producer.produce("t", value, timestamp=DECADES_AGO_MS)
    assert producer.flush(10) == 0


def consume(endpoints: Endpoints, count: int) -> list[bytes]:
    consumer = Consumer({"bootstrap.servers": endpoints.bootstrap_servers, "group.id": "g"})
    consumer.assign([PARTITION])
    values = [message.value() for message in consumer.consume(count, 20)]
    consumer.close()
    return values


def register(endpoints: Endpoints, avro_type: str) -> int:
    client = SchemaRegistryClient({"url": endpoints.registry_url})
    return int(client.register_schema(f"{avro_type}-value", Schema(json.dumps(avro_type), "AVRO")))


def schema(endpoints: Endpoints, schema_id: int) -> object:
    return json.loads(str(SchemaRegistryClient({"url": endpoints.registry_url}).get_schema(schema_id).schema_str))


def listening_addresses(pid: int) -> set[str]:
    sockets = psutil.Process(pid).net_connections(kind="inet")
    return {connection.laddr.ip for connection in sockets if connection.status == psutil.CONN_LISTEN}


def test_data_ids_and_addresses_survive_down_and_up(state_dir: Path) -> None:
    services = Services(state_dir)
    first = services.up()
    produce(first, b"one")
    assert consume(first, 1) == [b"one"]
    long_id = register(first, "long")
    redis.Redis.from_url(str(first.redis_url)).set("key", "value")

    began_s = time.monotonic()
    services.down()
    assert {status.state for status in services.status()} == {"stopped"}
    assert services.up() == first
    assert time.monotonic() - began_s < 60

    produce(first, b"two")
    assert consume(first, 2) == [b"one", b"two"]
    assert schema(first, long_id) == "long"
    assert register(first, "double") > long_id
    assert redis.Redis.from_url(str(first.redis_url)).get("key") == b"value"


def test_all_sockets_are_on_loopback(state_dir: Path) -> None:
    services = Services(state_dir)
    services.up()
    for status in services.status():
        assert status.pid is not None
        addresses = listening_addresses(status.pid)
        assert addresses, f"{status.name} listens on nothing"
        assert all(ipaddress.ip_address(address).is_loopback for address in addresses), (status.name, addresses)


def test_what_was_acknowledged_survives_sigkill_of_the_services(state_dir: Path) -> None:
    services = Services(state_dir)
    endpoints = services.up()
    produce(endpoints, b"three")
    before = consume(endpoints, 3)
    string_id = register(endpoints, "string")
    redis.Redis.from_url(str(endpoints.redis_url)).set("key", "newer")
    for status in services.status():
        assert status.pid is not None
        os.kill(status.pid, signal.SIGKILL)  # at once: nothing may hang on a delayed write

    assert services.up() == endpoints
    assert consume(endpoints, 3) == before
    assert schema(endpoints, string_id) == "string"
    assert register(endpoints, "bytes") > string_id
    assert redis.Redis.from_url(str(endpoints.redis_url)).get("key") == b"newer"


def test_the_next_up_after_a_killed_run_takes_over_or_cleans(state_dir: Path) -> None:
    services = Services(state_dir)
    services.down()
    command = [sys.executable, "-c", STARTED_RUN, str(state_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert "up\n" in run.stdout
        run.kill()
    orphans = {status.name: status.pid for status in services.status()}
    assert {status.state for status in services.status()} == {"orphaned"}

    with services.running(["kafka", "registry"]):
        kept = {status.name: status.pid for status in services.status()}
        assert kept == orphans | {"valkey": None}
    assert {status.state for status in services.status()} == {"stopped"}


def test_a_run_killed_during_the_start_leaves_nothing_for_good(state_dir: Path) -> None:
    services = Services(state_dir)
    services.down()
    command = [sys.executable, "-c", STARTED_RUN, str(state_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert any(line == "starting kafka\n" for line in run.stdout)
        time.sleep(0.5)
        run.kill()
    kafka = services.status()[0]
    assert kafka.state == "orphaned"
    assert kafka.pid is not None
    process = ProcessId.of(kafka.pid)
    assert "kafka" in services.reap()
    assert not process.is_running


def test_the_shim_runs_spark_s_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the wheel's trimmed runtime, which refuses the argument without the shim."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    jre = find_jre(cache=tmp_path)
    assert jre.home != jre.java.parent.parent
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    command = ["--add-modules=jdk.incubator.vector", "-version"]
    assert subprocess.run([jre.java, *command], capture_output=True, check=False).returncode != 0
    assert subprocess.run([jre.home / "bin" / "java", *command], capture_output=True, check=False).returncode == 0
