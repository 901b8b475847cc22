"""Sources in an upgrade: what is left of their restrictions, and sources that are new."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import FastPrimitivesCoder
from apache_beam.transforms import window
from apache_beam.utils.timestamp import Timestamp

from spark_jobs.beam_runner.checkpoint.checkpoint import Checkpoint
from spark_jobs.beam_runner.driver import EpochLoop
from spark_jobs.beam_runner.errors import CheckpointError
from spark_jobs.beam_runner.planning.upgrade import INCOMPATIBLE, NEW
from tests.faults import counting_job
from tests.model.script import Script, at, step
from tests.unit.beam_runner.test_streaming import Build, last_manifest, run
from tests.unit.beam_runner.test_upgrade import changes, publish

Pair = tuple[int, int]


class Boxed(counting_job.Forever):
    def restriction_coder(self) -> Any:
        return BoxCoder()


class BoxCoder(FastPrimitivesCoder):
    """Like its base, but by another name."""

    def to_runner_api_parameter(self, context: Any) -> Any:
        return beam.coders.Coder.to_runner_api_parameter(self, context)


def read(provider: Any = None, element: Any = 0, into: Any = None) -> Build:
    """One source, deferred after each element."""

    class Read(beam.DoFn):
        @beam.DoFn.unbounded_per_element()
        def process(
            self, _: Any, tracker: Any = beam.DoFn.RestrictionParam(provider or counting_job.Forever())
        ) -> Iterator[int]:
            if (at := tracker.current_restriction().start) == 3:
                tracker.defer_remainder(beam.utils.timestamp.Duration(0.1))
            elif tracker.try_claim(at):
                yield at
                tracker.defer_remainder()

    def build(p: beam.Pipeline) -> None:
        source = p | "source" >> beam.Create([element]) | beam.WindowInto(into or window.GlobalWindows())
        _ = source | "read" >> beam.ParDo(Read())

    return build


@pytest.mark.parametrize(
    ("new", "why"),
    [
        pytest.param(read(element="0"), "coder was .*kv.varint.* is .*kv.string_utf8", id="element"),
        pytest.param(read(Boxed()), "coder was .*FastPrimitivesCoder.* is .*BoxCoder", id="restriction"),
        pytest.param(read(into=window.FixedWindows(9)), ".*windows was the global window, is fixed", id="windows"),
    ],
)
def test_what_is_left_of_a_source_is_not_read_by_another_coder(tmp_path: Path, new: Build, why: str) -> None:
    run(tmp_path, read())
    change = changes(tmp_path, new)["read/Process"]
    assert (change.kind, change.loss) == (INCOMPATIBLE, ""), "without it the source would be silent for ever"
    with pytest.raises(CheckpointError, match=f"read/Process: {why}") as told:
        run(tmp_path, new)
    assert "drop" not in str(told.value.hint)
    run(tmp_path, read())


# ---- sources that are new
def counts(available: int, slice_size: int) -> Any:
    return beam.ParDo(counting_job.Count(available, slice_size)).with_output_types(Pair)


def streams(root: Path, *sources: int, available: int, name: str = "read", kind: str = "sums") -> Build:
    """Sources by number, flattened into a running sum per key, sums by windows of 10 seconds, or counts by timers."""

    def build(p: beam.Pipeline) -> None:
        read = [p | f"source {n}" >> beam.Create([n]) | f"{name} {n}" >> counts(available, 100) for n in sources]
        events = read | "all" >> beam.Flatten() if len(read) > 1 else read[0]
        if kind == "sums":
            publish(events | "sums" >> beam.ParDo(counting_job.RunningSum()), "to sums", root / "sums")
        elif kind == "quiet":
            publish(events | "quiet" >> beam.ParDo(counting_job.CountWhenQuiet()), "to quiet", root / "quiet")
        else:
            windowed = events | "windows" >> beam.WindowInto(window.FixedWindows(10))
            sums = windowed | "add up" >> beam.CombinePerKey(sum) | "format" >> beam.Map(counting_job._with_window)
            publish(sums, "to windows", root / "windows")

    return build


def values(per_source: dict[int, int]) -> Counter[int]:
    return Counter(counting_job.event(source, i)[1] for source, count in per_source.items() for i in range(count))


def summed(root: Path) -> Counter[int]:
    """The values that were added, each as often as it was."""
    return Counter(value for _, value, _ in counting_job.published(root / "sums"))


def test_a_new_source_starts_in_the_first_epoch_and_once_only(tmp_path: Path) -> None:
    run(tmp_path, streams(tmp_path, 0, available=150))
    new = streams(tmp_path, 0, 1, available=250)
    assert changes(tmp_path, new)["source 1/FlatMap(<lambda at core.py:4094>)"].kind == NEW
    for tasks in (1, 3):
        run(tmp_path, new, f"--tasks={tasks}")
    run(tmp_path, streams(tmp_path, 0, 1, available=300))
    assert summed(tmp_path) == values({0: 300, 1: 300})
    totals = {key: total for key, _, total in sorted(counting_job.published(tmp_path / "sums"), key=lambda row: row[2])}
    expected: Counter[int] = Counter()
    for source in (0, 1):
        for key, value, _ in (counting_job.event(source, i) for i in range(300)):
            expected[key] += value
    assert totals == dict(expected)


class CrashError(Exception):
    pass


def crash_before(original: Callable[..., Any], *_: Any) -> None:
    raise CrashError


def crash_after(original: Callable[..., Any], *args: Any) -> None:
    original(*args)
    raise CrashError


@pytest.mark.parametrize(
    ("owner", "method", "crash"),
    [
        pytest.param(Checkpoint, "commit_manifest", crash_before, id="before the manifest"),
        pytest.param(Checkpoint, "commit_manifest", crash_after, id="after the manifest"),
        pytest.param(EpochLoop, "_publish_now", crash_before, id="before publishing"),
        pytest.param(EpochLoop, "_publish_now", crash_after, id="after publishing"),
    ],
)
def test_a_new_source_is_read_once_when_its_first_epoch_crashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, crash: Callable[..., None]
) -> None:
    run(tmp_path, streams(tmp_path, 0, available=150))
    original = getattr(owner, method)
    new = streams(tmp_path, 0, 1, available=250)
    for _ in range(2):
        monkeypatch.setattr(owner, method, lambda *args: crash(original, *args))
        with pytest.raises(CrashError):
            run(tmp_path, new)
    monkeypatch.undo()
    run(tmp_path, new)
    assert summed(tmp_path) == values({0: 250, 1: 250})


def test_a_new_source_takes_no_watermark_back_and_what_it_has_for_closed_windows_is_late(tmp_path: Path) -> None:
    """Source 0 is 30 s on and the windows up to there are closed: source 1 begins with their times."""
    run(tmp_path, streams(tmp_path, 0, available=3000, kind="windows"))
    before = last_manifest(tmp_path).input_us["add up/Group"]
    assert before == Timestamp(counting_job.watermark_s(3000)).micros
    result = run(tmp_path, streams(tmp_path, 0, 1, available=5000, kind="windows"))
    expected: Counter[tuple[int, int]] = Counter()
    late = 0
    for source in (0, 1):
        for index in range(5000):
            key, value, second = counting_job.event(source, index)
            if source == 1 and second // 10 * 10 + 10 <= counting_job.watermark_s(3000):
                late += 1
            elif second // 10 * 10 + 10 <= counting_job.watermark_s(5000):
                expected[key, second // 10 * 10] += value
    rows = counting_job.published(tmp_path / "windows")
    assert Counter({(key, start): total for key, start, total in rows}) == expected
    assert len(rows) == len(expected), "no window fired twice"
    (dropped,) = [
        counter.committed
        for counter in result.metrics().query()["counters"]
        if counter.key.metric.name == "droppedDueToLateness"
    ]
    assert 0 < dropped <= late  # lifting counts what is left of a bundle's elements


def test_timers_of_late_elements_of_a_new_source_fire_at_once(tmp_path: Path) -> None:
    """The watermark of the step is past them, and does not go back to where the source begins."""

    class PauseError(Exception):
        pass

    def pause(_: Any) -> None:
        raise PauseError

    run(tmp_path, streams(tmp_path, 0, available=3000, kind="quiet"))
    shown = len(counting_job.published(tmp_path / "quiet"))
    with pytest.raises(PauseError):
        run(tmp_path, streams(tmp_path, 0, 1, available=3000, kind="quiet"), on_epoch=pause)
    counts = Counter(counting_job.event(0, index)[0] for index in range(3000))
    late = Counter(counting_job.event(1, index)[0] for index in range(100))  # of the first epoch
    fired = counting_job.published(tmp_path / "quiet")[shown:]
    assert sorted(fired) == sorted([key, counts[key] + late[key]] for key in late)


def test_a_source_by_another_name_is_not_read_again_unless_that_is_wanted(tmp_path: Path) -> None:
    run(tmp_path, streams(tmp_path, 0, available=150))

    def renamed(p: beam.Pipeline) -> None:
        events = p | "renamed" >> beam.Create([0]) | "read 0" >> counts(150, 100)
        publish(events | "sums" >> beam.ParDo(counting_job.RunningSum()), "to sums", tmp_path / "sums")

    old = "source 0/FlatMap(<lambda at core.py:4094>)"
    change = changes(tmp_path, renamed)[old]
    assert (change.kind, change.loss) == (INCOMPATIBLE, "the note that it was read")
    assert "the source is gone while renamed/" in change.why
    with pytest.raises(CheckpointError, match="it would be read again"):
        run(tmp_path, renamed)
    assert summed(tmp_path) == values({0: 150})


def test_a_source_can_be_read_anew_by_new_names_if_the_old_ones_are_dropped(tmp_path: Path) -> None:
    run(tmp_path, streams(tmp_path, 0, available=150))
    anew = streams(tmp_path, 1, available=150, name="another")
    dropped = ["source 0/FlatMap(<lambda at core.py:4094>)", "read 0/Process"]
    with pytest.raises(CheckpointError) as told:
        run(tmp_path, anew)
    flags = [f"--drop_incompatible={step}" for step in dropped]
    assert all(f"--drop_incompatible='{step}'" in str(told.value.hint) for step in dropped)
    run(tmp_path, anew, *flags)
    run(tmp_path, anew, *flags)
    assert summed(tmp_path) == values({0: 150, 1: 150})


def test_a_stream_that_has_ended_takes_no_new_source(tmp_path: Path) -> None:
    def build(p: beam.Pipeline) -> None:
        _ = p | "script" >> Script([step(at(1, ("a", 1)))])

    def more(p: beam.Pipeline) -> None:
        build(p)
        _ = p | "start" >> beam.Impulse() | "more" >> beam.Map(len)

    assert run(tmp_path, build).state == "DONE"
    with pytest.raises(CheckpointError, match="more: a new source would never run: the stream was drained, or has"):
        run(tmp_path, more)


def test_a_side_input_from_a_new_source_is_complete_before_it_is_seen(tmp_path: Path) -> None:
    def build(available: int, factor: int | None) -> Build:
        def inner(p: beam.Pipeline) -> None:
            events = p | "source" >> beam.Create([0]) | "read" >> counts(available, 50)
            sides = []
            if factor is not None:
                sides = [beam.pvalue.AsSingleton(p | "factor" >> beam.Create([factor]))]
            look = beam.Map(lambda pair, by=1: b"[%d, %d]" % (pair[1], by), *sides).with_output_types(bytes)
            publish(events | "look" >> look, "out", tmp_path)

        return inner

    run(tmp_path, build(60, None))
    run(tmp_path, build(120, 7))
    assert sorted(counting_job.published(tmp_path)) == [[4 * i, 1 if i < 60 else 7] for i in range(120)]


# ---- steps before the first one that has work
def test_a_step_that_is_new_and_gets_nothing_does_not_hold_those_behind_it(tmp_path: Path) -> None:
    """All that comes before a source runs in the first epoch only; by another name it has no watermark."""

    def build(name: str, available: int) -> Build:
        def inner(p: beam.Pipeline) -> None:
            sources = p | "source" >> beam.Create([0]) | "spread" >> beam.Reshuffle() | name >> beam.Map(lambda x: x)
            events = sources | "read" >> counts(available, 500)
            windowed = events | "windows" >> beam.WindowInto(window.FixedWindows(10))
            sums = windowed | "add up" >> beam.CombinePerKey(sum) | "format" >> beam.Map(counting_job._with_window)
            publish(sums, "to windows", tmp_path / "windows")

        return inner

    run(tmp_path, build("old", 1500))
    watermarks: list[int] = []
    run(
        tmp_path,
        build("new", 4500),
        on_epoch=lambda _: watermarks.append(last_manifest(tmp_path).output_us["add up/Group"]),
    )
    assert watermarks == [second * 1_000_000 for second in (19, 24, 29, 34, 39, 44)]
    assert {start for _, start, _ in counting_job.published(tmp_path / "windows")} == {0, 10, 20, 30}
