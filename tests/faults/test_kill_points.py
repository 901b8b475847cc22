"""One process dies by SIGKILL at an exact point of an epoch; the results are those of plain arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import Note
from tests.faults.killed_runs import LOCAL_SPARK, Outcome, run_killed
from tests.faults.kills import DAEMON, DRIVER, DRIVER_POINTS, JVM, SELF, SPARK_POINTS, TASK_POINTS, Kill

pytestmark = [pytest.mark.fault, pytest.mark.slow]

SLICE = 100


def run_one_after_the_other(root: Path, points: tuple[str, ...], victim: str, *flags: str) -> Outcome:
    """One job, killed at each point in an epoch of its own."""
    plan = [Kill(point, victim, 1 + epoch) for epoch, point in enumerate(points)]
    outcome = run_killed(root, plan, (len(plan) + 3) * SLICE, SLICE, *flags)
    assert outcome.kills == plan
    assert outcome.differences == 0
    return outcome


def test_the_driver_at_every_point(tmp_path: Path, note: Note) -> None:
    points = (*TASK_POINTS, *DRIVER_POINTS)
    outcome = run_one_after_the_other(tmp_path, points, SELF, "--transport=local")
    assert outcome.runs == len(points) + 1
    note("local transport", outcome)


def test_a_python_worker_at_every_point(tmp_path: Path, note: Note) -> None:
    """The driver runs the epoch again: for its user nothing happened."""
    outcome = run_one_after_the_other(tmp_path, SPARK_POINTS, SELF, *LOCAL_SPARK)
    assert outcome.runs == 1
    note("Spark, local", outcome)


@pytest.mark.matrix
@pytest.mark.parametrize("point", [*TASK_POINTS, *DRIVER_POINTS])
@pytest.mark.parametrize("epoch", [0, 1, 4])
def test_the_driver_at_one_point(tmp_path: Path, note: Note, point: str, epoch: int) -> None:
    """Also in the first epoch, which has no manifest before it."""
    outcome = run_killed(tmp_path, [Kill(point, SELF, epoch)], 8 * SLICE, SLICE, "--transport=local")
    assert (len(outcome.kills), outcome.runs, outcome.differences) == (1, 2, 0)
    note(f"local transport, epoch {epoch}", outcome)


@pytest.mark.matrix
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", [DRIVER, JVM, DAEMON])
def test_others_than_the_worker(tmp_path: Path, note: Note, victim: str) -> None:
    """A driver or JVM that dies is started again; a daemon that forks workers is not missed."""
    outcome = run_one_after_the_other(tmp_path, SPARK_POINTS, victim, *LOCAL_SPARK)
    assert outcome.runs == (1 if victim == DAEMON else len(SPARK_POINTS) + 1)
    note("Spark, local", outcome)


@pytest.mark.matrix
@pytest.mark.timeout(600)
def test_the_driver_of_spark_at_its_own_points(tmp_path: Path, note: Note) -> None:
    note("Spark, local", run_one_after_the_other(tmp_path, DRIVER_POINTS, SELF, *LOCAL_SPARK))
