"""Data on stdout, everything else on stderr; with `--output json` the last line of stdout is one JSON object."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Cli

COMMANDS = [("config",), ("doctor",), ("status",), ("status", "--mode", "batch"), ("services", "status")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_json_is_one_line(cli: Cli, command: tuple[str, ...]) -> None:
    outcome = cli(*command, "--output", "json")
    assert outcome.code == 0
    assert len(outcome.out.splitlines()) == 1
    assert isinstance(outcome.document, dict)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_text_is_for_people(cli: Cli, command: tuple[str, ...]) -> None:
    outcome = cli(*command)
    assert outcome.code == 0
    assert outcome.out
    assert "{" not in outcome.out
    assert "\x1b" not in outcome.out  # no colours where there is no terminal


def test_a_warning_leaves_stdout_to_the_data(cli: Cli, monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    monkeypatch.setenv("PIPELINES_REDIS_URL", f"redis://127.0.0.1:{closed_port}")
    outcome = cli("status", "--output", "json")
    assert outcome.code == 0
    assert "warning: Redis at" in outcome.err
    assert outcome.document["services"]["valkey"]["state"] == "unreachable"
