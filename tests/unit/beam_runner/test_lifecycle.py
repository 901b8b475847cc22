"""What a DoFn lives through: finalisation after the commit, teardown, cuts, and the drain of its stream."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.io.restriction_trackers import OffsetRange
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.transforms import window
from apache_beam.utils.timestamp import Timestamp

from beam_pipelines.io.publish import Publish
from spark_jobs.beam_runner import SparkRunner
from spark_jobs.beam_runner.bundles.exchange import Outbox
from spark_jobs.beam_runner.keyed.state import KeyGroup
from spark_jobs.beam_runner.transport.spark import SparkTransport
from tests.faults import counting_job
from tests.unit.beam_runner import script_job

TRANSPORTS = pytest.mark.parametrize("transport", ["local", pytest.param("spark", marks=pytest.mark.slow)])


class Confirms(beam.DoFn):
    """Writes down, when it is told that its bundle is final, which manifests there were by then."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)

    def process(self, element: str, finalizer: Any = beam.DoFn.BundleFinalizerParam) -> None:
        root = Path(self.root)

        def confirm() -> None:
            epochs = sorted(path.name for path in (root / "checkpoint/epochs").glob("*.json"))
            with open(root / "confirmed", "a") as file:
                file.write(json.dumps([element, epochs[-1]]) + "\n")

        finalizer.register(confirm)


@TRANSPORTS
def test_bundles_are_final_once_their_epoch_is_committed(tmp_path: Path, transport: str) -> None:
    options = PipelineOptions(
        ["--streaming", "--tasks=2", f"--transport={transport}", f"--checkpoint={tmp_path}/checkpoint"]
    )
    script = test_stream.TestStream().add_elements(["one"]).advance_watermark_to(1).add_elements(["two"])
    with beam.Pipeline(runner=SparkRunner(), options=options) as p:
        _ = p | script | beam.ParDo(Confirms(tmp_path))
    confirmed = [json.loads(line) for line in (tmp_path / "confirmed").read_text().splitlines()]
    # Epoch 0 has the impulses; each event of the script is an epoch. Each bundle is confirmed once.
    assert confirmed == [["one", "000000001.json"], ["two", "000000003.json"]]


def test_bundles_of_an_epoch_that_failed_are_never_final(tmp_path: Path) -> None:
    def fails(element: str) -> None:
        raise ValueError(element)

    options = PipelineOptions(["--streaming", "--transport=local", f"--checkpoint={tmp_path}/checkpoint"])
    p = beam.Pipeline(runner=SparkRunner(), options=options)
    source = p | beam.Create(["one"])
    _ = source | beam.ParDo(Confirms(tmp_path))
    _ = source | beam.Reshuffle() | beam.Map(fails)
    with pytest.raises(ValueError, match="one"):
        p.run().wait_until_finish()
    assert not (tmp_path / "confirmed").exists()


class TornDown(beam.DoFn):
    def __init__(self, log: Path) -> None:
        self.log = str(log)

    def _say(self, word: str) -> None:
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()}.{id(self)} {word}\n")

    def setup(self) -> None:
        self._say("setup")

    def process(self, element: int) -> None:
        if element < 0:
            raise ValueError("negative")

    def teardown(self) -> None:
        self._say("teardown")


def torn_down(log: Path, transport: str, values: list[int]) -> bool:
    p = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions([f"--transport={transport}", "--tasks=2"]))
    _ = p | beam.Create(values) | beam.Reshuffle() | beam.ParDo(TornDown(log))
    if -1 in values:
        with pytest.raises(Exception, match="negative"):
            p.run()
    else:
        p.run()
    words = [line.split() for line in log.read_text().splitlines()]
    done = {word: sorted(who for who, said in words if said == word) for word in ("setup", "teardown")}
    return bool(words) and done["setup"] == done["teardown"]


@TRANSPORTS
def test_every_dofn_that_was_set_up_is_torn_down(tmp_path: Path, transport: str) -> None:
    assert torn_down(tmp_path / "log", transport, [1, 2, 3, 4])


def test_dofns_of_a_bundle_that_failed_are_torn_down(tmp_path: Path) -> None:
    assert torn_down(tmp_path / "log", "local", [1, -1])


class FailsToTearDown(TornDown):
    def teardown(self) -> None:
        super().teardown()
        raise KeyError("at the teardown")


def torn_down_twice(log: Path, values: list[int], *flags: str) -> Any:
    """Two such steps in two stages. -> the result of the job"""
    p = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(["--tasks=2", *flags]))
    made = p | beam.Create(values)
    _ = made | "one" >> beam.ParDo(FailsToTearDown(log)) | beam.Map(str)
    _ = made | beam.Reshuffle() | "other" >> beam.ParDo(FailsToTearDown(log)) | "text" >> beam.Map(str)
    result = p.run()
    result.wait_until_finish()
    return result


