"""Epochs that are run again: what lost attempts leave behind is never used."""

from __future__ import annotations

import itertools
import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from common.publish import Epoch
from spark_jobs.beam_runner import SparkRunner
from spark_jobs.beam_runner.bundles.bundle import StageProcessor
from spark_jobs.beam_runner.bundles.order import Report
from spark_jobs.beam_runner.bundles.task import run_level
from spark_jobs.beam_runner.bundles.worker import Worker
from spark_jobs.beam_runner.driver import EpochLoop
from spark_jobs.beam_runner.errors import FencedError, StepError, WorkerLostError
from spark_jobs.beam_runner.planning.plan import StagePlan
from spark_jobs.beam_runner.transport import local
from spark_jobs.beam_runner.transport.attempts import TaskRun, whole_epoch
from spark_jobs.beam_runner.transport.local import LocalTransport
from tests.faults import counting_job
from tests.faults.differences import differences
from tests.model.script import Script, at, step
from tests.unit.beam_runner import script_job

AVAILABLE, SLICE = 600, 100


def stream(root: Path, *flags: str) -> Any:
    options = PipelineOptions(
        ["--streaming", "--until_idle", "--transport=local", f"--checkpoint={root}/checkpoint", *flags]
    )
    pipeline = beam.Pipeline(runner=SparkRunner(), options=options)
    counting_job.build(pipeline, f"{root}/out", AVAILABLE, SLICE)
    result = pipeline.run()
    result.wait_until_finish()
    return result


def lose_work(monkeypatch: pytest.MonkeyPatch, lost: dict[int, int], error: Exception) -> list[int]:
    """Epoch -> how many of its attempts fail, after all their tasks ran. -> the epochs of all attempts, as they ran."""
    run, attempts = LocalTransport.run, []

    def run_and_lose(self: LocalTransport, plan: Any, order: Any, *rest: Any) -> list[Report]:
        reports = run(self, plan, order, *rest)
        attempts.append(order.epoch)
        if attempts.count(order.epoch) <= lost.get(order.epoch, 0):
            raise error
        return reports

    monkeypatch.setattr(LocalTransport, "run", run_and_lose)
    return attempts


def test_lost_attempts_leave_exact_results_and_counters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers keep what the lost attempts did to state in memory, at frames that no manifest names."""
    attempts = lose_work(monkeypatch, {0: 1, 1: 1, 2: 2, 4: 1}, WorkerLostError("Executor 3 is gone."))
    with caplog.at_level(logging.WARNING, "spark_jobs"):
        result = stream(tmp_path)
    assert [attempts.count(epoch) for epoch in range(5)] == [2, 2, 3, 1, 2]
    assert len([r for r in caplog.records if "Executor 3 is gone" in r.message]) == 5
    assert differences(tmp_path, AVAILABLE) == 0
    (summed,) = (
        c.committed for c in result.metrics().query()["counters"] if c.key.metric.name == counting_job.SUMMED_COUNTER
    )
    assert summed == counting_job.SOURCES * AVAILABLE


def test_attempts_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = {3: 9}
    attempts = lose_work(monkeypatch, lost, WorkerLostError("Executor 3 is gone."))
    with pytest.raises(WorkerLostError, match="Executor 3 is gone"):
        stream(tmp_path, "--epoch_attempts=2")
    assert attempts.count(3) == 2
    lost.clear()
    stream(tmp_path)  # goes on from epoch 2
    assert differences(tmp_path, AVAILABLE) == 0


def test_an_error_of_the_pipeline_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = lose_work(monkeypatch, {2: 9}, StepError("ValueError: bad", "Traceback"))
    with pytest.raises(StepError):
        stream(tmp_path)
    assert attempts.count(2) == 1


HEARD: list[tuple[int, int]] = []
_ATTEMPTS = itertools.count()


class Confirmed(beam.DoFn):
    """(element, number of the attempt); notes the same when its bundle is final."""

    def process(self, element: int, finalizer: Any = beam.DoFn.BundleFinalizerParam) -> Iterator[bytes]:
        heard = (element, next(_ATTEMPTS))
        finalizer.register(lambda: HEARD.append(heard))
        yield json.dumps(heard).encode()


@pytest.mark.parametrize("is_told", [True, False], ids=["told", "next epoch"])
def test_of_two_attempts_of_a_task_the_committed_one_is_finalised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    """As Spark has it with speculation or a retry: two workers did the same, the report of one of them counts."""
    HEARD.clear()
    losers = defaultdict[str, Worker](Worker)

    def run_twice(worker: Worker, *rest: Any) -> Any:
        run_level(losers[worker.name], *rest)
        return run_level(worker, *rest)

    committed = LocalTransport.committed

    def tell_all(self: LocalTransport, bundles: dict[str, str]) -> None:
        if is_told:
            committed(self, bundles)
            for worker in losers.values():
                worker.finalize(bundles)

    monkeypatch.setattr(local, "run_level", run_twice)
    monkeypatch.setattr(LocalTransport, "committed", tell_all)

    def build(p: beam.Pipeline) -> Any:
        return p | Script([step(at(0, n)) for n in range(4)], element_type=int) | beam.ParDo(Confirmed())

    script_job.run(tmp_path, build)
    rows = [tuple(row) for row in script_job.rows(tmp_path)]
    assert [element for element, _ in rows] == [0, 1, 2, 3]
    assert rows[: 4 if is_told else 3] == HEARD  # the last epoch has no next


def test_bundles_of_lost_attempts_wait_for_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their processors are used again: else each attempt would leave one, and its DoFns, behind."""
    made: list[str] = []
    init = StageProcessor.__init__

    def noted(self: StageProcessor, plan: StagePlan) -> None:
        made.append(plan.id)
        init(self, plan)

    monkeypatch.setattr(StageProcessor, "__init__", noted)
    attempts = lose_work(monkeypatch, {1: 5, 2: 5}, WorkerLostError("Executor 3 is gone."))

    def build(p: beam.Pipeline) -> Any:
        script = Script([step(at(0, n)) for n in range(4)], element_type=int)
        return p | script | beam.Reshuffle() | "confirm" >> beam.ParDo(Confirmed())

    script_job.run(tmp_path, build, "--epoch_attempts=6", "--tasks=2")
    assert attempts.count(1) == attempts.count(2) == 6
    (stage,) = {name for name in made if "Reshuffle" in name or "confirm" in name}
    assert made.count(stage) <= 2 * 2, "in each of two workers one whose bundle may wait for a commit, and one at work"


