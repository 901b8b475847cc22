"""Side inputs of a stream. Programming guide 4.4.3, and the pattern "slowly updating side inputs"."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.pvalue import AsDict, AsIter, AsList, AsMultiMap, AsSingleton
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, AfterProcessingTime, Repeatedly
from apache_beam.transforms.window import FixedWindows, GlobalWindows, SlidingWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from spark_jobs.beam_runner.bundles import compaction, operations, waiting
from spark_jobs.beam_runner.bundles.side_inputs import SideTable
from spark_jobs.beam_runner.checkpoint.checkpoint import Checkpoint
from spark_jobs.beam_runner.checkpoint.manifest import SidePart
from spark_jobs.beam_runner.checkpoint.progress import last_manifest, manifest_of
from spark_jobs.beam_runner.errors import WorkerLostError
from spark_jobs.beam_runner.transport.local import LocalTransport
from tests.model.dofns import AtTheEnd
from tests.model.script import Script, at, step
from tests.model.stream import Build, Stage, on_spark
from tests.model.test_splittable import Ranges

MAIN = [step(at(1, ("a", 1)), watermark=5), step(at(11, ("a", 2)), watermark=15), step(at(21, ("b", 3)))]


def timed(values: list[tuple[float, Any]]) -> Any:
    return beam.Create(values) | beam.MapTuple(lambda second, value: TimestampedValue(value, second))


def with_side(pair: tuple[str, int], side: Any) -> tuple[str, int, Any]:
    return pair[0], pair[1], sorted(side.items() if isinstance(side, dict) else side)


@pytest.mark.parametrize("view", [AsList, AsIter, AsDict], ids=lambda v: v.__name__)
def test_a_bounded_side_input_is_there_in_every_epoch(stage: Stage, view: Any) -> None:
    def build(p: beam.Pipeline) -> None:
        side = p | "side" >> beam.Create([("x", 7), ("y", 8)])
        stage.collect(p | Script(MAIN) | beam.Map(with_side, view(side)))

    stage.play(build)
    both = [("x", 7), ("y", 8)]
    assert [(o.epoch, o.value) for o in stage.outs()] == [
        (0, ("a", 1, both)),
        (1, ("a", 2, both)),
        (2, ("b", 3, both)),
    ]


def test_a_bounded_side_input_may_be_computed(stage: Stage) -> None:
    def build(p: beam.Pipeline) -> None:
        total = p | beam.Create([1, 2, 3]) | beam.CombineGlobally(sum)
        stage.collect(p | Script(MAIN) | beam.Map(lambda pair, n: (pair[0], pair[1] * n), AsSingleton(total)))

    stage.play(build)
    assert stage.values() == [("a", 6), ("a", 12), ("b", 18)]


@on_spark
def test_an_element_sees_its_own_window_of_the_side_input(stage: Stage) -> None:
    def build(p: beam.Pipeline) -> None:
        side = p | "side" >> timed([(2, 20), (3, 30), (12, 120), (25, 250)])
        side = side | "side windows" >> beam.WindowInto(FixedWindows(10))
        main = p | Script(MAIN) | "main windows" >> beam.WindowInto(FixedWindows(10))
        stage.collect(main | beam.Map(with_side, AsList(side)))

    stage.play(build)
    assert stage.values() == [("a", 1, [20, 30]), ("a", 2, [120]), ("b", 3, [250])]


def test_a_window_maps_to_the_side_window_that_its_end_is_in(whole: Stage) -> None:
    """By default a main window sees the side window of its last instant."""
    script = [step(at(1, ("a", 1)), at(7, ("a", 2)), at(12, ("a", 3)), watermark=5), step()]

    def build(p: beam.Pipeline) -> None:
        side = p | "side" >> timed([(2, 20), (12, 120)]) | "side windows" >> beam.WindowInto(FixedWindows(10))
        main = p | Script(script) | "main windows" >> beam.WindowInto(SlidingWindows(5, 5, offset=3))
        whole.collect(main | beam.Map(with_side, AsList(side)))

    whole.play(build)
    # Main windows: [-2, 3), [3, 8), [8, 13); the last one ends in [10, 20).
    assert whole.values() == [("a", 1, [20]), ("a", 2, [20]), ("a", 3, [120])]


def test_a_side_window_without_elements_is_empty_or_the_default(whole: Stage) -> None:
    def build(p: beam.Pipeline) -> None:
        side = p | "side" >> timed([(12, 120)]) | "side windows" >> beam.WindowInto(FixedWindows(10))
        main = p | Script(MAIN) | "main windows" >> beam.WindowInto(FixedWindows(10))
        whole.collect(main | "lists" >> beam.Map(with_side, AsList(side)), "lists")
        single = main | "single" >> beam.Map(lambda pair, n: (*pair, n), AsSingleton(side, default_value=-1))
        whole.collect(single, "single")

    whole.play(build)
    assert whole.values("lists") == [("a", 1, []), ("a", 2, [120]), ("b", 3, [])]
    assert whole.values("single") == [("a", 1, -1), ("a", 2, 120), ("b", 3, -1)]


def fixed_side(p: beam.Pipeline, side_script: Any, main_script: Any, lateness: float = 0) -> Any:
    """Main and side in windows of ten seconds; -> (key, n, side values)."""
    side = p | "side" >> Script(side_script) | beam.Values()
    side = side | "side windows" >> beam.WindowInto(FixedWindows(10), allowed_lateness=lateness)
    main = p | "main" >> Script(main_script)
    main = main | "main windows" >> beam.WindowInto(FixedWindows(10), allowed_lateness=lateness)
    return main | "look up" >> beam.Map(with_side, AsList(side))


SIDE = [
    step(at(2, ("s", 20)), watermark=3),
    step(at(4, ("s", 40)), at(13, ("s", 130)), watermark=6),
    step(watermark=10),
    step(watermark=18),
    step(),
]
WAITING = [
    step(at(1, ("a", 1)), watermark=1),
    step(at(3, ("b", 2)), at(11, ("a", 3)), watermark=25),
    step(),
    step(),
    step(),
]


@on_spark
def test_an_element_waits_for_its_window_of_the_side_input(stage: Stage) -> None:
    stage.play(lambda p: stage.collect(fixed_side(p, SIDE, WAITING)))
    assert [(o.epoch, o.value, o.at, o.window) for o in stage.outs()] == [
        (2, ("a", 1, [20, 40]), 1, (0, 10)),
        (2, ("b", 2, [20, 40]), 3, (0, 10)),
        (4, ("a", 3, [130]), 11, (10, 20)),
    ]


def test_what_waits_is_not_written_again_while_another_side_input_is_ahead(whole: Stage) -> None:
    side = [step(watermark=5 + n / 100) for n in range(8)] + [step()]
    script = [step(at(1, ("a", 1)), watermark=2)] + [step(watermark=3)] * 8

    def build(p: beam.Pipeline) -> None:
        tens = FixedWindows(10)
        views = [
            AsList(p | "bounded" >> beam.Create([1])),
            AsList(p | "ahead" >> Script([step(watermark=90 + n) for n in range(9)]) | "w1" >> beam.WindowInto(tens)),
            AsList(p | "behind" >> Script(side) | "w2" >> beam.WindowInto(tens)),
        ]
        main = p | "main" >> Script(script) | "main windows" >> beam.WindowInto(tens)
        whole.collect(main | beam.Map(lambda pair, *_: pair, *views))

    whole.play(build)
    assert [(o.epoch, o.value) for o in whole.outs()] == [(8, ("a", 1))]
    checkpoint = Checkpoint(f"{whole.root}/checkpoint")
    waiting = [manifest_of(checkpoint, epoch).waiting for epoch in checkpoint.epochs()]
    assert len([some for some in waiting if some]) > 3
    assert len({entry.file for some in waiting for entry in some}) == 1


def test_what_waits_for_a_side_input_holds_the_watermark(stage: Stage) -> None:
    """Main's own watermark is past the window long before; nothing may come late to the grouping behind it."""

    def build(p: beam.Pipeline) -> None:
        looked_up = fixed_side(p, SIDE, WAITING)
        counts = looked_up | beam.Map(lambda row: ("n", 1))
        stage.collect(counts | "twos" >> beam.WindowInto(FixedWindows(2)) | beam.CombinePerKey(sum))

    stage.play(build)
    assert stage.panes() == [
        (2, ("n", 1), (0, 2), "ON_TIME"),
        (2, ("n", 1), (2, 4), "ON_TIME"),
        (4, ("n", 1), (10, 12), "ON_TIME"),
    ]


