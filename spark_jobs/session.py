"""Spark sessions as the project uses them: on loopback, quiet, with Python workers that start warm."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from common.services.jre import java_home

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PROJECT_ROOT = Path(__file__).resolve().parent.parent
LOG_CONFIG = Path(__file__).resolve().parent / "log4j2.properties"


def spark_session(
    *, master: str | None = None, cores: int | None = None, conf: dict[str, str] | None = None, name: str = "beam"
) -> SparkSession:
    """The active session, or a new one: `local[cores]` without a master. `conf` adds to or replaces the defaults."""
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()
    if active is not None:
        return active
    os.environ["JAVA_HOME"] = str(java_home())
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    paths = [str(PROJECT_ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(p for p in paths if p))
    settings = {
        "spark.driver.memory": "1g",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        # A lost shuffle output fails the epoch instead of being recomputed: see SparkTransport.
        "spark.stage.maxConsecutiveAttempts": "1",
        "spark.speculation": "false",
        "spark.python.daemon.module": "spark_jobs.python_daemon",
        "spark.shuffle.compress": "false",  # parcels hold Arrow buffers: on one machine LZ4 costs more than it saves
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile=file:{LOG_CONFIG}",
        **(conf or {}),
    }
    builder = SparkSession.builder.appName(name).master(master or f"local[{cores or os.cpu_count() or 2}]")
    for key, value in settings.items():
        builder = builder.config(key, value)
    with _sigint_kept():
        return builder.getOrCreate()


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
