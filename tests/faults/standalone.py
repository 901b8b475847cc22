"""A Spark standalone cluster on loopback, from the pip package: a master and two workers that know no project."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyspark

from common.services.jre import java_home

SPARK_CLASS = Path(pyspark.__file__).parent / "bin" / "spark-class"
WORKERS = 2
_OFFER = ("--cores", "1", "--memory", "1g")  # of each worker
_START_S = 60
# The tests' environment has the project installed for development: workers of the cluster must not find it.
HIDE_PROJECT = """\
import sys
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
"""


class Standalone:
    """`master`: its URL."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[psutil.Popen] = []
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_"))},
            "JAVA_HOME": str(java_home()),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_DAEMON_MEMORY": "256m",
            "PYTHONPATH": str(folder / "hide"),
        }

    def start(self) -> None:
        (self.folder / "hide").mkdir(parents=True)
        (self.folder / "hide/sitecustomize.py").write_text(HIDE_PROJECT)
        self._spawn("master.Master", "master", "--port", "0")
        self.master = self._wait("master", r"Starting Spark master at (spark://\S+)")
        names = [f"worker-{number}" for number in range(WORKERS)]
        for name in names:
            self._spawn("worker.Worker", name, *_OFFER, "--work-dir", str(self.folder / name), self.master)
        for name in names:
            self._wait(name, "registered with master (\\S+)")

    def stop(self) -> None:
        """SIGTERM, then SIGKILL, to all processes and what they started: executors and their Python workers."""
        family = [p for process in self._processes if process.is_running() for p in process.children(recursive=True)]
        for process in (*self._processes, *family):
            _signal(process, "terminate")
        _, alive = psutil.wait_procs([*self._processes, *family], timeout=10)
        for process in alive:
            _signal(process, "kill")
        psutil.wait_procs(alive, timeout=10)

    def logs(self) -> str:
        return "\n".join(f"--- {path}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.rglob("*.log")))

    def _spawn(self, class_name: str, name: str, *arguments: str) -> None:
        command = [str(SPARK_CLASS), f"org.apache.spark.deploy.{class_name}", "--host", "127.0.0.1"]
        with open(self.folder / f"{name}.log", "ab") as out:
            process = psutil.Popen(
                [*command, "--webui-port", "0", *arguments],
                cwd=self.folder,
                env=self._environment,
                stdout=out,
                stderr=out,
            )
        self._processes.append(process)

    def _wait(self, name: str, ready: str) -> str:
        """-> what `ready` finds in the process's log."""
        log, deadline = self.folder / f"{name}.log", time.monotonic() + _START_S
        while not (found := re.search(ready, log.read_text())):
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        return found[1]


def _signal(process: psutil.Process, name: str) -> None:
    try:
        getattr(process, name)()
    except psutil.NoSuchProcess:
        return


@contextmanager
def standalone_cluster(folder: Path) -> Iterator[Standalone]:
    cluster = Standalone(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
