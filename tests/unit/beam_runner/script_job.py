"""Runs a pipeline under test on the local transport, whole or with a restart after each epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipelines.io.publish import Publish
from spark_jobs.beam_runner import SparkRunner
from tests.faults import counting_job

Build = Callable[[beam.Pipeline], Any]  # -> what is published: a PCollection of JSON texts as bytes


def run(root: Path, build: Build, *flags: str, stop_after: int | None = None) -> Any:
    """One run on the checkpoint below `root`; stops after the commit of epoch `stop_after`. -> the result."""
    options = PipelineOptions(["--streaming", "--transport=local", f"--checkpoint={root}/checkpoint", *flags])
    results: list[Any] = []

    def on_epoch(info: Any) -> None:
        if info.epoch == stop_after:
            while not results:
                pass
            results[0].request_stop()

    pipeline = beam.Pipeline(runner=SparkRunner(on_epoch=on_epoch), options=options)
    _ = build(pipeline) | "out" >> Publish(counting_job.FolderPublisher(f"{root}/out"))
    results.append(pipeline.run())
    results[0].wait_until_finish()
    return results[0]


def run_with_restarts(root: Path, build: Build) -> None:
    """Each epoch in a run of its own, each run with another number of tasks."""
    for stop_after in range(100):
        result = run(root, build, f"--tasks={1 + stop_after % 3}", stop_after=stop_after)
        if result.state == "DONE":
            return
    raise AssertionError("no end in 100 epochs")


def rows(root: Path) -> list[Any]:
    return counting_job.published(root / "out")
