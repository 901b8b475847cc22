"""Elements of classes of the user's script, which no module of a worker has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

JOB = Path(__file__).with_name("main_classes_job.py")


@pytest.mark.slow
def test_elements_of_the_scripts_own_classes() -> None:
    done = subprocess.run([sys.executable, str(JOB), "--tasks=2"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stderr.splitlines() if line.startswith("(")]
    assert sorted(printed) == ["('BLUE', 23)", "('RED', 13)"]
