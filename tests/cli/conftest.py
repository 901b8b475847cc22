"""Runs commands in an empty folder, with nothing of PIPELINES_* in the environment but the project's own domain."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.cli import probes
from beam_pipelines.cli.main import main

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """Of one command."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The last line of stdout."""
        return json.loads(self.out.splitlines()[-1])


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    for name in [name for name in os.environ if name.startswith("PIPELINES_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIPELINES_REPO", str(PROJECT / "feature_repo"))
    monkeypatch.setattr(probes, "TIMEOUT_S", 0.3)  # what is there is on this machine
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = main(arguments)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def closed_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
