"""What `doctor` looks at. Each check says what was seen, and what to type if that is not as it should be."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from importlib import metadata
from pathlib import Path

import psutil

from beam_pipelines.cli.probes import (
    EMBEDDED,
    ask_kafka,
    ask_redis,
    ask_registry,
    with_running_services,
)
from common.config import Settings, without_credentials
from common.domain import load_domain
from common.errors import PipelineError
from common.pii import KEY_VARIABLE, load_key
from common.services.jre import SPARK_JAVA_VERSION, find_jre
from common.services.registry import REGISTRY_JAVA_VERSION
from common.services.supervisor import Services, ServiceStatus

PYTHON = (3, 11)  # what the locked dependencies are resolved for
PACKAGES = ("apache-beam", "pyspark", "feast", "pyarrow", "polars", "deltalake", "confluent-kafka", "redis")
GIB = 1 << 30
# The services' jars are 0.4 GB unpacked; 100,000 events take 0.1 GB in Kafka, tables and checkpoint together.
LEAST_DISK, GOOD_DISK = 1 * GIB, 5 * GIB
# Spark's driver may take 1 GiB, its Python workers 0.3 GiB each; the embedded services are 0.5 GiB at rest.
LEAST_MEMORY, GOOD_MEMORY = 1 * GIB, 3 * GIB


class State(StrEnum):
    """`warn`: works, or will, but look at it. `fail`: a run will not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `next`: the command to type, empty if there is nothing to do."""

    name: str
    state: State
    detail: str
    next: str = ""


def check_all(settings: Settings, *, deep: bool) -> Iterator[Check]:
    """All checks, each as soon as it is done. `deep` starts a Spark session too (10 s or more)."""
    yield _python()
    yield _guarded("java", lambda: _java(settings))
    yield _packages()
    yield _disk(settings.state_dir)
    yield _memory()
    yield _guarded("domain", lambda: _domain(settings.repo))
    yield _guarded("pii key", lambda: _pii_key(settings))
    yield from _services(settings)
    if deep:
        yield _spark()


def _guarded(name: str, look: Callable[[], Check]) -> Check:
    """The check, or what it raised."""
    try:
        return look()
    except PipelineError as error:
        return Check(name, State.FAIL, error.message, error.hint or "")


def _python() -> Check:
    seen = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == PYTHON:
        return Check("python", State.OK, f"{seen} at {sys.executable}")
    wanted = ".".join(map(str, PYTHON))
    return Check("python", State.FAIL, f"{seen}, not {wanted}", f"make run PYTHON=python{wanted}")


def _java(settings: Settings) -> Check:
    """Raises PipelineError `no_java`."""
    spark = find_jre(SPARK_JAVA_VERSION)
    detail = f"Java {spark.version} from {spark.source}"
    if "registry" in settings.missing_services:
        registry = find_jre(REGISTRY_JAVA_VERSION)
        if registry != spark:
            detail += f" for Spark, Java {registry.version} from {registry.source} for the registry"
    return Check("java", State.OK, detail)


def _packages() -> Check:
    versions = {name: _version(name) for name in PACKAGES}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        return Check("packages", State.FAIL, f"not installed: {', '.join(missing)}", "pip install -e .")
    return Check("packages", State.OK, ", ".join(f"{name} {version}" for name, version in versions.items()))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _disk(state_dir: Path) -> Check:
    folder = state_dir.absolute()
    folder = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        return Check("disk", State.FAIL, f"{folder} cannot be written to", "name another folder with --state-dir")
    free = shutil.disk_usage(folder).free
    return _amount("disk", free, LEAST_DISK, GOOD_DISK, f"free at {folder}", "name a larger disk with --state-dir")


def _memory() -> Check:
    free = psutil.virtual_memory().available
    return _amount(
        "memory", free, LEAST_MEMORY, GOOD_MEMORY, "available", "close something, or run with --parallelism 1"
    )


def _amount(name: str, seen: int, least: int, good: int, what: str, remedy: str) -> Check:
    state = State.OK if seen >= good else State.WARN if seen >= least else State.FAIL
    wanted = "" if state is State.OK else f"; {good / GIB:.0f} GiB are comfortable, {least / GIB:.0f} GiB the least"
    return Check(name, state, f"{seen / GIB:.1f} GiB {what}{wanted}", "" if state is State.OK else remedy)


def _domain(repo: Path) -> Check:
    """Raises DomainError."""
    domain = load_domain(repo)
    if domain.reference and not domain.reference.file.is_file():
        return Check("domain", State.FAIL, f"{domain.reference.file} is missing", "correct `reference` in domain.yaml")
    counts = f"{len(domain.schemas)} schemas, {len(domain.features)} feature views"
    return Check("domain", State.OK, f"{domain.name} in {repo}: topic {domain.topic}, {counts}")


def _pii_key(settings: Settings) -> Check:
    """Raises ConfigError for a key that is missing with a Kafka of one's own, or too short."""
    path = settings.key_file
    if KEY_VARIABLE in os.environ:
        load_key(None)
        return Check("pii key", State.OK, f"from {KEY_VARIABLE}")
    if not path.exists() and "kafka" in settings.missing_services:
        return Check("pii key", State.OK, f"the first run makes one at {path}")
    if path.exists() and not os.access(path, os.R_OK):
        return Check("pii key", State.FAIL, f"{path} cannot be read by this user", f"ls -l {path}")
    load_key(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return Check("pii key", State.FAIL, f"{path} is open to other users ({mode:04o})", f"chmod 600 {path}")
    return Check("pii key", State.OK, f"{path} ({mode:04o})")


def _services(settings: Settings) -> Iterator[Check]:
    """A configured address must answer; an embedded service may as well be stopped: a run starts it."""
    try:
        found = {service.name: service for service in Services(settings.state_dir).status()}
    except PipelineError as error:  # the record of what runs is damaged
        yield Check("services", State.FAIL, error.message, error.hint or "")
        return
    except OSError as error:
        seen = f"{settings.state_dir} cannot be read: {error.strerror}"
        yield Check("services", State.FAIL, seen, "name another folder with --state-dir")
        return
    reachable = with_running_services(settings, found.values())
    asked: tuple[tuple[str, str, Callable[[Settings], Check]], ...] = (
        ("kafka", "kafka", _kafka),
        ("registry", "registry", _registry),
        ("valkey", "redis", _redis),
    )
    for service, label, ask in asked:
        idle = _idle(label, found[service]) if service in settings.missing_services else None
        yield idle or _guarded(label, partial(ask, reachable))


def _idle(label: str, service: ServiceStatus) -> Check | None:
    """What is to say of an embedded service that nobody uses; None if it can be asked."""
    if service.state == "stopped":
        return Check(label, State.OK, "embedded, not running: a run starts it")
    if service.state == "not_ready":
        return Check(label, State.WARN, f"embedded, process {service.pid} does not answer", f"tail {service.log}")
    if service.state == "orphaned":
        seen = f"embedded, process {service.pid} is left of a command that was killed; a run takes it over"
        return Check(label, State.WARN, seen, "python -m beam_pipelines services down")
    return None


def _kafka(settings: Settings) -> Check:
    """Raises PipelineError: Kafka does not answer, or the domain that names the topic does not load."""
    topic, where = settings.topic or load_domain(settings.repo).topic, _where(settings, "bootstrap_servers")
    partitions = ask_kafka(settings, topic).partitions
    if partitions:
        return Check("kafka", State.OK, f"{where} answers; topic {topic} has {len(partitions)} partitions")
    # A run fills the embedded Kafka, and only that one, by itself.
    embedded = settings.sources["bootstrap_servers"] == EMBEDDED
    produce = "" if embedded else "python -m beam_pipelines produce --events 100000"
    return Check("kafka", State.OK if embedded else State.WARN, f"{where} answers; no topic {topic} yet", produce)


def _registry(settings: Settings) -> Check:
    ask_registry(settings.registry_url)
    return Check("registry", State.OK, f"{_where(settings, 'registry_url')} answers")


def _redis(settings: Settings) -> Check:
    ask_redis(settings.redis_url)
    return Check("redis", State.OK, f"{_where(settings, 'redis_url')} answers")


def _where(settings: Settings, setting: str) -> str:
    """An address, and where it is from."""
    return f"{without_credentials(getattr(settings, setting))} ({settings.sources[setting]})"


def _spark() -> Check:
    """A session, and a job that starts a Python worker."""
    from spark_jobs.session import spark_session

    try:
        session = spark_session(cores=1, name="doctor")
        try:
            session.sparkContext.parallelize([0], 1).count()
            return Check("spark", State.OK, f"Spark {session.version} ran a job in a Python worker")
        finally:
            session.stop()
    except Exception as error:  # of the launcher, py4j or Spark: they share no base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Check("spark", State.FAIL, reason, "java -version; unset SPARK_HOME PYSPARK_SUBMIT_ARGS")
