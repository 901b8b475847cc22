"""Processes are stopped for certain, and only the right ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from common.services.process import ProcessId, spawn

SLEEP = [sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(60)"]
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def wait_for(log: Path) -> str:
    deadline_s = time.monotonic() + 60
    while not (text := log.read_text()).endswith("\n"):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    return text


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"], start_new_session=True) as child:
        yield child
        child.kill()


def test_a_recycled_pid_is_not_ours_and_not_killed(sleeper: subprocess.Popen[bytes]) -> None:
    now = ProcessId.of(sleeper.pid)
    stale = replace(now, created_at_s=now.created_at_s - 3)
    assert now.is_running
    assert not stale.is_running
    stale.stop(grace_s=0.1)
    assert sleeper.poll() is None


def test_stop_ends_a_process_that_listens_to_sigterm(sleeper: subprocess.Popen[bytes]) -> None:
    process = ProcessId.of(sleeper.pid)
    process.stop(grace_s=10)
    assert not process.is_running
    process.stop(grace_s=10)  # and does nothing the second time


def test_stop_kills_a_group_that_does_not_listen(tmp_path: Path) -> None:
    process, child = spawn([sys.executable, "-S", "-c", STUBBORN], cwd=tmp_path, log=tmp_path / "log")
    grandchild = ProcessId.of(int(wait_for(tmp_path / "log")))
    process.stop(grace_s=0.1)
    child.wait(5)
    assert not process.is_running
    psutil.wait_procs([p for p in [grandchild.find()] if p], timeout=5)
    assert not grandchild.is_running


def test_a_zombie_has_ended(tmp_path: Path) -> None:
    process, child = spawn(["true"], cwd=tmp_path, log=tmp_path / "log")
    deadline_s = time.monotonic() + 60
    while process.is_running:  # never waited for by us: it stays a zombie
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    process.stop(grace_s=1)
    child.wait(5)


def test_a_service_sees_no_secrets_and_keeps_its_last_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINES_PII_KEY", "s3cr3t")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Xmx1g")
    for _ in range(2):
        _, child = spawn(["sh", "-c", "env; echo end"], cwd=tmp_path, log=tmp_path / "log")
        assert child.wait(5) == 0
    for log in (tmp_path / "log", tmp_path / "log.1"):
        assert log.read_text().endswith("end\n")
        assert "s3cr3t" not in log.read_text()
        assert "JAVA_TOOL_OPTIONS" not in log.read_text()


def test_a_spawned_process_has_its_own_session(tmp_path: Path) -> None:
    process, child = spawn(SLEEP, cwd=tmp_path, log=tmp_path / "log")
    try:
        wait_for(tmp_path / "log")
        assert os.getsid(process.pid) == process.pid != os.getsid(0)
    finally:
        process.stop(grace_s=5)
        child.wait(5)
