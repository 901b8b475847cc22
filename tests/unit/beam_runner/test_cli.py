"""`python -m spark_jobs.beam_runner checkpoint ...`: what it prints, where, and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from common.lake import Lake
from spark_jobs.beam_runner.checkpoint.checkpoint import Checkpoint
from spark_jobs.beam_runner.checkpoint.progress import manifest_of
from spark_jobs.beam_runner.cli import main
from tests.fakes import gcs
from tests.unit.beam_runner import table_job


class Outcome(NamedTuple):
    """Of one command."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main(["checkpoint", *map(str, arguments)])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """Six epochs of 50 numbers, all under one key."""
    table_job.run(tmp_path / "checkpoint", Lake(str(tmp_path / "lake")), 300, 50)
    return Checkpoint(tmp_path / "checkpoint")


def damage(checkpoint: Checkpoint, epoch: int) -> str:
    name = min(manifest_of(checkpoint, epoch).state_files() - manifest_of(checkpoint, epoch - 1).state_files())
    (checkpoint.root / "state" / name).write_bytes(b"not this")
    return name


def test_show_tells_position_state_and_counts(cli: Cli, checkpoint: Checkpoint) -> None:
    found = cli("show", checkpoint.url, "--output", "json")
    assert (found.code, found.err) == (0, "")
    document = found.document
    steps = {step["step"]: step for step in document["steps"]}
    assert (document["epoch"], document["done"], document["staged"]) == (5, False, {"numbers/publish": 1})
    assert (steps["total"]["keys"], steps["total"]["key_groups"]) == (1, 1)
    (meta,) = manifest_of(checkpoint, 5).groups["total"].values()
    assert steps["total"]["bytes"] == sum(frame.length for frame in meta.chain) > 0
    assert document["sources"] == [
        {"step": "read/Process", "parts": 1, "watermark": "1970-01-01T00:00:02.000+00:00"}
    ], "300 elements are 3 seconds, less one of delay"


def test_show_of_an_older_epoch_without_reading_state(cli: Cli, checkpoint: Checkpoint) -> None:
    damage(checkpoint, 2)
    found = cli("show", checkpoint.url, "--epoch=2", "--no-keys", "--output=json").document
    assert found["epoch"] == 2
    assert {step["keys"] for step in found["steps"]} == {None}
    assert cli("show", checkpoint.url, "--epoch=2").code == 1


def test_show_is_readable(cli: Cli, checkpoint: Checkpoint) -> None:
    out = cli("show", checkpoint.url).out
    assert f"epoch 5 of {checkpoint.url}" in out
    assert any(line.split()[0] == "total" and line.split()[-1] == "1" for line in out.splitlines() if line)


def test_verify_of_a_whole_checkpoint(cli: Cli, checkpoint: Checkpoint) -> None:
    found = cli("verify", checkpoint.url)
    assert found.code == 0
    assert "the newest whole epoch is 5" in found.out
    assert cli("verify", checkpoint.url, "--output=json").document["newest_whole"] == 5


def test_verify_and_rollback_lead_out_of_damage(cli: Cli, checkpoint: Checkpoint) -> None:
    name = damage(checkpoint, 5)
    found = cli("verify", checkpoint.url)
    assert found.code == 1
    assert name in found.out
    assert f"next: python -m spark_jobs.beam_runner checkpoint rollback {checkpoint.url} --to-epoch 4" in found.out
    document = cli("verify", checkpoint.url, "--output", "json").document
    assert (document["whole"], document["newest"], document["newest_whole"]) == (False, 5, 4)

    back = cli("rollback", checkpoint.url, "--to-epoch", "4", "--output", "json")
    assert (back.code, back.document["committed_as"]) == (0, 6)
    assert "epochs 5 to 5" in back.err
    assert "hold these rows twice" in back.err
    assert manifest_of(checkpoint, 6).groups == manifest_of(checkpoint, 4).groups


def test_rollback_to_a_damaged_epoch_is_refused_with_a_hint(cli: Cli, checkpoint: Checkpoint) -> None:
    damage(checkpoint, 3)
    found = cli("rollback", checkpoint.url, "--to-epoch=3", "--output=json")
    assert (found.code, found.document["error"]["code"]) == (1, "bad_checkpoint")
    assert f"checkpoint verify {checkpoint.url}" in found.document["error"]["hint"]
    assert checkpoint.last_epoch() == 5


def test_copy_to_an_object_store(cli: Cli, checkpoint: Checkpoint, bucket: gcs.Buckets) -> None:
    found = cli("copy", checkpoint.url, "gs://bucket/copy", "--as", "backup", "--output=json")
    assert (found.code, found.document["epoch"], found.document["as"]) == (0, 5, "backup")
    assert cli("verify", "gs://bucket/copy").code == 0
    assert cli("copy", checkpoint.url, "gs://bucket/copy", "--as", "backup").code == 1


@pytest.mark.parametrize(
    "arguments", [("copy", "a", "b"), ("copy", "a", "b", "--as", "spare"), ("rollback", "a"), ("shwo", "a"), ("show",)]
)
def test_wrong_usage_exits_with_2(cli: Cli, arguments: tuple[str, ...]) -> None:
    found = cli(*arguments)
    assert (found.code, found.out) == (2, "")
    assert "error: " in found.err


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_place_without_a_checkpoint_is_told(cli: Cli, tmp_path: Path, command: str) -> None:
    found = cli(command, tmp_path)
    assert found.code == 1
    assert "No epoch is committed" in found.err


@pytest.mark.slow  # Beam takes 2-9 s to import
def test_it_is_a_program(checkpoint: Checkpoint) -> None:
    command = [sys.executable, "-m", "spark_jobs.beam_runner", "checkpoint", "verify", checkpoint.url, "--output=json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["whole"]) == (0, True)
