"""Two drivers on one checkpoint: whoever was started last goes on, and what the other committed until then counts."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import window

from spark_jobs.beam_runner import SparkRunner
from spark_jobs.beam_runner.checkpoint.checkpoint import Checkpoint
from spark_jobs.beam_runner.errors import CheckpointError, FencedError
from tests.faults import counting_job
from tests.faults.differences import differences

AVAILABLE, SLICE = 2_000, 50


def started(root: Path, on_epoch: Any = None, build: Any = None) -> Any:
    """-> the result of a job that runs until it is idle."""
    options = PipelineOptions(["--streaming", "--until_idle", "--transport=local", f"--checkpoint={root}/checkpoint"])
    pipeline = beam.Pipeline(runner=SparkRunner(on_epoch=on_epoch), options=options)
    (build or counting_job.build)(pipeline, f"{root}/out", AVAILABLE, SLICE)
    return pipeline.run()


def test_a_driver_that_runs_is_fenced_by_one_that_is_started(tmp_path: Path) -> None:
    under_way = threading.Event()

    def slow(info: Any) -> None:
        if info.epoch == 3:
            under_way.set()
        time.sleep(0.1)  # 4 s for all: the newer one is there long before the end

    older = started(tmp_path, slow)
    assert under_way.wait(60)
    newer = started(tmp_path)
    with pytest.raises(FencedError, match="Another driver was started"):
        older.wait_until_finish()
    newer.wait_until_finish()
    assert differences(tmp_path, AVAILABLE) == 0


def test_what_an_older_driver_commits_at_the_last_moment_is_published_and_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit, late = Checkpoint.commit_manifest, list[int]()

    def commit_after_the_older(self: Checkpoint, epoch: int, data: bytes) -> None:
        if epoch == 2 and not late:
            late.append(epoch)
            commit(Checkpoint(self.url), epoch, data)
        commit(self, epoch, data)

    monkeypatch.setattr(Checkpoint, "commit_manifest", commit_after_the_older)
    with caplog.at_level(logging.WARNING, "spark_jobs"):
        started(tmp_path).wait_until_finish()
    assert late == [2]
    assert "committed its last epoch, 2" in caplog.text
    assert differences(tmp_path, AVAILABLE) == 0


def test_a_start_that_is_refused_fences_nobody(tmp_path: Path) -> None:
    def other(pipeline: beam.Pipeline, *_: Any) -> None:
        pairs = pipeline | beam.Create([("k", 1)]) | "windows" >> beam.WindowInto(window.Sessions(7))
        _ = pairs | beam.GroupByKey()

    refused: list[str] = []

    def start_another(info: Any) -> None:
        if info.epoch == 3:
            with pytest.raises(CheckpointError) as error:
                started(tmp_path, build=other)
            refused.append(error.value.message)

    result = started(tmp_path, start_another)
    result.wait_until_finish()
    assert len(refused) == 1
    assert differences(tmp_path, AVAILABLE) == 0
