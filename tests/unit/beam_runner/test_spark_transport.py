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
from spark_jobs.beam_runner.bundles.worker import Worker
from spark_jobs.beam_runner.checkpoint.checkpoint import Checkpoint
from spark_jobs.beam_runner.driver import EpochLoop
from spark_jobs.beam_runner.due import first_parcels
from spark_jobs.beam_runner.errors import CheckpointError
from spark_jobs.beam_runner.transport.local import LocalTransport
from spark_jobs.beam_runner.transport.spark import SparkTransport
from spark_jobs.beam_runner.transport.spark_worker import worker_of
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


CALLS: list[str] = []


class Told(beam.DoFn):
    def __init__(self, name: str) -> None:
        self.name = name

    def setup(self) -> None:
        CALLS.append(f"{self.name} setup")

    def process(self, element: int, finalizer: Any = beam.DoFn.BundleFinalizerParam) -> None:
        finalizer.register(lambda: CALLS.append(f"{self.name} final"))

    def teardown(self) -> None:
        CALLS.append(f"{self.name} teardown")


def test_jobs_in_one_session_leave_each_others_stages_alone(tmp_path: Path) -> None:
    """Their tasks meet in the same Python processes."""
    CALLS.clear()

    def epoch(job: str, ended: tuple[str, ...] = ()) -> tuple[Worker, list[Report]]:
        """A bundle of the job in this process, as its task runs it."""
        transport = LocalTransport(1)
        transport._workers = [worker_of(job, ended)]
        pipeline = beam.Pipeline()
        _ = pipeline | beam.Create([1]) | beam.ParDo(Told(job))
        checkpoint = Checkpoint(tmp_path / job)
        checkpoint.prepare()
        loop = EpochLoop(SparkRunner().plan(pipeline), transport, checkpoint, key_groups=1)
        order = loop._order([], 0)
        reports = transport.run(loop._plan, order, *first_parcels(loop._plan, loop.manifest, [], None, order))
        return transport._workers[0], reports

    first, reports = epoch("one")
    epoch("other")
    assert CALLS == ["one setup", "other setup"]
    first.finalize([report.awaits_commit for report in reports])
    assert CALLS[2:] == ["one final"]
    worker_of("other", ["one"])
    assert CALLS[3:] == ["one teardown"]
    assert worker_of("one", ()) is not first


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


@pytest.mark.slow
def test_a_runner_may_be_used_again_after_its_session_has_ended() -> None:
    runner = SparkRunner()
    for _ in range(2):
        with beam.Pipeline(runner=runner, options=PipelineOptions(["--tasks=1"])) as pipeline:
            _ = pipeline | beam.Create([1]) | beam.Map(str)
        session = active_session()
        assert session is not None
        session.stop()


@pytest.mark.slow
def test_what_a_worker_finds_damaged_is_a_checkpoint_error_with_the_way_back(tmp_path: Path) -> None:
    flags = ["--streaming", "--until_idle", "--tasks=2", "--driver_epochs_below_ms=0"]
    options = PipelineOptions([*flags, f"--checkpoint={tmp_path}/checkpoint"])

    def stream(available: int) -> None:
        pipeline = beam.Pipeline(runner=SparkRunner(), options=options)
        counting_job.build(pipeline, f"{tmp_path}/out", available, 50)
        pipeline.run().wait_until_finish()

    stream(100)
    for path in (tmp_path / "checkpoint/state").iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged") as damaged:
        stream(200)
    assert f"checkpoint verify {tmp_path}/checkpoint" in str(damaged.value.hint)
