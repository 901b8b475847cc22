"""Streams on the local transport: resume, rescale, expiry of state, late data, idle and stop, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import BytesCoder, VarIntCoder
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import trigger, userstate, window
from apache_beam.utils.timestamp import Duration, Timestamp

from spark_jobs.beam_runner import SparkRunner
from spark_jobs.beam_runner.checkpoint.checkpoint import Checkpoint
from spark_jobs.beam_runner.checkpoint.manifest import Manifest
from spark_jobs.beam_runner.errors import CheckpointError, FencedError
from tests.faults import counting_job

Build = Callable[[beam.Pipeline], None]


def run(root: Path, build: Build, *flags: str, on_epoch: Any = None) -> Any:
    options = PipelineOptions(
        ["--streaming", "--until_idle", "--transport=local", f"--checkpoint={root}/checkpoint", *flags]
    )
    pipeline = beam.Pipeline(runner=SparkRunner(on_epoch=on_epoch), options=options)
    build(pipeline)
    result = pipeline.run()
    result.wait_until_finish()
    return result


def last_manifest(root: Path) -> Manifest:
    checkpoint = Checkpoint(root / "checkpoint")
    epoch = checkpoint.last_epoch()
    assert epoch is not None
    return Manifest.from_json(checkpoint.read_manifest(epoch), "last")


def counting(root: Path, available: int, slice_size: int = 100) -> Build:
    return lambda p: counting_job.build(p, str(root / "out"), available, slice_size)


def final_sums(root: Path) -> dict[int, int]:
    last: dict[int, int] = {}
    for key, _, total in counting_job.published(root / "out/sums"):
        last[key] = max(total, last.get(key, 0))
    return last


def test_a_stream_ends_when_idle_and_goes_on_at_the_next_run(tmp_path: Path) -> None:
    first = run(tmp_path, counting(tmp_path, 300))
    assert first.epochs == 3
    second = run(tmp_path, counting(tmp_path, 500))
    assert second.epochs == 5
    assert final_sums(tmp_path) == {k: sum(v) for k, v in counting_job.expected_values(500).items()}


def test_a_job_rescales_on_restart(tmp_path: Path) -> None:
    for available, tasks in ((200, 1), (400, 3), (600, 2)):
        run(tmp_path, counting(tmp_path, available), f"--tasks={tasks}")
    assert final_sums(tmp_path) == {k: sum(v) for k, v in counting_job.expected_values(600).items()}


def test_metrics_go_on_counting_after_a_restart(tmp_path: Path) -> None:
    class Counted(beam.DoFn):
        def process(self, element: Any) -> Iterator[Any]:
            beam.metrics.Metrics.counter("test", "elements").inc()
            yield element

    def build(available: int) -> Build:
        def inner(p: beam.Pipeline) -> None:
            _ = (
                p
                | beam.Create([0])
                | "read" >> beam.ParDo(counting_job.Count(available, 50)).with_output_types(tuple[int, int])
                | "count" >> beam.ParDo(Counted())
            )

        return inner

    seen: list[int] = []
    run(tmp_path, build(100), on_epoch=lambda info: seen.append(info.counters["test/elements"]))
    run(tmp_path, build(200), on_epoch=lambda info: seen.append(info.counters["test/elements"]))
    assert seen == [50, 100, 150, 200]


class Fresh(beam.DoFn):
    """One state entry per key and window."""

    SEEN = userstate.ReadModifyWriteStateSpec("seen", VarIntCoder())

    def process(self, pair: tuple[Any, int], seen: Any = beam.DoFn.StateParam(SEEN)) -> None:
        seen.write((seen.read() or 0) + 1)


def test_state_of_expired_windows_is_collected(tmp_path: Path) -> None:
    sizes: list[int] = []

    def build(p: beam.Pipeline) -> None:
        _ = (
            p
            | beam.Create(list(range(2)))
            | "read" >> beam.ParDo(counting_job.Count(4000, 100)).with_output_types(tuple[int, int])
            | "fresh keys" >> beam.Map(lambda kv: (kv[1], kv[1])).with_output_types(tuple[int, int])
            | beam.WindowInto(window.FixedWindows(2), allowed_lateness=1)
            | "fresh" >> beam.ParDo(Fresh())
        )

    def measure(_: object) -> None:
        folder = tmp_path / "checkpoint/state"
        manifest = last_manifest(tmp_path)
        sizes.append(sum(f.length for metas in manifest.groups.values() for m in metas.values() for f in m.chain))
        assert folder.exists()

    run(tmp_path, build, on_epoch=measure)
    assert len(sizes) == 40
    # 200 new keys an epoch: without collection the state grows without end.
    assert max(sizes[20:]) <= 1.2 * max(sizes[5:20])


def test_state_that_the_new_pipeline_cannot_read_is_refused_by_name(tmp_path: Path) -> None:
    def build(key_type: Any) -> Build:
        def inner(p: beam.Pipeline) -> None:
            _ = (
                p
                | beam.Create([0])
                | "read" >> beam.ParDo(counting_job.Count(50, 50)).with_output_types(tuple[int, int])
                | "key" >> beam.Map(lambda kv: (key_type(kv[0]), 1)).with_output_types(tuple[key_type, int])
                | "remember me" >> beam.ParDo(Fresh())
            )

        return inner

    run(tmp_path, build(int))
    with pytest.raises(CheckpointError, match="remember me"):
        run(tmp_path, build(str))


def test_a_source_that_is_gone_is_refused_by_name(tmp_path: Path) -> None:
    run(tmp_path, counting(tmp_path, 50))
    with pytest.raises(CheckpointError, match="read/Process"):
        run(tmp_path, lambda p: p | beam.Create([1]) | beam.Map(lambda x: x))


def test_a_stop_request_ends_after_an_epoch_and_loses_nothing(tmp_path: Path) -> None:
    results: list[Any] = []
    options = PipelineOptions(["--streaming", "--transport=local", f"--checkpoint={tmp_path}/checkpoint"])

    def stop_at_two(info: Any) -> None:
        if info.epoch == 2:
            while not results:
                pass
            results[0].request_stop()

    pipeline = beam.Pipeline(runner=SparkRunner(on_epoch=stop_at_two), options=options)
    counting(tmp_path, 1000)(pipeline)
    results.append(pipeline.run())
    assert results[0].wait_until_finish() == "STOPPED"
    assert results[0].epochs == 3
    run(tmp_path, counting(tmp_path, 1000))
    assert final_sums(tmp_path) == {k: sum(v) for k, v in counting_job.expected_values(1000).items()}


class Fails(beam.DoFn):
    def process(self, pair: tuple[int, int]) -> None:
        if pair[1] == 44:
            raise ValueError("the DoFn's own words")


def test_an_error_in_a_dofn_names_the_step_and_commits_nothing(tmp_path: Path) -> None:
    def build(p: beam.Pipeline) -> None:
        _ = (
            p
            | beam.Create([0])
            | "read" >> beam.ParDo(counting_job.Count(100, 10)).with_output_types(tuple[int, int])
            | "fails here" >> beam.ParDo(Fails())
        )

    with pytest.raises(ValueError, match=r"the DoFn's own words.*fails here"):
        run(tmp_path, build)
    assert last_manifest(tmp_path).epoch == 0  # values 0, 4 .. 36; 44 comes in epoch 1


class Versions(beam.DoFn):
    """Writes a bag across restarts: encoded bytes go on where they were."""

    BAG = userstate.BagStateSpec("bag", BytesCoder())

    def process(self, pair: tuple[int, int], bag: Any = beam.DoFn.StateParam(BAG)) -> Iterator[bytes]:
        bag.add(b"%d" % pair[1])
        yield json.dumps(sorted(int(b) for b in bag.read())).encode()


def test_bags_survive_a_restart(tmp_path: Path) -> None:
    from beam_pipelines.io.publish import Publish

    def build(available: int) -> Build:
        def inner(p: beam.Pipeline) -> None:
            _ = (
                p
                | beam.Create([0])
                | "read" >> beam.ParDo(counting_job.Count(available, 2)).with_output_types(tuple[int, int])
                | "one key" >> beam.Map(lambda kv: (0, kv[1])).with_output_types(tuple[int, int])
                | "bag" >> beam.ParDo(Versions())
                | "publish" >> Publish(counting_job.FolderPublisher(str(tmp_path / "out/bag")))
            )

        return inner

    run(tmp_path, build(3))
    run(tmp_path, build(5))
    assert counting_job.published(tmp_path / "out/bag")[-1] == [0, 4, 8, 12, 16]


def test_a_sink_that_is_gone_is_refused_while_it_may_be_owed_rows(tmp_path: Path) -> None:
    run(tmp_path, counting(tmp_path, 50))

    def without_windows(p: beam.Pipeline) -> None:
        events = p | "sources" >> beam.Create(list(range(counting_job.SOURCES)))
        pairs = events | "read" >> beam.ParDo(counting_job.Count(50, 50)).with_output_types(tuple[int, int])
        _ = pairs | "sums" >> beam.ParDo(counting_job.RunningSum())

    with pytest.raises(CheckpointError, match="publish sums"):
        run(tmp_path, without_windows)


class Unwilling:
    """Fails to publish."""

    def publish(self, epoch: object, staged: object) -> dict[str, int]:
        raise OSError("the store is down")


def test_a_failed_publish_ends_a_stream_that_is_otherwise_idle(tmp_path: Path) -> None:
    from beam_pipelines.io.publish import Publish

    options = PipelineOptions(["--streaming", "--transport=local", f"--checkpoint={tmp_path}/checkpoint"])
    pipeline = beam.Pipeline(runner=SparkRunner(), options=options)
    read = pipeline | beam.Create([0]) | beam.ParDo(counting_job.Count(1, 1)).with_output_types(tuple[int, int])
    _ = read | beam.Map(lambda _: b"row") | Publish(Unwilling())
    with pytest.raises(OSError, match="the store is down"):
        pipeline.run().wait_until_finish(20_000)


def test_a_driver_that_is_idle_hears_that_another_one_has_gone_on(tmp_path: Path) -> None:
    def take_over(_: object) -> None:
        last = last_manifest(tmp_path)
        other = Checkpoint(tmp_path / "checkpoint")
        other.commit_manifest(last.epoch + 1, replace(last, epoch=last.epoch + 1).to_json())

    options = PipelineOptions(["--streaming", "--transport=local", f"--checkpoint={tmp_path}/checkpoint"])
    pipeline = beam.Pipeline(runner=SparkRunner(on_epoch=take_over), options=options)
    _ = pipeline | beam.Create([0]) | beam.ParDo(counting_job.Count(1, 1)).with_output_types(tuple[int, int])
    result = pipeline.run()
    try:
        with pytest.raises(FencedError, match="Epoch 1 "):
            assert result.wait_until_finish(20_000) != "RUNNING"
    finally:
        result.cancel()


class WrongType(beam.DoFn):
    def process(self, pair: tuple[int, int]) -> Iterator[Any]:
        yield "not a number"


def test_an_error_names_step_bundle_and_line_also_when_a_coder_fails(tmp_path: Path) -> None:
    def build(step: beam.DoFn) -> Build:
        def inner(p: beam.Pipeline) -> None:
            _ = (
                p
                | beam.Create([0])
                | "read" >> beam.ParDo(counting_job.Count(100, 10)).with_output_types(tuple[int, int])
                | "step at fault" >> beam.ParDo(step).with_output_types(int)
                | beam.Reshuffle()
            )

        return inner

    with pytest.raises(ValueError, match="step at fault") as failed:
        run(tmp_path / "raises", build(Fails()))
    assert failed.value.__notes__ == ["in epoch 1, task 0 of 2, bundle of 'read/Process'"]
    assert any(entry.name == "process" and str(entry.path).endswith(Path(__file__).name) for entry in failed.traceback)
    with pytest.raises(TypeError, match="step at fault") as failed_coder:
        run(tmp_path / "coder", build(WrongType()))
    assert failed_coder.value.__notes__ == ["in epoch 0, task 0 of 2, bundle of 'read/Process'"]


class Straggling(beam.DoFn):
    """Emits `slices` slices of values at their own time; each slice has one value of the first slice's time too."""

    def __init__(self, slices: int) -> None:
        self.slices = slices

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        _: Any,
        tracker: Any = beam.DoFn.RestrictionParam(counting_job.Forever()),
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider()),
    ) -> Iterator[Any]:
        index = tracker.current_restriction().start
        if index >= self.slices:
            tracker.defer_remainder(Duration(0.3))
        elif tracker.try_claim(index):
            yield window.TimestampedValue(("on time", index), index * 10)
            yield window.TimestampedValue(("straggler", index), 0)
            watermark.set_watermark(Timestamp(index * 10 + 10))
            tracker.defer_remainder()


