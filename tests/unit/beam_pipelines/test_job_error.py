"""Errors of a job: the step and the kind are shown, a record's values never are; the owner finds all in a file."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from beam_pipelines.job_error import job_error
from common.errors import PipelineError
from spark_jobs.beam_runner.errors import CheckpointError, StepError

TRACEBACK = "Traceback (most recent call last):\n  File a.py\nthe rest"


def test_what_the_runner_refuses_is_shown_as_it_is(tmp_path: Path) -> None:
    refused = CheckpointError("this pipeline does not fit", hint="start anew")
    assert job_error(refused, tmp_path / "log") is refused
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    "error",
    [
        StepError("pyarrow.lib.ArrowInvalid: Could not convert 'a@b.c' [while running 'bronze/decode']", TRACEBACK),
        ValueError("Could not convert 'a@b.c' [while running 'bronze/decode']"),
    ],
)
def test_what_a_library_says_may_quote_a_record(tmp_path: Path, error: Exception) -> None:
    shown = job_error(error, tmp_path / "errors/run.log")
    assert "a@b.c" not in str(shown)
    assert shown.step == "bronze/decode"
    assert shown.message in ("pyarrow.lib.ArrowInvalid in a step of the job", "ValueError in a step of the job")
    assert shown.hint == f"less {tmp_path}/errors/run.log"


def test_our_own_words_are_shown_because_they_hold_no_values(tmp_path: Path) -> None:
    error = StepError("common.errors.PipelineError: Kafka is gone [while running 'source/read']", TRACEBACK)
    assert "Kafka is gone" in job_error(error, tmp_path / "log").message


def test_the_whole_traceback_is_for_its_owner(tmp_path: Path) -> None:
    error = StepError("builtins.KeyError: 'x' [while running 'a']", TRACEBACK)
    assert isinstance(job_error(error, tmp_path / "log"), PipelineError)
    assert "the rest" in (tmp_path / "log").read_text()
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600