@TRANSPORTS
def test_teardowns_that_raise_fail_no_job_and_stop_no_other_teardown(tmp_path: Path, transport: str) -> None:
    assert torn_down_twice(tmp_path / "log", [1, 2, 3, 4], f"--transport={transport}").state == "DONE"
    said = [line.split()[1] for line in (tmp_path / "log").read_text().splitlines()]
    assert said.count("setup") == said.count("teardown") >= 3


def test_a_teardown_that_raises_does_not_hide_why_the_job_failed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="negative"):
        torn_down_twice(tmp_path / "log", [1, -1], "--transport=local")


@pytest.mark.slow
def test_a_teardown_that_raises_in_the_driver_leaves_no_spark_transport_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[SparkTransport] = []
    close = SparkTransport.close

    def noted(self: SparkTransport) -> None:
        closed.append(self)
        close(self)

    monkeypatch.setattr(SparkTransport, "close", noted)

    def build(p: beam.Pipeline) -> Any:
        script = test_stream.TestStream()
        for n in range(6):  # of these epochs the last are the driver's
            script = script.add_elements([n])
        return p | script | beam.ParDo(FailsToTearDown(tmp_path / "log")) | beam.Map(as_json)

    flags = ["--transport=spark", "--driver_epochs_below_ms=60000"]
    assert script_job.run(tmp_path, build, *flags).state == "DONE"
    assert len(closed) == 1


class Interrupts(beam.DoFn):
    """Says that it is at work; in the driver's own process it is interrupted as by Ctrl-C."""

    def __init__(self, folder: Path, driver: int) -> None:
        self.folder, self.driver = str(folder), driver

    def process(self, element: int) -> None:
        (Path(self.folder) / f"{element:06}").touch()
        time.sleep(0.02)
        if os.getpid() == self.driver and element == 5:
            signal.raise_signal(signal.SIGINT)


@TRANSPORTS
def test_ctrl_c_ends_a_batch(tmp_path: Path, transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "at work"
    folder.mkdir()

    def interrupt() -> None:
        while len(list(folder.iterdir())) < 5:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    if transport == "spark":
        threading.Thread(target=interrupt, daemon=True).start()
    p = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions([f"--transport={transport}", "--tasks=2"]))
    _ = p | beam.Create(range(3_000)) | beam.Reshuffle() | beam.ParDo(Interrupts(folder, os.getpid()))
    with pytest.raises(KeyboardInterrupt):
        p.run()
    assert not list(tmp_path.glob("beam-checkpoint-*"))
    before = -1
    deadline = time.monotonic() + 60
    while (done := len(list(folder.iterdir()))) != before:
        assert time.monotonic() < deadline, "the tasks go on"
        before = done
        time.sleep(2)
    assert 5 <= done < 3_000


def test_what_a_task_sent_is_not_kept_by_the_stages_that_sent_it(tmp_path: Path) -> None:
    """A stage that is idle in later epochs is kept for its next bundle."""
    kept: list[int] = []

    def measure(_: object) -> None:
        gc.collect()
        kept.append(sum(isinstance(thing, (Outbox, KeyGroup)) for thing in gc.get_objects()))

    measure(None)
    options = PipelineOptions(
        ["--streaming", "--until_idle", "--transport=local", "--tasks=1", f"--checkpoint={tmp_path}/checkpoint"]
    )
    p = beam.Pipeline(runner=SparkRunner(on_epoch=measure), options=options)
    once = p | "once" >> beam.Create([(1, 1)]) | beam.Reshuffle() | beam.Map(lambda pair: pair)
    _ = once | beam.GroupByKey() | beam.Map(print)
    _ = p | beam.Create([0]) | beam.ParDo(counting_job.Count(8, 2)).with_output_types(tuple[int, int])
    p.run().wait_until_finish()
    assert kept[-1] <= kept[0]


class NeverDefers(beam.DoFn):
    """Goes on as long as it may claim."""

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: int,
        tracker: Any = beam.DoFn.RestrictionParam(counting_job.Forever()),
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider()),
    ) -> Iterator[Any]:
        at = tracker.current_restriction().start
        while tracker.try_claim(at):
            yield window.TimestampedValue((element, at), at)
            watermark.set_watermark(Timestamp(at))
            time.sleep(0.005)
            at += 1


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_restrictions_that_never_defer_are_cut_share_the_time_and_lose_nothing(tmp_path: Path) -> None:
    def build(p: beam.Pipeline) -> Any:
        return p | beam.Create([0, 1, 2]) | beam.ParDo(NeverDefers()) | beam.Map(as_json)

    script_job.run(tmp_path, build, "--tasks=1", "--split_after_ms=300", stop_after=2)
    script_job.run(tmp_path, build, "--tasks=1", "--split_after_ms=300", stop_after=4)
    rows = script_job.rows(tmp_path)
    for element in range(3):
        assert [at for who, at in rows if who == element] == list(range(sum(who == element for who, _ in rows)))
        assert sum(who == element for who, _ in rows) >= 5 * 5  # 5 epochs of 100 ms, 5 ms a claim, with a wide margin


