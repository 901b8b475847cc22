"""Ctrl-C and SIGTERM on the real command, with real services and Spark. Signals go to the group, as a terminal's do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.services.supervisor import Services
from tests.cli.conftest import PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


class Started:
    """A `run` in a process group of its own."""

    def __init__(self, state_dir: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "beam_pipelines", "run", "--state-dir", str(state_dir), *arguments]
        self.process = subprocess.Popen(
            command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.said: list[str] = []

    def wait_for(self, text: str) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if text in line:
                return
        pytest.fail(f"ended without saying {text!r}:\n" + "".join(self.said))

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def end(self) -> tuple[int, str]:
        """-> (exit code, stdout)"""
        assert self.process.stderr is not None
        reader = threading.Thread(target=lambda: self.said.extend(self.process.stderr or ()))
        reader.start()
        assert self.process.stdout is not None
        out = self.process.stdout.read()
        reader.join()
        return self.process.wait(), out


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "state"
    Services(tmp_path / "state").down()


def running(state_dir: Path) -> list[str]:
    return [service.name for service in Services(state_dir).status() if service.state != "stopped"]


def test_ctrl_c_finishes_the_epoch_and_accounts_for_it(state_dir: Path) -> None:
    # Some 50 epochs: this process may see the first one late, and the job must not have read all by then.
    run = Started(state_dir, "--forever", "--events=50000", "--slice-rows=250", "--output=json")
    run.wait_for("epoch 0")
    run.signal(signal.SIGINT)
    code, out = run.end()
    assert code == 0, "".join(run.said)
    document = json.loads(out.splitlines()[-1])
    assert document["balanced"]
    assert 0 < document["consumed"] < 50_000  # it did stop before the end
    assert running(state_dir) == []


def test_sigterm_while_services_start_leaves_none_behind(state_dir: Path) -> None:
    run = Started(state_dir)
    run.wait_for("starting kafka")
    run.signal(signal.SIGTERM)
    code, out = run.end()
    assert (code, out) == (130, "")
    assert running(state_dir) == []
