"""What a job keeps in the driver while it runs, and leaves in a Spark session that goes on."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from spark_jobs.beam_runner import SparkRunner
from spark_jobs.beam_runner.bundles.order import EpochOrder, Report, WorkerWarning
from spark_jobs.beam_runner.driver import EpochLoop
from spark_jobs.beam_runner.transport.spark import SparkTransport
from spark_jobs.session import active_session, spark_session
from tests.faults import counting_job


def test_warnings_that_never_end_are_not_all_kept() -> None:
    transport = SparkTransport(None, 2)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        for number in [0, 0, *range(2000)]:
            transport._warn([Report(warnings=[WorkerWarning(f"element {number}", UserWarning, "step.py", 7)])])
    messages = [str(warning.message) for warning in shown]
    assert len(messages) == len(set(messages)) == len(transport._warned) == 1000


@pytest.mark.slow
def test_large_orders_leave_no_files_in_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spark = active_session() or spark_session(cores=2)
    make_order = EpochLoop._order

    def large_order(self: EpochLoop, *args: Any) -> EpochOrder:
        order = make_order(self, *args)
        return replace(order, attempt=order.attempt + "." * (2 << 20))

    monkeypatch.setattr(EpochLoop, "_order", large_order)
    folder = spark.sparkContext._temp_dir
    before, files = len(os.listdir(folder)), []
    options = PipelineOptions(
        [
            "--streaming",
            "--until_idle",
            "--tasks=2",
            "--driver_epochs_below_ms=0",
            f"--checkpoint={tmp_path}/checkpoint",
        ]
    )
    runner = SparkRunner(spark=spark, on_epoch=lambda _: files.append(len(os.listdir(folder)) - before))
    pipeline = beam.Pipeline(runner=runner, options=options)
    counting_job.build(pipeline, f"{tmp_path}/out", 150, 50)
    pipeline.run().wait_until_finish()
    assert files == [1, 1, 1]  # that of the plan
    assert len(os.listdir(folder)) == before