def test_a_driver_that_slept_before_it_published_publishes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one published the same epoch and later ones: old panes must not come over new ones."""
    published: list[tuple[str, int]] = []
    publish, publish_now = counting_job.FolderPublisher.publish, EpochLoop._publish_now
    driver = ["older"]

    def noted(self: counting_job.FolderPublisher, epoch: Epoch, staged: Any) -> Any:
        published.append((driver[-1], epoch.number))
        return publish(self, epoch, staged)

    def sleep_first(self: EpochLoop, epoch: Epoch, staged: Any) -> None:
        if epoch.number == 2 and len(driver) == 1:
            driver.append("newer")
            stream(tmp_path)
            driver.append("older")
        publish_now(self, epoch, staged)

    monkeypatch.setattr(counting_job.FolderPublisher, "publish", noted)
    monkeypatch.setattr(EpochLoop, "_publish_now", sleep_first)
    with pytest.raises(FencedError):
        stream(tmp_path)
    assert max(number for who, number in published if who == "older") == 1
    assert {2, 3} <= {number for who, number in published if who == "newer"}
    assert differences(tmp_path, AVAILABLE) == 0


# ---- which attempts an epoch is made of
def run_of(level: int, part: int, attempt: int, *read: int) -> TaskRun:
    return TaskRun(level, part, attempt, dict(enumerate(read)), Report(output_us={"stage": attempt}))


WHOLE = [run_of(1, 0, 10), run_of(1, 1, 11), run_of(2, 0, 20, 10, 11), run_of(2, 1, 21, 10, 11)]


def test_a_whole_epoch_gives_the_reports_in_order() -> None:
    reports = whole_epoch(WHOLE[::-1], range(1, 3), 2)
    assert [r.output_us["stage"] for r in reports] == [10, 11, 20, 21]


@pytest.mark.parametrize(
    "runs",
    [
        [*WHOLE[:3], run_of(2, 1, 21, 10, 12)],  # one task read a level-1 result that was computed again
        [*WHOLE[:3], run_of(2, 1, 21, 10)],  # one task did not read all there was
        WHOLE[1:],  # a report is missing
        [*WHOLE, WHOLE[0]],  # a report is there twice
        [run_of(1, 0, 10), run_of(1, 1, 12), *WHOLE[2:]],  # the report is that of an attempt that nobody read
    ],
    ids=["mixed", "partial", "missing", "twice", "unread"],
)
def test_an_epoch_of_mixed_attempts_is_refused(runs: list[TaskRun]) -> None:
    with pytest.raises(WorkerLostError):
        whole_epoch(runs, range(1, 3), 2)
