"""0 ok, 1 failed, 2 usage or configuration, 130 interrupted; messages go to stderr, with the next command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from beam_pipelines.cli import config as config_command
from tests.cli.conftest import PROJECT, Cli


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (("status", "--state-dirr", "x"), "--state-dir"),
        (("run", "--boostrap-servers", "x"), "--bootstrap-servers"),
        (("run", "--until-draind"), "--until-drained"),
        (("docter",), "doctor"),
        (("services", "dwon"), "down"),
    ],
)
def test_a_misspelt_word_is_a_usage_error_with_a_suggestion(
    cli: Cli, arguments: tuple[str, ...], suggestion: str
) -> None:
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert "did you mean" in outcome.err.lower()
    assert suggestion in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [("status", "--mode", "weekly"), ("config", "--output", "xml"), ("run", "--events", "-1"), ("status", "x")],
)
def test_a_value_that_does_not_fit_is_a_usage_error(cli: Cli, arguments: tuple[str, ...]) -> None:
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ")
    assert "next: " in outcome.err


def test_no_command_shows_the_help(cli: Cli) -> None:
    outcome = cli()
    assert outcome.code == 2
    assert "Commands:" in outcome.err + outcome.out
    assert "error:" not in outcome.err


def test_a_wrong_setting_is_a_configuration_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINES_BUCKETS", "many")
    outcome = cli("config")
    assert (outcome.code, outcome.out) == (2, "")
    assert "environment PIPELINES_BUCKETS" in outcome.err


def test_a_stream_on_a_batch_only_runner_is_refused_before_anything_starts(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("run", "--runner=DirectRunner", "--mode=stream")
    assert outcome.code == 2
    assert "next: python -m beam_pipelines run --runner=DirectRunner --mode batch" in outcome.err
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_project_is_a_message_and_a_next_command(cli: Cli, tmp_path: Path) -> None:
    services = tmp_path / "state" / "services"
    services.mkdir(parents=True)
    (services / "services.json").write_text("not ours")
    outcome = cli("services", "status", "--state-dir", "state")
    assert (outcome.code, outcome.out) == (1, "")
    assert "services.json cannot be read" in outcome.err
    assert "next: " in outcome.err
    assert "Traceback" not in outcome.err


def test_ctrl_c_is_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(config_command, "load_settings", interrupted)
    assert cli("config").code == 130


def test_the_process_ends_with_the_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "beam_pipelines", "docter"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
