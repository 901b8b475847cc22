"""SIGKILL of a streaming job's whole process group, at points spread over its epochs: the results stay exact."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.conftest import Note
from tests.faults.differences import differences
from tests.faults.killed_runs import Outcome
from tests.faults.kills import Kill

ROOT = Path(__file__).resolve().parents[2]


def start(root: Path, per_source: int, slice_size: int, transport: str, *flags: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.faults.counting_job", str(root), str(per_source), str(slice_size)]
    command += [f"--transport={transport}", *flags]
    with open(root / "log", "ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def kill_after_epoch(job: subprocess.Popen[bytes], root: Path, epoch: int, delay_s: float) -> None:
    """SIGKILL to driver, JVM and Python workers, `delay_s` after the epoch's manifest appeared."""
    deadline = time.monotonic() + 90
    while not (root / f"checkpoint/epochs/{epoch:09d}.json").exists():
        assert job.poll() is None, (root / "log").read_text()[-2000:]
        assert time.monotonic() < deadline, f"epoch {epoch} was not committed in time"
        time.sleep(0.002)
    time.sleep(delay_s)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize(
    ("transport", "per_source", "slice_size"), [("local", 9000, 150), ("spark", 9000, 600)], ids=["local", "spark"]
)
def test_three_kills_leave_exact_results(
    tmp_path: Path, note: Note, transport: str, per_source: int, slice_size: int
) -> None:
    epochs, kills = per_source // slice_size, []
    for round_number, delay_s in enumerate((0.0, 0.03, 0.11), start=1):
        job = start(tmp_path, per_source, slice_size, transport)
        kill_after_epoch(job, tmp_path, round_number * epochs // 5, delay_s)
        kills.append(Kill(f"{delay_s} s after a manifest", "process group", round_number * epochs // 5))
    final = start(tmp_path, per_source, slice_size, transport)
    assert final.wait(120) == 0, (tmp_path / "log").read_text()[-2000:]
    note(f"{transport} transport", Outcome(kills, len(kills) + 1, differences(tmp_path, per_source)))
    assert differences(tmp_path, per_source) == 0
