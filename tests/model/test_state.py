"""State of stateful DoFns. Programming guide, chapter 11: state is per key and window, and goes with the window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import StrUtf8Coder, VarIntCoder
from apache_beam.transforms.userstate import (
    BagStateSpec,
    CombiningValueStateSpec,
    OrderedListStateSpec,
    ReadModifyWriteStateSpec,
    SetStateSpec,
)
from apache_beam.transforms.window import FixedWindows, Sessions
from apache_beam.utils.timestamp import Timestamp

from spark_jobs.beam_runner.checkpoint.progress import last_manifest
from tests.model.script import Script, Step, at, step
from tests.model.stream import Build, Stage, on_spark

Pair = tuple[str, int]


def stateful(stage: Stage, script: list[Step], dofn: beam.DoFn, window: Any = None, *, stays: bool = False) -> Build:
    def build(p: beam.Pipeline) -> None:
        pairs = p | Script(script, stays=stays)
        if window is not None:
            pairs = pairs | beam.WindowInto(window)
        stage.collect(pairs | "stateful" >> beam.ParDo(dofn))

    return build


class Last(beam.DoFn):
    """(key, value before, value now); a value of 0 clears."""

    STATE = ReadModifyWriteStateSpec("last", VarIntCoder())

    def process(self, pair: Pair, state: Any = beam.DoFn.StateParam(STATE)) -> Iterator[Any]:
        yield pair[0], state.read(), pair[1]
        if pair[1]:
            state.write(pair[1])
        else:
            state.clear()


def test_a_value_is_kept_per_key(stage: Stage) -> None:
    script = [
        step(at(1, ("a", 1)), at(1, ("b", 10))),
        step(at(2, ("a", 2))),
        step(at(3, ("b", 20)), at(3, ("a", 0))),
        step(at(4, ("a", 4)), at(4, ("b", 40))),
    ]
    stage.play(stateful(stage, script, Last()))
    assert [(o.epoch, o.value) for o in stage.outs()] == [
        (0, ("a", None, 1)),
        (0, ("b", None, 10)),
        (1, ("a", 1, 2)),
        (2, ("a", 2, 0)),
        (2, ("b", 10, 20)),
        (3, ("a", None, 4)),
        (3, ("b", 20, 40)),
    ]


@on_spark
def test_a_value_is_kept_per_window(stage: Stage) -> None:
    script = [
        step(at(1, ("a", 1)), at(11, ("a", 2)), watermark=5),
        step(at(12, ("a", 3)), at(2, ("a", 4)), watermark=11),
        step(at(13, ("a", 5)), at(21, ("a", 6)), watermark=12),
    ]
    stage.play(stateful(stage, script, Last(), FixedWindows(10)))
    assert [(o.epoch, o.value, o.window) for o in stage.outs()] == [
        (0, ("a", None, 1), (0, 10)),
        (0, ("a", None, 2), (10, 20)),
        (1, ("a", 1, 4), (0, 10)),
        (1, ("a", 2, 3), (10, 20)),
        (2, ("a", 3, 5), (10, 20)),
        (2, ("a", None, 6), (20, 30)),
    ]


def test_outputs_keep_time_and_window_of_their_element(whole: Stage) -> None:
    whole.play(stateful(whole, [step(at(7, ("a", 1)), watermark=3), step()], Last(), FixedWindows(10)))
    assert [(o.at, o.window) for o in whole.outs()] == [(7, (0, 10))]


class Bag(beam.DoFn):
    """Adds; at a negative value reads all and clears."""

    STATE = BagStateSpec("bag", VarIntCoder())

    def process(self, pair: Pair, bag: Any = beam.DoFn.StateParam(STATE)) -> Iterator[Any]:
        if pair[1] >= 0:
            bag.add(pair[1])
            return
        yield pair[0], sorted(bag.read())
        bag.clear()
        bag.add(-pair[1])


@on_spark
def test_a_bag_keeps_equal_values_and_clears(stage: Stage) -> None:
    script = [
        step(at(1, ("a", 5)), at(1, ("b", 1))),
        step(at(2, ("a", 5)), at(2, ("a", 7))),
        step(at(3, ("a", -9))),
        step(at(4, ("a", 3))),
        step(at(5, ("a", -1)), at(5, ("b", -1))),
    ]
    stage.play(stateful(stage, script, Bag()))
    assert [(o.epoch, o.value) for o in stage.outs()] == [
        (2, ("a", [5, 5, 7])),
        (4, ("a", [3, 9])),
        (4, ("b", [1])),
    ]


class Distinct(beam.DoFn):
    STATE = SetStateSpec("set", VarIntCoder())

    def process(self, pair: Pair, seen: Any = beam.DoFn.StateParam(STATE)) -> Iterator[Any]:
        if pair[1] < 0:
            seen.clear()
        else:
            seen.add(pair[1])
        yield pair[0], sorted(seen.read())


def test_a_set_keeps_each_value_once(stage: Stage) -> None:
    script = [
        step(at(1, ("a", 5))),
        step(at(1, ("a", 5)), at(1, ("a", 6))),
        step(at(1, ("a", -1))),
        step(at(1, ("a", 6))),
    ]
    stage.play(stateful(stage, script, Distinct()))
    assert stage.values() == [("a", [5]), ("a", [5]), ("a", [5, 6]), ("a", []), ("a", [6])]


class Spread(beam.CombineFn):
    """Largest minus least: the accumulator is not what comes out, so it has to be kept as it is.

    (`MeanCombineFn` will not do: Beam merges no accumulators at first, and it cannot.)
    """

    def create_accumulator(self) -> list[int]:
        return []

    def add_input(self, accumulator: list[int], value: int) -> list[int]:
        return self.merge_accumulators([accumulator, [value]])

    def merge_accumulators(self, accumulators: Iterable[list[int]]) -> list[int]:
        values = [value for accumulator in accumulators for value in accumulator]
        return [min(values), max(values)] if values else []

    def extract_output(self, accumulator: list[int]) -> int:
        return accumulator[1] - accumulator[0]


class Combined(beam.DoFn):
    SUM = CombiningValueStateSpec("sum", sum)
    SPREAD = CombiningValueStateSpec("spread", combine_fn=Spread())

    def process(
        self, pair: Pair, total: Any = beam.DoFn.StateParam(SUM), spread: Any = beam.DoFn.StateParam(SPREAD)
    ) -> Iterator[Any]:
        total.add(pair[1])
        spread.add(pair[1])
        yield pair[0], total.read(), spread.read()


def test_combining_state_keeps_accumulators(stage: Stage) -> None:
    script = [step(at(1, ("a", 1))), step(at(1, ("a", 2)), at(1, ("b", 8))), step(at(1, ("a", 6)))]
    stage.play(stateful(stage, script, Combined()))
    assert stage.values() == [("a", 1, 0), ("a", 3, 1), ("b", 8, 0), ("a", 9, 5)]


class Ordered(beam.DoFn):
    """1..8: adds at that time. 10: reads [2, 5). 11: removes [2, 5). 12: clears. Gives all times after each."""

    STATE = OrderedListStateSpec("times", StrUtf8Coder())

    def process(self, pair: Pair, items: Any = beam.DoFn.StateParam(STATE)) -> Iterator[Any]:
        key, code = pair
        some: Any = items.read()
        if code == 10:
            some = items.read_range(Timestamp(2), Timestamp(5))
        elif code == 11:
            items.clear_range(Timestamp(2), Timestamp(5))
            some = items.read()
        elif code == 12:
            items.clear()
            some = items.read()
        else:
            items.add((Timestamp(code), f"v{code}"))
            some = items.read()
        yield key, code, ",".join(f"{int(t)}{v}" for t, v in some)


def test_an_ordered_list_is_read_and_cleared_by_time(stage: Stage) -> None:
    script = [
        step(at(1, ("a", 5)), at(1, ("a", 2))),
        step(at(1, ("a", 4)), at(1, ("a", 8))),
        step(at(1, ("a", 10))),
        step(at(1, ("a", 11))),
        step(at(1, ("a", 1))),
        step(at(1, ("a", 12))),
        step(at(1, ("a", 3))),
    ]
    stage.play(stateful(stage, script, Ordered()))
    assert [v[1:] for v in stage.values()] == [
        (5, "5v5"),
        (2, "2v2,5v5"),
        (4, "2v2,4v4,5v5"),
        (8, "2v2,4v4,5v5,8v8"),
        (10, "2v2,4v4"),
        (11, "5v5,8v8"),
        (1, "1v1,5v5,8v8"),
        (12, ""),
        (3, "3v3"),
    ]


class TwoCells(beam.DoFn):
    """Cells of one DoFn are separate; so are cells of the same name in two steps."""

    COUNT = ReadModifyWriteStateSpec("count", VarIntCoder())
    SUM = ReadModifyWriteStateSpec("sum", VarIntCoder())

    def process(
        self, pair: Pair, count: Any = beam.DoFn.StateParam(COUNT), total: Any = beam.DoFn.StateParam(SUM)
    ) -> Iterator[Any]:
        count.write((count.read() or 0) + 1)
        total.write((total.read() or 0) + pair[1])
        yield pair[0], total.read() * 100 + count.read()


def test_steps_and_cells_do_not_share_state(stage: Stage) -> None:
    script = [step(at(1, ("a", 2))), step(at(1, ("a", 3)))]

    def build(p: beam.Pipeline) -> None:
        pairs = p | Script(script)
        once = pairs | "first" >> beam.ParDo(TwoCells()).with_output_types(Pair)
        stage.collect(once, "first")
        stage.collect(once | "second" >> beam.ParDo(TwoCells()), "second")

    stage.play(build)
    assert stage.values("first") == [("a", 201), ("a", 502)]
    assert stage.values("second") == [("a", 20101), ("a", (201 + 502) * 100 + 2)]


@on_spark
def test_many_keys_in_many_groups(stage: Stage) -> None:
    keys = [f"key{i}" for i in range(100)]
    script = [step(*[at(1, (key, n + 1)) for key in keys]) for n in range(3)]
    stage.play(stateful(stage, script, Last()))
    assert stage.keyed() == [
        (key, before, now) for key in sorted(keys, key=repr) for before, now in ((None, 1), (1, 2), (2, 3))
    ]


def test_late_elements_see_the_state_until_the_window_expires(stage: Stage) -> None:
    script = [
        step(at(1, ("a", 1)), watermark=14),
        step(at(2, ("a", 2)), watermark=15),
        step(at(3, ("a", 3)), at(16, ("a", 4)), watermark=16),
        step(),
    ]

    def build(p: beam.Pipeline) -> None:
        windowed = p | Script(script) | beam.WindowInto(FixedWindows(10), allowed_lateness=5)
        stage.collect(windowed | beam.ParDo(Last()))

    stage.play(build)
    assert [(o.epoch, o.value, o.window) for o in stage.outs()] == [
        (0, ("a", None, 1), (0, 10)),
        (1, ("a", 1, 2), (0, 10)),
        (2, ("a", None, 4), (10, 20)),
    ]


@pytest.mark.parametrize("window", [FixedWindows(10), None], ids=["fixed", "global"])
def test_the_state_of_expired_windows_is_gone_from_the_checkpoint(stage: Stage, window: Any) -> None:
    script = [step(at(1, ("a", 1)), at(2, ("b", 2)), watermark=9), step(watermark=100), step(watermark=101)]
    stage.play(stateful(stage, script, Last(), window, stays=True))
    manifest = last_manifest(f"{stage.root}/checkpoint")
    assert manifest is not None
    kept = [meta.chain for meta in manifest.groups.get("stateful", {}).values() if meta.chain]
    assert bool(kept) == (window is None)


def test_state_on_merging_windows_is_refused(whole: Stage) -> None:
    """The model has no way to merge user state. Java refuses it at construction, Python leaves it to runners."""
    with pytest.raises(Exception, match=r"(?i)merg"):
        whole.play(stateful(whole, [step(at(1, ("a", 1)))], Last(), Sessions(5)))
