"""An Apache Kafka 4.4 broker: one node, KRaft, combined mode (broker and controller in one JVM).

Ready in 3-4 s warm, 170 MB resident when idle. Data, cluster id and ports survive a restart, so that consumer groups,
offsets and transactional ids stay valid. A killed broker loses nothing that it acknowledged; a power cut may.
"""

from __future__ import annotations

import base64
import logging
import os
import shutil
import subprocess
import uuid
from importlib.resources import as_file, files
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from common.errors import PipelineError
from common.services.jre import find_jre
from common.services.maven import default_cache, parse_lock, resolve
from common.services.ports import LOOPBACK, accepts
from common.services.service import Ports, Progress

KAFKA_JAVA_VERSION = 17
# C1 only: a laptop's broker lives for minutes, and warm-up is what they are spent on. The Serial collector has the
# smallest footprint, and its pauses are short on a heap of this size.
JVM_OPTIONS = (
    "-Xms128m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.net.preferIPv4Stack=true",
)
BROKER_PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    # A misspelt topic must fail, not read an empty stream; and the number of partitions is the producer's decision.
    "auto.create.topics.enable": "false",
    # Retention and segments by time go by the records' timestamps: a replay of a log of 1996 would be deleted at once,
    # and 22 years of it cut into 1,100 segments. Bytes bound both instead.
    "log.retention.ms": "-1",
    "log.roll.ms": str(2**62),
    "log.retention.bytes": str(8 << 30),
    "log.segment.bytes": str(256 << 20),
    # One broker: internal topics have one replica, and few partitions, as each costs files and start-up time.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "4",
    "group.initial.rebalance.delay.ms": "0",
    "log.cleaner.dedupe.buffer.size": str(8 << 20),  # 128 MB of heap by default
    "num.network.threads": "2",
    "num.io.threads": "4",
}


class Kafka:
    """Service with the ports ``broker`` (for clients) and ``controller`` (its own)."""

    name = "kafka"
    port_names = ("broker", "controller")
    stop_grace_s = 20.0

    def prepare(self, home: Path, ports: Ports, on_progress: Progress) -> list[str]:
        package = files("common.services")
        with as_file(package / "kafka-log4j2.xml") as logging_configuration:
            shutil.copyfile(logging_configuration, home / "log4j2.xml")
        lock = (package / "locks" / "kafka.lock").read_text()
        jars = resolve(parse_lock(lock, origin="common/services/locks/kafka.lock"), default_cache(), on_progress)
        (home / "tmp").mkdir(exist_ok=True)
        java = [
            str(find_jre(KAFKA_JAVA_VERSION).java),
            *JVM_OPTIONS,
            f"-Djava.io.tmpdir={home.absolute() / 'tmp'}",  # native codecs are unpacked there
            "-Dlog4j2.configurationFile=log4j2.xml",
            "-cp",
            os.pathsep.join(map(str, jars)),
        ]
        if not (home / "data").is_dir():
            on_progress("formatting Kafka's storage")
            _format(java, home, ports)
        (home / "server.properties").write_text(_properties(ports, log_dirs="data"))
        return [*java, "kafka.Kafka", "server.properties"]

    def is_ready(self, ports: Ports) -> bool:
        if not accepts(ports["broker"]):  # cheaper than a client, and silent
            return False
        quiet = logging.Logger("kafka-probe", level=logging.CRITICAL)
        admin = AdminClient({"bootstrap.servers": self.address(ports)}, logger=quiet)
        try:
            return bool(admin.list_topics(timeout=2).brokers)
        except KafkaException:
            return False

    def address(self, ports: Ports) -> str:
        return f"{LOOPBACK}:{ports['broker']}"


def _properties(ports: Ports, *, log_dirs: str) -> str:
    """``server.properties``; paths are relative to the broker's folder, so that the state folder may be moved."""
    broker, controller = f"PLAINTEXT://{LOOPBACK}:{ports['broker']}", f"CONTROLLER://{LOOPBACK}:{ports['controller']}"
    properties = {
        **BROKER_PROPERTIES,
        "controller.quorum.voters": f"1@{LOOPBACK}:{ports['controller']}",
        "listeners": f"{broker},{controller}",
        "advertised.listeners": broker,
        "log.dirs": log_dirs,
    }
    return "".join(f"{key}={value}\n" for key, value in properties.items())


def _format(java: list[str], home: Path, ports: Ports) -> None:
    """Make ``<home>/data`` with a new cluster id; a kill half-way leaves no folder that looks formatted."""
    shutil.rmtree(home / "data.draft", ignore_errors=True)
    (home / "format.properties").write_text(_properties(ports, log_dirs="data.draft"))
    command = [*java, "kafka.tools.StorageTool", "format", "-c", "format.properties", f"--cluster-id={_cluster_id()}"]
    done = subprocess.run(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise PipelineError(
            f"Kafka's storage could not be formatted in {home}: {done.stdout.strip()[-500:]}",
            code="kafka_format_failed",
            hint=f"check that {home} is writable and has free space",
        )
    (home / "data.draft").rename(home / "data")


def _cluster_id() -> str:
    """A random UUID in Kafka's spelling: 22 characters of URL-safe base64."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
