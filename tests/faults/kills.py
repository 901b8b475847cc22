"""SIGKILL at a named point of an epoch: what is killed, where and when, and who remembers that it was done.

A plan lies in a folder as one file per kill. Whoever comes to the point first, in the planned epoch or later, takes the
file away and kills: each kill happens once, however many processes come by and however often the job is started again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT_VARIABLE = "KILLS_ROOT"

# Points that tasks come to: in a Python worker, or in the driver on the local transport.
BEFORE_READ, AFTER_READ = "before source read", "after source read"
BEFORE_STATE, AFTER_STATE = "before state write", "after state write"
AFTER_STAGED = "after staged file"
AFTER_LEVEL = "after a level's work"
TASK_POINTS = (BEFORE_READ, AFTER_READ, BEFORE_STATE, AFTER_STATE, AFTER_STAGED, AFTER_LEVEL)
# Inside Spark's own job: the last task has given away its result, the driver has not got it.
AFTER_RESULT = "after last task's result"
SPARK_POINTS = (*TASK_POINTS, AFTER_RESULT)
# A task of the last level that starts when others of it are done. Needs more tasks than cores.
LATE_TASK = "late task of the last level"
# Points that the driver comes to.
BEFORE_MANIFEST, LINKED_MANIFEST, AFTER_MANIFEST = "before manifest", "manifest linked, not synced", "after manifest"
BEFORE_PUBLISH, DURING_PUBLISH, AFTER_PUBLISH = "before publish", "between two publishers", "after publish"
DRIVER_POINTS = (BEFORE_MANIFEST, LINKED_MANIFEST, AFTER_MANIFEST, BEFORE_PUBLISH, DURING_PUBLISH, AFTER_PUBLISH)

# Victims. "self" is the process that comes to the point.
SELF, DRIVER, DAEMON, JVM, STANDALONE_WORKER = "self", "driver", "python daemon", "jvm", "standalone worker"
# Not killed, but as good as: the attempt raises, or it stands still until another one overtakes it.
RAISES, STALLS = "raises", "stalls"
SLEEPS = "sleeps"  # SIGSTOP: until the test sends SIGCONT
STALL_S = 10.0


@dataclass(frozen=True)
class Kill:
    point: str
    victim: str
    epoch: int  # the first one in which it may happen


def plan(root: Path, kills: list[Kill]) -> None:
    for folder in ("kills/armed", "kills/done"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, kill in enumerate(kills):
        (root / f"kills/armed/{number:03d}.json").write_text(json.dumps(asdict(kill)))


def done(root: Path) -> list[Kill]:
    return [Kill(**json.loads(path.read_text())) for path in sorted((root / "kills/done").iterdir())]


def reached(point: str, epoch: int) -> None:
    """Kills what the first fitting plan says, and waits until that is dead."""
    root = Path(os.environ[ROOT_VARIABLE])
    for path in sorted((root / "kills/armed").iterdir()):
        try:
            kill = Kill(**json.loads(path.read_text()))
            if kill.point != point or epoch < kill.epoch:
                continue
            if (victim := _find(kill.victim, root)) is None:
                continue
            path.rename(root / "kills/done" / path.name)
        except FileNotFoundError:  # another process was first
            continue
        if kill.victim == RAISES:
            raise OSError("a passing trouble")
        if kill.victim == STALLS:
            time.sleep(STALL_S)
            return
        if kill.victim == SLEEPS:
            os.kill(os.getpid(), signal.SIGSTOP)
            return
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait(10)
        return


def attempted(epoch: int, level: int, part: int) -> None:
    """Notes one attempt of a task on Spark."""
    with open(Path(os.environ[ROOT_VARIABLE]) / "attempts", "a") as file:
        print(epoch, level, part, file=file)


def attempts(root: Path) -> Counter[tuple[int, ...]]:
    """(epoch, level, partition) -> attempts that started."""
    return Counter(tuple(map(int, line.split())) for line in (root / "attempts").read_text().splitlines())


def _find(victim: str, root: Path) -> psutil.Process | None:
    """The process to kill, None if it is not there. Never one that was not started for this job or its cluster."""
    here = psutil.Process()
    if victim == DRIVER:
        return _mine(psutil.Process(int((root / "driver.pid").read_text())), root, "killing_job")
    if victim == DAEMON:
        return _mine(here.parents()[0], root, "killing_daemon")  # init is the parent of a worker that lost its daemon
    if victim in (JVM, STANDALONE_WORKER):
        machines = [parent for parent in here.parents() if parent.name() == "java"] or list(_executors(root))
        if machines and victim == STANDALONE_WORKER:
            return _is(machines[0].parents()[0], "org.apache.spark.deploy.worker.Worker")
        return _mine(machines[0], root, "org.apache.spark") if machines else None
    return here


def _mine(process: psutil.Process, root: Path, program: str) -> psutil.Process | None:
    if process.pid == 1:  # init, whose environment may not be read
        return None
    return _is(process, program) if process.environ().get(ROOT_VARIABLE) == str(root) else None


def _is(process: psutil.Process, program: str) -> psutil.Process | None:
    return process if process.pid > 1 and program in " ".join(process.cmdline()) else None


def _executors(root: Path) -> Any:
    """Executor JVMs of this job on a cluster: only they have the variable in their environment, set by Spark."""
    for process in psutil.process_iter(["name"]):
        if process.info["name"] != "java":
            continue
        with contextlib.suppress(psutil.NoSuchProcess):  # it ends while it is looked at
            is_ours = process.environ().get(ROOT_VARIABLE) == str(root)
            if is_ours and "CoarseGrainedExecutorBackend" in " ".join(process.cmdline()):
                yield process