@pytest.mark.parametrize("key", ["b", "d"])
def test_a_window_that_was_given_up_takes_no_element_while_other_keys_wait(stage: Stage, key: str) -> None:
    """Key "a" waits and holds the watermark of its task and of the step; the task of "d" goes on for now."""
    side = [step(at(1, ("s", 1)), watermark=10)] + [step()] * 4
    script = [
        step(at(1, (key, 1)), at(12, ("a", 5)), watermark=2),
        step(watermark=50),
        step(at(3, (key, 100)), watermark=51),  # past the window and the lateness
        step(),
        step(),
    ]

    def build(p: beam.Pipeline) -> None:
        view = AsList(p | "side" >> Script(side) | "side windows" >> beam.WindowInto(FixedWindows(10)))
        main = p | "main" >> Script(script) | "main windows" >> beam.WindowInto(FixedWindows(10), allowed_lateness=5)
        stage.collect(main | beam.ParDo(SumAtTheEnd(), view).with_output_types(tuple[str, int]))

    stage.play(build)
    sums = [value for value in stage.values() if value[0] == key]
    dropped = stage.counters().get("droppedDueToLateness", 0)
    assert (sums, dropped) in [([(key, 1)], 1), ([(key, 1), (key, 101)], 0)]


class SumAtTheEnd(AtTheEnd):
    """With a side input that it does not look at."""

    def process(  # type: ignore[override]
        self,
        pair: tuple[str, int],
        _side: list[Any],
        window: Any = beam.DoFn.WindowParam,
        bag: Any = beam.DoFn.StateParam(AtTheEnd.BAG),
        end: Any = beam.DoFn.TimerParam(AtTheEnd.END),
    ) -> None:
        super().process(pair, window, bag, end)


