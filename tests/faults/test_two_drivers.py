"""Two drivers on one checkpoint: the older one is told so and stops, and nothing is published twice."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults import kills
from tests.faults.conftest import Note
from tests.faults.differences import differences
from tests.faults.killed_runs import SLICE, Outcome, log, started
from tests.faults.kills import AFTER_STATE, BEFORE_MANIFEST, BEFORE_PUBLISH, SLEEPS, Kill

pytestmark = [pytest.mark.fault, pytest.mark.slow]

EPOCHS = 6
JOB = (EPOCHS * SLICE, SLICE, "--transport=local")


def wait_until_asleep(root: Path) -> int:
    """-> the process id of the driver that came to its point."""
    deadline = time.monotonic() + 60
    while not kills.done(root):
        assert time.monotonic() < deadline, log(root)
        time.sleep(0.01)
    return int((root / "driver.pid").read_text())


@pytest.mark.parametrize(
    "point",
    [
        BEFORE_MANIFEST,
        pytest.param(AFTER_STATE, marks=pytest.mark.matrix),
        pytest.param(BEFORE_PUBLISH, marks=pytest.mark.matrix),
    ],
)
def test_a_driver_that_slept_is_fenced(tmp_path: Path, note: Note, point: str) -> None:
    """While it slept another one took over. Each has other rows to publish: slices differ from attempt to attempt."""
    kills.plan(tmp_path, [Kill(point, SLEEPS, 2)])
    with started(tmp_path, *JOB) as older:
        sleeper = wait_until_asleep(tmp_path)
        with started(tmp_path, *JOB) as newer:
            assert newer.wait(60) == 0, log(tmp_path)
        assert differences(tmp_path, EPOCHS * SLICE) == 0
        os.kill(sleeper, signal.SIGCONT)
        assert older.wait(60) != 0
    assert "FencedError: " in log(tmp_path)
    assert "next: Only one job may run on a checkpoint" in log(tmp_path)
    note("local transport, two drivers", Outcome(kills.done(tmp_path), 2, differences(tmp_path, EPOCHS * SLICE)))
    assert differences(tmp_path, EPOCHS * SLICE) == 0


@pytest.mark.matrix
def test_of_two_drivers_at_once_one_goes_on(tmp_path: Path) -> None:
    kills.plan(tmp_path, [])
    with started(tmp_path, *JOB) as one, started(tmp_path, *JOB) as other:
        codes = sorted([one.wait(60), other.wait(60)])
    # The second may also have started when the first was through.
    assert codes[0] == 0, log(tmp_path)
    assert codes[1] == 0 or "FencedError: " in log(tmp_path), log(tmp_path)
    assert differences(tmp_path, EPOCHS * SLICE) == 0
