"""Spark sessions as the project uses them: quiet, with Python workers that start warm."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ConfigError
from common.services.jre import java_home
from spark_jobs.shipping import DAEMON, PROJECT_ROOT, is_local, ship_own_packages

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_log = logging.getLogger(__name__)

LOG_CONFIG = Path(__file__).resolve().parent / "log4j2.properties"
_MASTER = re.compile(r"local(\[[^\]]+\])?|local-cluster\[[^\]]+\]|spark://.+|yarn|k8s://.+")
_CONNECT_WITHIN_S = 5.0
_LOOPBACK = frozenset(["localhost", "[::1]"])


def spark_session(
    *, master: str | None = None, cores: int | None = None, conf: dict[str, str] | None = None, name: str = "beam"
) -> SparkSession:
    """The active session, or a new one: `local[cores]` without a master. `conf` adds to or replaces the defaults.

    On a cluster the workers get the project's own packages, and need Python with Beam and PySpark at the driver's path:
    else set `spark.pyspark.python` (or $PYSPARK_PYTHON). A driver binds to loopback for masters on loopback only; its
    address in front of a real cluster is Spark's choice, or `spark.driver.host`.
    """
    from pyspark.sql import SparkSession

    active = active_session()
    if active is not None:
        return active
    master, conf = master or f"local[{cores or os.cpu_count() or 2}]", conf or {}
    _require_master(master)
    py4j = logging.getLogger("py4j")
    if py4j.level == logging.NOTSET:  # at INFO it tells of its connections
        py4j.setLevel(logging.WARNING)
    os.environ["JAVA_HOME"] = str(java_home())
    os.environ.setdefault("PYSPARK_PYTHON", conf.get("spark.pyspark.python", sys.executable))
    paths = [str(PROJECT_ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(p for p in paths if p))
    settings = {
        "spark.driver.memory": "1g",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        # Lost results of a level are not worth computing again: the epoch is (see docs/adr/0006).
        "spark.stage.maxConsecutiveAttempts": "1",
        "spark.python.daemon.module": "spark_jobs.python_daemon" if is_local(master) else DAEMON.stem,
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile=file:{LOG_CONFIG}",
    }
    if is_local(master):  # what is imported from beside the driver's script is imported in its workers, too
        settings["spark.executorEnv.PYTHONPATH"] = os.pathsep.join(sys.path)
    if is_on_loopback(master):
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        settings |= {
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
            "spark.shuffle.compress": "false",  # parcels hold Arrow buffers: here LZ4 costs more than it saves
        }
    builder = SparkSession.builder.appName(name).master(master)
    for key, value in {**settings, **conf}.items():
        builder = builder.config(key, value)
    with _sigint_kept():
        session = builder.getOrCreate()
    if not is_local(master):
        ship_own_packages(session.sparkContext)
    return session


def active_session() -> SparkSession | None:
    """The session that this process has, if any, also if another thread made it."""
    from pyspark.errors import PySparkRuntimeError
    from pyspark.sql import SparkSession

    try:
        return SparkSession.active()
    except PySparkRuntimeError:
        return None


def require_session(session: SparkSession, master: str | None, conf: dict[str, str]) -> None:
    """Of a session that is there already: raises ConfigError if it is on another master, warns of other settings."""
    here = session.sparkContext.master
    if master not in (None, here):
        raise ConfigError(
            f"--spark_master={master}, but this process has a Spark session on {here}",
            code="other_session",
            hint="stop that session first (SparkSession.getActiveSession().stop()), or leave --spark_master out",
        )
    settings = dict(session.sparkContext.getConf().getAll())
    if others := sorted(key for key, value in conf.items() if settings.get(key) != value):
        _log.warning(
            "--spark_conf of %s has no effect: this process has a Spark session, which began without it.",
            ", ".join(others),
        )


def is_on_loopback(master: str) -> bool:
    """Whether all that a Spark master URL names is on this machine's loopback interface."""
    if not master.startswith("spark://"):
        return master.startswith("local")  # in this process, or in a local cluster
    hosts = [address.rpartition(":")[0] for address in master.removeprefix("spark://").split(",")]
    return all(host in _LOOPBACK or host.startswith("127.") for host in hosts)


def _require_master(master: str) -> None:
    """Refuses what Spark would take a minute and pages of a log to refuse, without naming the address."""
    if not _MASTER.fullmatch(master):
        raise ConfigError(
            f"--spark_master={master} is no Spark master",
            code="bad_master",
            hint="local[4], spark://host:7077, yarn or k8s://https://host:443",
        )
    if not master.startswith("spark://"):
        return
    reasons = []
    for address in master.removeprefix("spark://").split(","):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_WITHIN_S).close()
        except (OSError, ValueError) as error:
            reasons.append(f"{address}: {error}")
        else:
            return
    raise ConfigError(
        f"--spark_master={master} cannot be reached ({'; '.join(reasons)})",
        code="bad_master",
        hint="Is the master running, and is this the URL that its page and its log show?",
    )


@contextmanager
def _sigint_kept() -> Iterator[None]:
    """A new SparkContext takes SIGINT for itself: its handler cancels all jobs, so that no epoch could be finished."""
    if threading.current_thread() is not threading.main_thread():  # there it takes nothing
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