def test_a_side_window_that_stays_empty_lets_its_elements_go(stage: Stage) -> None:
    script = [step(watermark=3), step(watermark=11), step()]
    main = [step(at(1, ("a", 1)), watermark=1), step(), step()]
    stage.play(lambda p: stage.collect(fixed_side(p, script, main)))
    assert [(o.epoch, o.value) for o in stage.outs()] == [(1, ("a", 1, []))]


def test_late_elements_still_see_their_side_window(stage: Stage) -> None:
    side = [step(at(2, ("s", 20)), watermark=12), step(at(13, ("s", 130)), watermark=14), step(watermark=15), step()]
    main = [step(watermark=12), step(at(1, ("a", 1)), watermark=13), step(watermark=14), step()]
    stage.play(lambda p: stage.collect(fixed_side(p, side, main, lateness=5)))
    assert [(o.epoch, o.value) for o in stage.outs()] == [(1, ("a", 1, [20]))]


@pytest.mark.parametrize("ended", [False, True], ids=["side goes on", "side has ended"])
def test_elements_of_windows_that_have_expired_are_dropped_before_they_see_an_empty_side_input(
    stage: Stage, ended: bool
) -> None:
    side = [step(at(2, ("s", 20)), watermark=20), *([] if ended else [step(watermark=20)] * 2), step()]
    main = [
        step(at(1, ("a", 1)), at(3, ("a", 2)), watermark=20),
        step(at(4, ("late", 3)), at(21, ("b", 4)), at(14, ("late", 5)), watermark=21),
        step(at(5, ("late", 6)), at(16, ("in time", 7)), watermark=22),
        step(),
    ]
    stage.play(lambda p: stage.collect(fixed_side(p, side, main, lateness=5)))
    assert [o.value for o in stage.outs() if o.value[1] < 4] == [("a", 1, [20]), ("a", 2, [20])]
    assert sorted(o.value for o in stage.outs() if o.value[1] > 3) == [
        ("b", 4, []),
        ("in time", 7, []),
        ("late", 5, []),
    ]
    assert stage.counters()["droppedDueToLateness"] == 2