class Truncated(counting_job.Forever):
    def truncate(self, element: int, restriction: OffsetRange) -> OffsetRange | None:
        return OffsetRange(restriction.start, restriction.start + 3) if element == 1 else None


class Slow(beam.DoFn):
    """One element an epoch."""

    @beam.DoFn.unbounded_per_element()
    def process(self, element: int, tracker: Any = beam.DoFn.RestrictionParam(Truncated())) -> Iterator[Any]:
        at = tracker.current_restriction().start
        if tracker.try_claim(at):
            yield window.TimestampedValue((element, at), at)
            tracker.defer_remainder()


def drained(root: Path, after_epoch: int, stop_after: int | None = None, *flags: str) -> Any:
    """A stream of two restrictions that is drained after an epoch, by call or by flag. -> its result."""
    results: list[Any] = []

    def on_epoch(info: Any) -> None:
        while not results:
            pass
        if info.epoch == after_epoch:
            results[0].drain()
        if info.epoch == stop_after:
            results[0].request_stop()

    options = PipelineOptions(["--streaming", "--transport=local", f"--checkpoint={root}/checkpoint", *flags])
    p = beam.Pipeline(runner=SparkRunner(on_epoch=on_epoch), options=options)
    counted = (
        p
        | beam.Create([0, 1])
        | beam.ParDo(Slow()).with_output_types(tuple[int, int])
        | beam.WindowInto(window.FixedWindows(1000))
        | beam.combiners.Count.PerKey()
        | beam.Map(as_json)
    )
    _ = counted | "out" >> Publish(counting_job.FolderPublisher(f"{root}/out"))
    results.append(p.run())
    results[0].wait_until_finish()
    return results[0]


def test_a_drain_truncates_once_and_closes_the_windows(tmp_path: Path) -> None:
    result = drained(tmp_path, after_epoch=3)
    assert result.state == "DRAINED"
    # Epochs 0 .. 3 gave four elements each; the drain leaves nothing of restriction 0 and three of restriction 1.
    assert sorted(script_job.rows(tmp_path)) == [[0, 4], [1, 4 + 3]]


def test_a_drain_waits_for_no_interval(tmp_path: Path) -> None:
    began = time.monotonic()
    assert drained(tmp_path, 0, None, "--epoch_interval_ms=100000").state == "DRAINED"
    assert time.monotonic() - began < 60


def test_epochs_begin_no_sooner_than_their_interval_says(tmp_path: Path) -> None:
    starts: list[float] = []
    options = PipelineOptions(["--streaming", "--until_idle", "--transport=local", "--epoch_interval_ms=300"])
    p = beam.Pipeline(
        runner=SparkRunner(on_epoch=lambda info: starts.append(time.monotonic() - info.seconds)), options=options
    )
    counting_job.build(p, f"{tmp_path}/out", 250, 50)
    p.run().wait_until_finish()
    assert len(starts) >= 5
    assert all(after - before > 0.29 for before, after in pairwise(starts))


def test_a_drain_goes_on_after_a_restart(tmp_path: Path) -> None:
    assert drained(tmp_path, after_epoch=3, stop_after=5).epochs == 6
    assert script_job.rows(tmp_path) == []
    assert drained(tmp_path, after_epoch=-1).state == "DRAINED"
    assert sorted(script_job.rows(tmp_path)) == [[0, 4], [1, 4 + 3]]


def test_a_stopped_stream_is_drained_by_flag(tmp_path: Path) -> None:
    drained(tmp_path, after_epoch=-1, stop_after=3)
    assert drained(tmp_path, -1, None, "--drain").state == "DRAINED"
    assert sorted(script_job.rows(tmp_path)) == [[0, 4], [1, 4 + 3]]


ENDLESS = """
import os, signal
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from spark_jobs.beam_runner import SparkRunner

def interrupt(info):
    os.kill(os.getpid(), signal.SIGINT)

with beam.Pipeline(runner=SparkRunner(on_epoch=interrupt), options=PipelineOptions()) as p:
    p | PeriodicImpulse(fire_interval=1) | beam.Map(str)
"""


def test_an_interrupted_stream_leaves_no_temporary_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENDLESS, "--streaming", "--transport=local"]
    done = subprocess.run(
        command, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=120
    )
    assert "KeyboardInterrupt" in done.stderr
    assert not list(tmp_path.glob("beam-checkpoint-*"))
