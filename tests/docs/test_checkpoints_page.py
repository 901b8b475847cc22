"""docs/checkpoints.md is true: its commands run, in its order, and its snippet makes a rollback exact."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from beam_pipelines.cli.main import main as pipelines
from common.lake import Lake
from spark_jobs.beam_runner.checkpoint import gcs as gcs_store
from spark_jobs.beam_runner.checkpoint.checkpoint import KEEP_MANIFESTS, Checkpoint
from spark_jobs.beam_runner.cli import main as runner
from spark_jobs.beam_runner.driver import _GARBAGE_EVERY_EPOCHS
from tests.docs.test_commands import ROOT, Command, shell_lines, simple_commands
from tests.fakes import gcs
from tests.unit.beam_runner import table_job

PAGE = ROOT / "docs/checkpoints.md"
CHECKPOINT, WAREHOUSE = ".pipelines/checkpoints/stream", ".pipelines/warehouse/stream"
DIFFERS = 3  # the checkpoint in this test is of another pipeline than the main job


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A job of six epochs where the page has it, and the page's bucket."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIPELINES_REPO", str(ROOT / "feature_repo"))
    with gcs.running("my-bucket") as (address, _):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        gcs_store._client.cache_clear()
        table_job.run(CHECKPOINT, Lake(WAREHOUSE), 300, 50)
        yield tmp_path
    gcs_store._client.cache_clear()


def commands() -> list[Command]:
    lines = shell_lines(PAGE.read_text())
    return [Command(f"line {number}", words) for number, line in lines for words in simple_commands(line)]


def run(command: Command, folder: Path) -> int:
    python, flag, module, *arguments = command.words
    assert (python, flag) == ("python", "-m"), command
    arguments = [argument.replace("/tmp/", f"{folder}/") for argument in arguments]
    return {"spark_jobs.beam_runner": runner, "beam_pipelines": pipelines}[module](arguments)


def test_every_command_runs_and_the_snippet_makes_the_rollback_exact(folder: Path) -> None:
    ran = [(command.words[2:5], run(command, folder)) for command in commands()]
    assert ran == [
        (("spark_jobs.beam_runner", "checkpoint", "show"), 0),
        (("beam_pipelines", "plan"), DIFFERS),
        (("beam_pipelines", "plan", "--explain"), DIFFERS),
        (("spark_jobs.beam_runner", "checkpoint", "copy"), 0),
        (("spark_jobs.beam_runner", "checkpoint", "copy"), 0),
        (("spark_jobs.beam_runner", "checkpoint", "verify"), 0),
        (("spark_jobs.beam_runner", "checkpoint", "rollback"), 0),
    ]
    assert Checkpoint("gs://my-bucket/stream").last_epoch() == Checkpoint(folder / "trial").last_epoch() == 5
    assert Checkpoint(CHECKPOINT).last_epoch() == 6

    (snippet,) = re.findall(r"(?s)```python\n(.*?)```", PAGE.read_text())
    exec(snippet, {})
    lake = Lake(WAREHOUSE)
    assert table_job.values(lake) == table_job.expected(0, 250)
    table_job.run(CHECKPOINT, lake, 400, 70)
    assert table_job.values(lake) == table_job.expected(0, 400)


def test_the_numbers_are_those_of_the_code() -> None:
    text = " ".join(PAGE.read_text().split())
    assert f"The last {KEEP_MANIFESTS} manifests" in text
    assert f"up to {_GARBAGE_EVERY_EPOCHS - 1} more" in text
    assert f"tried again for {gcs_store.RETRY_S:.0f} seconds" in text


def test_a_move_is_exact_and_a_late_backup_doubles_what_the_original_did_after_it(folder: Path) -> None:
    """The bullets under the table of copies."""
    assert runner(["checkpoint", "copy", CHECKPOINT, "early", "--as", "backup"]) == 0
    lake = Lake(WAREHOUSE)
    table_job.run(CHECKPOINT, lake, 350, 50)
    assert runner(["checkpoint", "copy", CHECKPOINT, "gs://my-bucket/moved", "--as", "backup"]) == 0
    table_job.run("gs://my-bucket/moved", lake, 400, 30)
    assert table_job.values(lake) == table_job.expected(0, 400)
    table_job.run("early", lake, 350, 20)
    assert table_job.values(lake) == table_job.expected(0, 400) + table_job.expected(300, 350)


def test_json_is_one_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("show", "verify"):
        capsys.readouterr()
        assert runner(["checkpoint", command, CHECKPOINT, "--output", "json"]) == 0
        assert json.loads(capsys.readouterr().out)
