"""One process dies by SIGKILL at an exact point of an epoch; the results are those of plain arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import Note
from tests.faults.killed_runs import LOCAL_SPARK, SLICE, log, run_killed, run_one_after_the_other
from tests.faults.kills import (
    BEFORE_STATE,
    DAEMON,
    DRIVER,
    DRIVER_POINTS,
    JVM,
    RAISES,
    SELF,
    SPARK_POINTS,
    TASK_POINTS,
    Kill,
    attempts,
)

pytestmark = [pytest.mark.fault, pytest.mark.slow]


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
@pytest.mark.parametrize("victim", [SELF, RAISES])
def test_tasks_that_spark_tries_again(tmp_path: Path, note: Note, victim: str) -> None:
    """`local[cores,attempts]`: another attempt within the epoch. One that raised runs again in the same worker, which
    still has the state that the lost attempt changed."""
    flags = [flag for flag in LOCAL_SPARK if not flag.startswith("--tasks")]
    outcome = run_one_after_the_other(tmp_path, SPARK_POINTS, victim, *flags, "--spark_master=local[2,4]")
    assert outcome.runs == 1
    assert "is run again" not in log(tmp_path)
    assert sum(count > 1 for count in attempts(tmp_path).values()) >= len(SPARK_POINTS)
    note("Spark, local[2,4]", outcome)


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
@pytest.mark.parametrize("victim", [DRIVER, JVM])
def test_the_driver_or_its_jvm_while_tasks_run(tmp_path: Path, note: Note, victim: str) -> None:
    outcome = run_one_after_the_other(tmp_path, SPARK_POINTS, victim, *LOCAL_SPARK)
    assert outcome.runs == len(SPARK_POINTS) + 1
    note("Spark, local", outcome)


@pytest.mark.matrix
def test_the_daemon_that_forks_workers(tmp_path: Path, note: Note) -> None:
    """Its workers live on; when they die as well, Spark starts another daemon."""
    plan = [Kill(BEFORE_STATE, DAEMON, 1), Kill(BEFORE_STATE, SELF, 2), Kill(BEFORE_STATE, SELF, 3)]
    plan.append(Kill(BEFORE_STATE, DAEMON, 4))
    outcome = run_killed(tmp_path, plan, 9 * SLICE, SLICE, *LOCAL_SPARK)
    assert (outcome.kills, outcome.runs, outcome.differences) == (plan, 1, 0), log(tmp_path)
    note("Spark, local", outcome)


@pytest.mark.matrix
@pytest.mark.timeout(600)
def test_the_driver_of_spark_at_its_own_points(tmp_path: Path, note: Note) -> None:
    note("Spark, local", run_one_after_the_other(tmp_path, DRIVER_POINTS, SELF, *LOCAL_SPARK))
