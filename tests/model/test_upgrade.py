"""A stream whose pipeline changes under way, with state, waiting elements and side inputs in its checkpoint.

Each test plays the old pipeline with the first half of its script, then the new one with all of it; what comes out of
both is compared with what is expected of the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.pvalue import AsList
from apache_beam.transforms.window import FixedWindows

from tests.model.dofns import AtTheEnd
from tests.model.script import Script, at, step
from tests.model.stream import Build, Stage, on_spark

Pair = tuple[str, int]
# The first half leaves an open window with two keys, an element that waits for the side input, and a timer.
MAIN = [
    step(at(1, ("a", 1)), at(2, ("b", 2)), watermark=5),
    step(at(11, ("a", 3)), at(3, ("a", 4)), watermark=8),
    step(at(12, ("b", 5)), at(4, ("b", 6)), watermark=15),
    step(at(13, ("a", 7)), watermark=40),
]
SIDE = [step(at(2, ("s", 10)), watermark=3), step(), step(at(4, ("s", 20)), watermark=8), step(watermark=40)]
EXTRA = [step(at(16, ("a", 100)), watermark=17), step(at(31, ("c", 200)), watermark=40)]
HALF = 2


def by_one(pair: Pair) -> Pair:
    return pair[0], pair[1]


def times_ten(pair: Pair) -> Pair:
    return pair[0], 10 * pair[1]


def pipeline(
    stage: Stage,
    steps: int,
    *,
    shape: Callable[[Pair], Pair] = by_one,
    before: Callable[[beam.Pipeline], Any] = lambda _: None,
    branch: Callable[[Any, Any], Any] = lambda _, __: None,
    more: Callable[[beam.Pipeline], list[Any]] = lambda _: [],
) -> Build:
    """Sums by window of a grouping and of a stateful DoFn, and what each element sees of the side input."""

    def build(p: beam.Pipeline) -> None:
        before(p)
        main = p | "main" >> Script(MAIN[:steps], stays=True)
        shaped = main | "shape" >> beam.Map(shape).with_output_types(Pair)
        events = [shaped, *more(p)] | "all" >> beam.Flatten() | "windows" >> beam.WindowInto(FixedWindows(10))
        side = p | "side" >> Script(SIDE[:steps], stays=True) | "values" >> beam.Values().with_output_types(int)
        sides = side | "side windows" >> beam.WindowInto(FixedWindows(10))
        stage.collect(events | "sums" >> beam.CombinePerKey(sum), "sums")
        stage.collect(events | "at the end" >> beam.ParDo(AtTheEnd()).with_output_types(Pair), "ends")
        looked = shaped | "look windows" >> beam.WindowInto(FixedWindows(10))
        stage.collect(looked | "look" >> beam.Map(lambda x, s: (*x, sorted(s)), AsList(sides)), "looks")
        branch(events, sides)

    return build


def first_half(stage: Stage) -> None:
    run(stage, pipeline(stage, HALF))
    assert stage.values("sums") == stage.values("ends") == stage.values("looks") == [], "all of it is in the checkpoint"


def run(stage: Stage, build: Build) -> None:
    """Until it is idle: with `restarts` the first epochs one by one, each on another number of tasks."""
    for tasks in (1, 3, 2, 3) if stage.restarts else ():
        stage.run(build, tasks, stop_after_epoch=True)
    stage.run(build, 2)


def summed(stage: Stage, label: str) -> list[Any]:
    return sorted((o.window, o.value) for o in stage.outs(label))


SUMS = [((0, 10), ("a", 5)), ((0, 10), ("b", 8)), ((10, 20), ("a", 10)), ((10, 20), ("b", 5))]
LOOKS = [
    *[("a", 1, [10, 20]), ("a", 3, []), ("a", 4, [10, 20]), ("a", 7, [])],
    *[("b", 2, [10, 20]), ("b", 5, []), ("b", 6, [10, 20])],
]


def in_front(p: beam.Pipeline) -> None:
    """Steps before all others, of other types: the numbers of collections and coders are others then."""
    names = p | "names" >> beam.Create([("x", "y")]) | "spread" >> beam.Reshuffle()
    _ = names | "count" >> beam.combiners.Count.PerKey()


def side_branch(events: Any, sides: Any) -> None:
    """New readers of what there is."""
    counts = events | "count events" >> beam.combiners.Count.PerKey()
    _ = counts | "see" >> beam.Map(lambda pair, s: (pair, s), AsList(sides))


def renamed(pair: Pair) -> Pair:
    key, value = pair
    return key, value


@on_spark
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"shape": lambda pair: tuple(pair)}, id="lambda body"),
        pytest.param({"shape": renamed}, id="renamed function"),
        pytest.param({"before": in_front}, id="other ids"),
        pytest.param({"branch": lambda events, _: events | "new" >> beam.GroupByKey()}, id="side branch"),
        pytest.param({"branch": side_branch}, id="new reader"),
    ],
)
def test_what_does_not_touch_stored_bytes_changes_nothing(stage: Stage, change: Any) -> None:
    first_half(stage)
    run(stage, pipeline(stage, len(MAIN), **change))
    assert summed(stage, "sums") == summed(stage, "ends") == SUMS
    assert sorted(stage.values("looks")) == LOOKS


def test_other_code_works_on_what_comes_and_on_what_was_kept_as_it_is(stage: Stage) -> None:
    """Values were shaped before they were stored."""
    first_half(stage)
    run(stage, pipeline(stage, len(MAIN), shape=times_ten))
    expected = [((0, 10), ("a", 5)), ((0, 10), ("b", 62)), ((10, 20), ("a", 73)), ((10, 20), ("b", 50))]
    assert summed(stage, "sums") == summed(stage, "ends") == expected


class FailsOnce(beam.DoFn):
    """Raises at the first element that it ever gets."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def process(self, element: Pair) -> Any:
        if not self.mark.exists():
            self.mark.touch()
            raise RuntimeError("once")
        yield element


@on_spark
def test_a_new_source_joins_what_is_there(stage: Stage) -> None:
    """Its first epoch fails once. Nothing of the old source is lost or repeated, and no window opens again."""

    def more(p: beam.Pipeline) -> list[Any]:
        script = p | "extra" >> Script(EXTRA, stays=True)
        return [script | "fails once" >> beam.ParDo(FailsOnce(stage.root / "failed")).with_output_types(Pair)]

    first_half(stage)
    build = pipeline(stage, len(MAIN), more=more)
    with pytest.raises(RuntimeError, match="once"):
        run(stage, build)
    run(stage, build)
    expected = [*SUMS[:2], ((10, 20), ("a", 110)), ((10, 20), ("b", 5)), ((30, 40), ("c", 200))]
    assert summed(stage, "sums") == summed(stage, "ends") == expected
    assert sorted(stage.values("looks")) == LOOKS