@pytest.mark.parametrize(("view", "seen"), [(AsList, [7]), (AsSingleton, 7)], ids=["list", "singleton"])
def test_no_element_is_too_late_for_a_bounded_side_input(stage: Stage, view: Any, seen: Any) -> None:
    """It does not grow, so no part of it needs to be forgotten."""
    script = [
        step(at(1, ("a", 1)), watermark=50),
        step(watermark=51),
        step(at(2, ("late", 2)), watermark=52),
        step(),
    ]

    def build(p: beam.Pipeline) -> None:
        side = p | timed([(1, 7)]) | "side windows" >> beam.WindowInto(FixedWindows(10))
        main = p | Script(script) | beam.Reshuffle() | "main windows" >> beam.WindowInto(FixedWindows(10))
        stage.collect(main | beam.Map(lambda pair, side: (*pair, side), view(side)))

    stage.play(build)
    assert stage.values() == [("a", 1, seen), ("late", 2, seen)]


class OneAnEpoch(beam.DoFn):
    """(name, n) -> (name, 0, side) .. (name, n - 1, side), each 30 s after the one before."""

    def process(
        self,
        pair: tuple[str, int],
        side: list[int],
        tracker: Any = beam.DoFn.RestrictionParam(Ranges()),
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider()),
    ) -> Iterable[Any]:
        index = tracker.current_restriction().start
        if tracker.try_claim(index):
            yield TimestampedValue((pair[0], index, side), 30 * index)
            watermark.set_watermark(Timestamp(30 * (index + 1)))
            tracker.defer_remainder()


def restriction_with_side(stage: Stage, side_script: Any) -> Build:
    def build(p: beam.Pipeline) -> None:
        side = p | "side" >> Script(side_script) | beam.Values() | "side windows" >> beam.WindowInto(FixedWindows(10))
        main = p | timed([(1, ("a", 4))]) | "main windows" >> beam.WindowInto(FixedWindows(10))
        stage.collect(main | beam.ParDo(OneAnEpoch(), AsList(side)))

    return build


def test_a_restriction_sees_the_side_window_of_its_element_in_all_its_epochs(stage: Stage) -> None:
    """What it emits, and with it the watermark behind it, goes on; its element stays where it is."""
    side = [step(at(2, ("s", 7)), watermark=10), *(step(watermark=10 + 30 * n) for n in range(1, 6)), step()]
    stage.play(restriction_with_side(stage, side))
    assert [o.value for o in stage.outs()] == [("a", n, [7]) for n in range(4)]


