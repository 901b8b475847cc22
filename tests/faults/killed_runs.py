"""Runs the killing job until it ends by itself, and says what was killed and what is wrong with the results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults import kills
from tests.faults.differences import differences
from tests.faults.kills import Kill

ROOT = Path(__file__).resolve().parents[2]
SLICE = 100
LOCAL_SPARK = (
    "--transport=spark",
    "--tasks=2",
    "--driver_epochs_below_ms=0",  # the points of tasks are in workers
    "--spark_conf=spark.python.daemon.module=tests.faults.killing_daemon",
)


@dataclass(frozen=True)
class Outcome:
    """`differences`: rows lost, doubled or wrong. `runs`: how often the job had to be started."""

    kills: list[Kill]
    runs: int
    differences: int


def run_killed(root: Path, plan: list[Kill], available: int, slice_size: int, *flags: str) -> Outcome:
    """Fails the test if anything but a kill ended a run."""
    kills.plan(root, plan)
    with started(root, available, slice_size, *flags) as job:
        code = job.wait(590)
    assert code == 0, f"exit code {code}\n{log(root)}"
    return Outcome(kills.done(root), len((root / "runs").read_text().split()), differences(root, available))


@contextmanager
def started(root: Path, available: int, slice_size: int, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """The killing job at work on `root`; its output goes to the log."""
    command = [sys.executable, "-m", "tests.faults.killing_job", str(root), str(available), str(slice_size), *flags]
    with open(root / "log", "ab") as out:
        job = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, kills.ROOT_VARIABLE: str(root)},  # here, so that its children are known by it too
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield job
    finally:
        _end_group(job.pid)


def run_one_after_the_other(root: Path, points: tuple[str, ...], victim: str, *flags: str) -> Outcome:
    """One job, struck at each point in an epoch of its own. All kills happen, and nothing is wrong afterwards."""
    planned = [Kill(point, victim, 1 + epoch) for epoch, point in enumerate(points)]
    outcome = run_killed(root, planned, (len(planned) + 3) * SLICE, SLICE, *flags)
    assert outcome.kills == planned, log(root)
    assert outcome.differences == 0, log(root)
    return outcome


def _end_group(group: int) -> None:
    """What a failed test left running. The JVM of a killed driver ends by itself, and may be at work until then."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def log(root: Path) -> str:
    return (root / "log").read_text(errors="replace")[-4000:]
