"""Workers that run out of memory: the error says where that was and what to do."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.faults.killed_runs import ROOT

pytestmark = [pytest.mark.fault, pytest.mark.slow]


def error_of(how: str) -> str:
    command = [sys.executable, "-m", "tests.faults.hungry_job", how]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True).stdout


def test_a_worker_that_is_killed_for_its_memory() -> None:
    """The kernel's doing: the process says nothing any more, Spark tells the task."""
    error = error_of("kill")
    assert error.startswith("worker_lost: Epoch 0 lost the worker of task ")
    assert re.search(r"in level 2, which runs first group(, [^:]+)?: Lost task", error)
    assert "more --tasks" in error


def test_a_worker_at_its_limit() -> None:
    error = error_of("limit")
    assert error.startswith("step_failed: RuntimeError: MemoryError [while running 'eat']")
    assert "in epoch 0, task " in error
    assert "bundle of 'first group'" in error
    assert "next: more --tasks" in error