def lose_once(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """The first attempt of the epoch is lost when all its tasks have run."""
    run, lost = LocalTransport.run, list[int]()

    def run_and_lose(self: LocalTransport, plan: Any, order: Any, *rest: Any) -> Any:
        reports = run(self, plan, order, *rest)
        if order.epoch == epoch and not lost:
            lost.append(epoch)
            raise WorkerLostError("Executor 3 is gone.")
        return reports

    monkeypatch.setattr(LocalTransport, "run", run_and_lose)


def test_what_a_lost_attempt_added_to_a_side_input_is_taken_back_and_nothing_else(
    whole: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It added to a window that the watermark had passed, and that a restriction still looks at."""
    side = [step(at(2, ("s", 7)), watermark=40), step(watermark=50), step(at(3, ("s", 8))), step(), step(), step()]
    lose_once(monkeypatch, 2)
    whole.play(restriction_with_side(whole, side))
    seen = [o.value[2] for o in whole.outs()]
    assert seen == [[7]] * seen.count([7]) + [[7, 8]] * seen.count([7, 8])
    assert len(seen) == 4
    assert seen.count([7, 8]) >= 2


def test_what_a_lost_attempt_added_to_a_bounded_side_input_is_taken_back_and_nothing_else(
    whole: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_once(monkeypatch, 2)

    class Grow(beam.DoFn):
        """Without a promise of its watermark, and all at one time."""

        def process(self, pair: tuple[str, int], tracker: Any = beam.DoFn.RestrictionParam(Ranges())) -> Iterable[Any]:
            index = tracker.current_restriction().start
            if tracker.try_claim(index):
                yield TimestampedValue(index, 1)
                tracker.defer_remainder()

    def build(p: beam.Pipeline) -> None:
        side = p | timed([(1, ("s", 4))]) | "grow" >> beam.ParDo(Grow()).with_output_types(int)
        main = p | Script([step(watermark=50), *[step()] * 4, step(at(2, ("late", 1))), step()]) | beam.Reshuffle()
        windows = FixedWindows(10)
        view = AsList(side | "side windows" >> beam.WindowInto(windows))
        whole.collect(main | "main windows" >> beam.WindowInto(windows) | beam.Map(with_side, view))

    whole.play(build)
    assert whole.values() == [("late", 1, [0, 1, 2, 3])]


SEEN: list[int] = []


def note(pair: tuple[str, int], _: list[int]) -> tuple[str, int]:
    SEEN.append(pair[1])
    return pair


def test_what_waited_comes_in_the_order_in_which_it_came(whole: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """From files of several epochs, each in several portions, and before what comes when the side input is there."""
    monkeypatch.setattr(operations, "CHUNK_BYTES", 1)
    monkeypatch.setattr(waiting, "PORTION_BYTES", 40)
    SEEN.clear()
    side = [step(), step(), step(at(1, ("s", 1)), watermark=100), step()]
    main = [step(*(at(1, ("a", 4 * epoch + n)) for n in range(4)), watermark=1) for epoch in range(3)]

    def build(p: beam.Pipeline) -> None:
        values = p | "side" >> Script(side) | beam.Values() | "side windows" >> beam.WindowInto(FixedWindows(10))
        pairs = p | "main" >> Script(main) | "main windows" >> beam.WindowInto(FixedWindows(10))
        whole.collect(pairs | beam.Map(note, AsList(values)))

    whole.run(build, 1)
    assert list(range(12)) == SEEN


def test_a_side_input_that_changes_now_and_then(stage: Stage) -> None:
    """The slowly updating pattern: a global window that fires for each element; main sees the latest pane."""
    side_script = [step(at(1, ("s", 10)), watermark=1), step(), step(), step(at(2, ("s", 20)))] + [step()] * 4
    main_script = [step(), step(), step(at(1, ("a", 1))), step(), step(), step(), step(at(1, ("a", 2))), step()]

    def build(p: beam.Pipeline) -> None:
        side = (
            p
            | "side" >> Script(side_script)
            | beam.Values()
            | "each"
            >> beam.WindowInto(
                GlobalWindows(), trigger=Repeatedly(AfterCount(1)), accumulation_mode=AccumulationMode.DISCARDING
            )
            | "latest" >> beam.CombineGlobally(max).without_defaults()
        )
        main = p | "main" >> Script(main_script)
        stage.collect(main | beam.Map(lambda pair, n: (*pair, n), AsSingleton(side)))

    stage.play(build)
    assert stage.values() == [("a", 1, 10), ("a", 2, 20)]


UPDATES = 20


def test_each_element_of_an_ungrouped_side_input_with_a_trigger_replaces_the_one_before(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind Beam's `WatchFilePattern`, which hands RunInference a new model."""
    monkeypatch.setattr(compaction, "MOST_PARTS", 1)
    side_script = [step(at(n, ("s", 10 * n)), watermark=n) for n in range(8)] + [step()]
    main_script = [step(at(n, ("a", n))) for n in range(8)] + [step()]

    def build(p: beam.Pipeline) -> None:
        side = p | "side" >> Script(side_script, stays=True) | beam.Values()
        side = side | "side windows" >> beam.WindowInto(
            GlobalWindows(), trigger=Repeatedly(AfterProcessingTime(1)), accumulation_mode=AccumulationMode.DISCARDING
        )
        stage.collect(p | "main" >> Script(main_script) | beam.Map(lambda pair, n: (*pair, n), AsSingleton(side)))

    stage.play(build)
    seen = {n: newest for _, n, newest in stage.values()}
    assert sorted(seen) == list(range(8))
    assert all(newest in range(0, 80, 10) for newest in seen.values())
    assert [seen[n] for n in range(8)] == sorted(seen.values()), "never an older one again"
    assert seen[7] == 70


def each_update(p: beam.Pipeline) -> Any:
    """(k0, 0), (k1, 1), (k2, 2), (k0, 3) .. in the global window, one an epoch."""
    updates = [step(at(n, (f"k{n % 3}", n)), watermark=n) for n in range(UPDATES)]
    return (
        p
        | "updates" >> Script(updates)
        | "each"
        >> beam.WindowInto(
            GlobalWindows(), trigger=Repeatedly(AfterCount(1)), accumulation_mode=AccumulationMode.DISCARDING
        )
    )


@on_spark
def test_what_views_see_survives_that_their_side_inputs_are_folded(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "MOST_PARTS", 1)

    def build(p: beam.Pipeline) -> None:
        updates = each_update(p)
        newest = updates | beam.Values() | "newest" >> beam.CombineGlobally(max).without_defaults()
        pair = newest | "pair" >> beam.Map(lambda n: (f"k{n % 3}", n)).with_output_types(tuple[str, int])
        last, every, both = (updates | name >> beam.CombinePerKey(max) for name in ("last", "every", "both"))
        main = p | "main" >> Script([step(at(n, ("m", n)), watermark=n) for n in range(UPDATES)])
        stage.collect(main | "1" >> beam.Map(lambda m, x: (m[1], x), AsSingleton(newest)), "newest")
        stage.collect(main | "0" >> beam.Map(lambda m, x: (m[1], x), AsSingleton(pair)), "pair")
        stage.collect(main | "2" >> beam.Map(lambda m, x: (m[1], x), AsDict(last)), "last")
        stage.collect(main | "3" >> beam.Map(lambda m, x: (m[1], x), AsList(every)), "every")
        stage.collect(main | "4" >> beam.Map(lambda m, x: (m[1], list(x["k0"])), AsMultiMap(both)), "both")
        stage.collect(main | "5" >> beam.Map(lambda m, x: (m[1], x), AsDict(both)), "both, last")

    stage.play(build)
    so_far = [[(f"k{n % 3}", n) for n in range(m + 1)] for m in range(UPDATES)]
    assert stage.values("newest") == [(m, m) for m in range(UPDATES)]
    assert stage.values("pair") == [(m, (f"k{m % 3}", m)) for m in range(UPDATES)]
    assert stage.values("last") == [(m, dict(so_far[m])) for m in range(UPDATES)]
    assert stage.values("every") == [(m, sorted(so_far[m])) for m in range(UPDATES)]
    assert stage.values("both") == [(m, list(range(0, m + 1, 3))) for m in range(UPDATES)]
    assert stage.values("both, last") == stage.values("last")
    for sides in kept_sides(stage):
        assert all(len(parts) <= 6 for parts in sides.values())
        sizes = {label.partition("/")[0]: sum(part.size_bytes for part in parts) for label, parts in sides.items()}
        assert sizes["newest"] <= sizes["every"] / 2  # 1 and up to 3 updates, of 10 and more
        assert sizes["last"] <= sizes["every"] * 0.7  # 3 keys and up to 3 updates


def kept_sides(stage: Stage) -> list[dict[str, tuple[SidePart, ...]]]:
    """What the manifests that are left keep of side inputs, but for the one of the stream's end."""
    checkpoint = Checkpoint(f"{stage.root}/checkpoint")
    return [manifest_of(checkpoint, epoch).sides for epoch in checkpoint.epochs()[:-1]]


def main_behind_side(stage: Stage) -> Build:
    """Windows of one element and one epoch; main is six windows behind."""

    def build(p: beam.Pipeline) -> None:
        side = p | "side" >> Script([step(at(n, ("s", n)), watermark=n + 1) for n in range(24)])
        main = p | "main" >> Script([step()] * 6 + [step(at(n, ("m", n)), watermark=n + 1) for n in range(24)])
        side, main = (pairs | f"{n}" >> beam.WindowInto(FixedWindows(1)) for n, pairs in enumerate((side, main)))
        stage.collect(main | beam.Map(with_side, AsList(side | beam.Values())))

    return build


def test_a_part_that_expires_takes_its_windows_and_no_others(whole: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[SideTable] = []
    windows: list[int] = []
    add = SideTable._add

    def counted(table: SideTable, chunk: bytes) -> None:
        decoded.append(table)
        add(table, chunk)
        windows.append(len(table._windows))

    monkeypatch.setattr(SideTable, "_add", counted)
    whole.play(main_behind_side(whole))
    assert whole.values() == [("m", n, [n]) for n in range(24)]
    assert len(decoded) == 24 * len(set(decoded)), "each element once"
    assert max(windows) <= 9


def test_folded_parts_keep_the_windows_that_are_open_and_few_others(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "MOST_PARTS", 1)
    stage.play(main_behind_side(stage))
    assert stage.values() == [("m", n, [n]) for n in range(24)]
    for sides in kept_sides(stage):
        ((_, parts),) = sides.items()
        assert sum(part.size_bytes for part in parts) < 12 * 32  # elements of 24 bytes, in files of 8 more


def test_side_windows_are_forgotten_when_no_element_can_ask_for_them(whole: Stage) -> None:
    windows, size = 30, 20_000

    def blob(row: tuple[str, int]) -> bytes:
        return bytes([row[1]]) * size

    side_script = [step(at(10 * n + 1, ("s", n)), watermark=10 * n + 9) for n in range(windows)]
    main_script = [step(at(10 * n + 2, ("a", n)), watermark=10 * n + 9) for n in range(windows)]

    def seen(pair: tuple[str, int], side: Iterable[bytes]) -> tuple[str, int, list[int]]:
        return *pair, [value[0] for value in side]

    def build(p: beam.Pipeline) -> None:
        side = p | "side" >> Script(side_script, stays=True) | beam.Map(blob)
        main = p | "main" >> Script(main_script, stays=True)
        fixed = FixedWindows(10)
        view = AsIter(side | "side windows" >> beam.WindowInto(fixed))
        whole.collect(main | "main windows" >> beam.WindowInto(fixed) | beam.Map(seen, view))

    whole.play(build)
    # The last window is still open on the side.
    assert whole.keyed() == [("a", n, [n]) for n in range(windows - 1)]
    manifest = last_manifest(f"{whole.root}/checkpoint")
    assert manifest is not None
    root = Checkpoint(f"{whole.root}/checkpoint").root
    live = sum(p.stat().st_size for p in root.rglob("*") if p.name in manifest.live_files())
    assert live < 10 * size


def test_a_list_of_a_keyed_aggregate_keeps_the_other_keys_when_one_fires_again(stage: Stage) -> None:
    """A pane holds the keys that fired, no others: none of them may be taken for the whole window."""
    side_script = [step(at(1, ("a", 1)), at(2, ("b", 10)), watermark=12), step(at(3, ("a", 2)), watermark=13)]
    main_script = [step(), step(), step(at(5, ("m", 0)), watermark=6), step()]

    def build(p: beam.Pipeline) -> None:
        windowed = beam.WindowInto(FixedWindows(10), allowed_lateness=100)
        sums = p | "side" >> Script(side_script) | "side windows" >> windowed | beam.CombinePerKey(sum)
        main = p | "main" >> Script(main_script) | "main windows" >> beam.WindowInto(FixedWindows(10))
        stage.collect(main | beam.Map(lambda pair, side: (pair[0], sorted(side)), AsList(sums | beam.Values())))

    stage.play(build)
    ((_, seen),) = stage.values()
    assert 10 in seen
