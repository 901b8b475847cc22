"""Apicurio Registry 3.3: a schema registry, used through its Confluent-compatible API.

Ready in 4-6 s, 245 MB resident. Schemas are kept in an H2 database in the service's folder: Kafka's records carry the
schemas' ids and outlive any run, so an id once handed out must never get another meaning.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from importlib.resources import files
from pathlib import Path

from common.services.archive import unpacked
from common.services.jre import find_jre
from common.services.maven import default_cache, parse_lock
from common.services.ports import LOOPBACK
from common.services.service import Ports, Progress

REGISTRY_JAVA_VERSION = 21
JVM_OPTIONS = (
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.net.preferIPv4Stack=true",
)
# Quarkus reads config/application.properties below the working directory.
PROPERTIES = """\
quarkus.http.host={host}
quarkus.http.port={http}
quarkus.management.host={host}
quarkus.management.port={management}
# WRITE_DELAY=0: an id is on disk before it is answered (by default 0.5 s later: a killed registry would hand the
# same id to another schema).
apicurio.datasource.url=jdbc:h2:file:./data/registry;WRITE_DELAY=0
apicurio.datasource.jdbc.initial-size=1
apicurio.datasource.jdbc.min-size=1
apicurio.datasource.jdbc.max-size=8
apicurio.storage.snapshot.location=tmp
apicurio.import.work-dir=tmp
quarkus.http.access-log.enabled=false
quarkus.log.level=WARN
"""


class Registry:
    """Service with the ports ``http`` (for clients) and ``management`` (health and metrics; cannot be switched off)."""

    name = "registry"
    port_names = ("http", "management")
    stop_grace_s = 10.0

    def prepare(self, home: Path, ports: Ports, on_progress: Progress) -> list[str]:
        lock = (files("common.services") / "locks" / "registry.lock").read_text()
        [artifact] = parse_lock(lock, origin="common/services/locks/registry.lock")
        application = unpacked(artifact, default_cache(), on_progress)
        for folder in ("config", "data", "tmp"):
            (home / folder).mkdir(exist_ok=True)
        properties = PROPERTIES.format(host=LOOPBACK, http=ports["http"], management=ports["management"])
        (home / "config" / "application.properties").write_text(properties)
        return [
            str(find_jre(REGISTRY_JAVA_VERSION).java),
            *JVM_OPTIONS,
            f"-Djava.io.tmpdir={home.absolute() / 'tmp'}",
            "-jar",
            str(application / "quarkus-run.jar"),
        ]

    def is_ready(self, ports: Ports) -> bool:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy of the user's must not be asked
        try:
            with direct.open(f"{self.address(ports)}/subjects", timeout=2) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False

    def address(self, ports: Ports) -> str:
        return f"http://{LOOPBACK}:{ports['http']}/apis/ccompat/v7"