@pytest.mark.parametrize(
    ("step", "windowfn"),
    [
        ("GroupByKey", window.FixedWindows(10)),
        ("Sessions", window.Sessions(10)),
        ("General", window.FixedWindows(10)),
        ("State", window.FixedWindows(10)),
    ],
)
def test_elements_dropped_for_lateness_are_counted_by_step(tmp_path: Path, step: str, windowfn: Any) -> None:
    how = {
        "GroupByKey": beam.GroupByKey(),
        "Sessions": beam.GroupByKey(),
        "General": beam.GroupByKey(),
        "State": beam.ParDo(Fresh()),
    }[step]
    early = trigger.AfterWatermark(late=trigger.AfterCount(1)) if step == "General" else None
    counts: list[int] = []

    def build(p: beam.Pipeline) -> None:
        _ = (
            p
            | beam.Create([0])
            | "read" >> beam.ParDo(Straggling(6)).with_output_types(tuple[str, int])
            | beam.WindowInto(
                windowfn,
                trigger=early,
                accumulation_mode=trigger.AccumulationMode.DISCARDING if early else None,
                allowed_lateness=15,
            )
            | "keyed step" >> how
        )

    result = run(
        tmp_path, build, on_epoch=lambda info: counts.append(info.counters.get("beam_runner/droppedDueToLateness", 0))
    )
    # The stragglers' window ends at 10 and is kept until 25; the elements of epoch n meet the watermark 10 n.
    assert counts[:6] == [0, 0, 0, 1, 2, 3]
    (counter,) = result.metrics().query(beam.metrics.MetricsFilter().with_name("droppedDueToLateness"))["counters"]
    assert "keyed step" in counter.key.step
    assert counter.committed == 3


