"""Elements of classes of the user's script, which no module of a worker has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

JOB = Path(__file__).with_name("main_classes_job.py")


@pytest.mark.slow
@pytest.mark.parametrize("reuse", ["true", "false"])
def test_elements_and_warnings_of_the_scripts_own_classes(reuse: str) -> None:
    """Without reuse each task has a new process, which reads what another one sent."""
    flags = ["--tasks=2", f"--spark_conf=spark.python.worker.reuse={reuse}"]
    done = subprocess.run([sys.executable, str(JOB), *flags], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stderr.splitlines() if line.startswith("(")]
    assert "Stale: an old player" in done.stderr
    assert sorted(printed) == ["('BLUE', 23)", "('RED', 13)"]