@pytest.mark.slow
def test_a_thousand_epochs_of_fresh_keys_leave_as_much_as_the_first_hundred(tmp_path: Path) -> None:
    sizes: list[tuple[int, int]] = []

    def build(p: beam.Pipeline) -> None:
        fresh = (
            p
            | beam.Create(list(range(2)))
            | "read" >> beam.ParDo(counting_job.Count(20_000, 20)).with_output_types(tuple[int, int])
            | "fresh keys" >> beam.Map(lambda kv: (kv[1], kv[1])).with_output_types(tuple[int, int])
        )
        windowed = fresh | beam.WindowInto(window.FixedWindows(2), allowed_lateness=1)
        _ = windowed | "state" >> beam.ParDo(Fresh())
        _ = windowed | "group" >> beam.GroupByKey()
        sessions = fresh | "sessions" >> beam.WindowInto(window.Sessions(1), allowed_lateness=1)
        _ = sessions | "group sessions" >> beam.GroupByKey()

    def measure(_: object) -> None:
        files = list((tmp_path / "checkpoint/state").iterdir())
        sizes.append((len(files), sum(file.stat().st_size for file in files)))

    run(tmp_path, build, on_epoch=measure)
    assert len(sizes) == 1000
    for column in (0, 1):  # files, bytes
        early, late = [size[column] for size in sizes[50:150]], [size[column] for size in sizes[900:]]
        assert max(late) <= 1.2 * max(early)
