"""A changed pipeline on an old checkpoint: window functions and CombineFns, which are known by name and fields."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders.coders import FastPrimitivesCoder, IntervalWindowCoder
from apache_beam.transforms import combiners, trigger, userstate, window
from apache_beam.utils.timestamp import Duration

from spark_jobs.beam_runner.checkpoint.checkpoint import Checkpoint
from spark_jobs.beam_runner.errors import CheckpointError
from spark_jobs.beam_runner.planning.fn_words import fn_words
from spark_jobs.beam_runner.planning.upgrade import INCOMPATIBLE, UNCHANGED
from tests.unit.beam_runner.test_streaming import Build, last_manifest, run
from tests.unit.beam_runner.test_upgrade import changes, events, grouped, keeps, keyed


class Spans(window.NonMergingWindowFn):
    """Fixed windows that Beam does not know."""

    def __init__(self, size: int, unit: Any = Duration(1)) -> None:
        self.size, self.unit = size, unit

    def assign(self, context: Any) -> list[Any]:
        start = int(context.timestamp) // self.size * self.size
        return [window.IntervalWindow(start, start + self.size)]

    def get_window_coder(self) -> Any:
        return IntervalWindowCoder()


class Slices(Spans):
    """The same by another name."""


HERE = __name__


def write_words(root: Path, step: str, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """The last epoch once more, with what `step` depends on in other words."""
    last = last_manifest(root)
    words = json.dumps(change(json.loads(last.fingerprint[step])))
    again = replace(last, epoch=last.epoch + 1, fingerprint={**last.fingerprint, step: words})
    Checkpoint(root / "checkpoint").commit_manifest(again.epoch, again.to_json())


# ---- window functions
@pytest.mark.parametrize(
    ("new", "now"),
    [
        pytest.param(Slices(1000), "Slices(size=1000, unit=Duration(1))", id="class"),
        pytest.param(Spans(2000), "Spans(size=2000, unit=Duration(1))", id="field"),
        pytest.param(Spans(1000, Duration(2)), "Spans(size=1000, unit=Duration(2))", id="duration"),
    ],
)
def test_another_custom_window_function_is_refused(tmp_path: Path, new: Any, now: str) -> None:
    run(tmp_path, grouped(Spans(1000)))
    assert changes(tmp_path, grouped(Spans(1000)))["group"].kind == UNCHANGED
    change = changes(tmp_path, grouped(new))["group"]
    urn = "beam:window_fn:pickled_python:v1"
    was = f"{HERE}.Spans(size=1000, unit=Duration(1))"
    assert change.why == f"windows was {urn} {was}, is {urn} {HERE}.{now}"
    assert (change.kind, change.loss) == (INCOMPATIBLE, "state of 1 key groups")


def test_a_custom_window_function_that_was_noted_by_its_urn_alone_is_not_refused_for_that(tmp_path: Path) -> None:
    run(tmp_path, grouped(Spans(1000)))
    write_words(tmp_path, "group", lambda words: {**words, "windows": "beam:window_fn:pickled_python:v1"})
    assert changes(tmp_path, grouped(Spans(1000)))["group"].kind == UNCHANGED
    assert changes(tmp_path, grouped(window.FixedWindows(1000)))["group"].kind == INCOMPATIBLE
    run(tmp_path, grouped(Spans(1000)))
    assert changes(tmp_path, grouped(Spans(2000)))["group"].kind == INCOMPATIBLE


# ---- CombineFns
class Spread(beam.CombineFn):
    """Greatest and least, and whether they are `far` from each other."""

    def __init__(self, far: int) -> None:
        self.far = far

    def create_accumulator(self) -> list[int]:
        return []

    def add_input(self, accumulator: list[int], element: int) -> list[int]:
        return [min([*accumulator, element]), max([*accumulator, element])]

    def merge_accumulators(self, accumulators: Any) -> list[int]:
        values = [value for accumulator in accumulators for value in accumulator]
        return [min(values), max(values)] if values else []

    def extract_output(self, accumulator: list[int]) -> bool:
        return accumulator[-1] - accumulator[0] > self.far


def combined(fn: Any, **windowing: Any) -> Build:
    """A stream that leaves an open window of 'add'."""

    def build(p: beam.Pipeline) -> None:
        windowed = events(p, 50) | "windows" >> beam.WindowInto(window.FixedWindows(1000), **windowing)
        _ = windowed | "add" >> beam.CombinePerKey(fn)

    return build


def held(fn: Any) -> Build:
    return keyed(keeps(userstate.CombiningValueStateSpec("total", FastPrimitivesCoder(), fn)))


@pytest.mark.parametrize(
    ("old", "new", "was", "now"),
    [
        pytest.param(sum, max, "builtins.sum", "builtins.max", id="another function"),
        pytest.param(
            sum,
            combiners.MeanCombineFn(),
            "builtins.sum",
            "apache_beam.transforms.combiners.MeanCombineFn",
            id="another class",
        ),
        pytest.param(lambda values: sum(values), sum, f"{HERE}.<lambda>", "builtins.sum", id="a lambda"),
        pytest.param(Spread(3), Spread(4), f"{HERE}.Spread(far=3)", f"{HERE}.Spread(far=4)", id="another parameter"),
    ],
)
@pytest.mark.parametrize(
    ("step", "name", "build"),
    [
        pytest.param("add/Group", "combine", combined, id="a grouping"),
        pytest.param("step", "combine of total", held, id="a state"),
    ],
)
def test_another_combine_fn_is_refused_and_may_be_dropped(
    tmp_path: Path, old: Any, new: Any, was: str, now: str, step: str, name: str, build: Callable[[Any], Build]
) -> None:
    """Its accumulators would be mixed with those of the old one, or not be understood."""
    run(tmp_path, build(old))
    assert changes(tmp_path, build(old))[step].kind == UNCHANGED
    with pytest.raises(CheckpointError, match=re.escape(f"{step}: {name} was {was}, is {now} (state of 1 key groups)")):
        run(tmp_path, build(new))
    run(tmp_path, build(new), f"--drop_incompatible={step}")
    assert changes(tmp_path, build(new))[step].kind == UNCHANGED


def test_a_combine_fn_that_was_not_noted_is_not_refused_for_that(tmp_path: Path) -> None:
    run(tmp_path, combined(sum))
    write_words(tmp_path, "add/Group", lambda words: {k: v for k, v in words.items() if k != "combine"})
    assert changes(tmp_path, combined(sum))["add/Group"].kind == UNCHANGED
    run(tmp_path, combined(sum))
    assert changes(tmp_path, combined(max))["add/Group"].kind == INCOMPATIBLE


def test_other_code_by_the_same_name_goes_on(tmp_path: Path) -> None:
    run(tmp_path, combined(lambda values: sum(values)))
    assert changes(tmp_path, combined(lambda values: sum(list(values))))["add/Group"].kind == UNCHANGED


COUNTED = {
    "trigger": trigger.AfterWatermark(early=trigger.AfterCount(5)),
    "accumulation_mode": trigger.AccumulationMode.DISCARDING,
}
LATEST = {"timestamp_combiner": window.TimestampCombiner.OUTPUT_AT_LATEST}


@pytest.mark.parametrize("windowing", [COUNTED, LATEST])
def test_a_combine_fn_may_change_where_the_elements_themselves_are_stored(
    tmp_path: Path, windowing: dict[str, Any]
) -> None:
    run(tmp_path, combined(sum, **windowing))
    assert changes(tmp_path, combined(sum, **windowing))["add/Group"].why.startswith("finds state of")
    assert changes(tmp_path, combined(max, **windowing))["add/Group"].kind == UNCHANGED
    run(tmp_path, combined(max, **windowing))


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        pytest.param({}, COUNTED, "trigger was default { }, is after_end_of_window", id="trigger"),
        pytest.param(COUNTED, {}, "trigger was after_end_of_window { .* }, is default { }", id="trigger back"),
        pytest.param({}, LATEST, "timestamp was end_of_window, is latest_in_pane", id="timestamp"),
    ],
)
def test_other_windowing_that_makes_a_combine_store_elements_is_the_reason(
    tmp_path: Path, old: dict[str, Any], new: dict[str, Any], why: str
) -> None:
    run(tmp_path, combined(sum, **old))
    found = changes(tmp_path, combined(sum, **new))
    assert [step for step, change in found.items() if change.kind == INCOMPATIBLE] == ["add/Group"]
    assert re.search(why, found["add/Group"].why)
    run(tmp_path, combined(sum, **new), "--drop_incompatible=add/Group")


# ---- words
def test_words_of_functions_are_the_same_in_every_run() -> None:
    top = "apache_beam.transforms.combiners.TopCombineFn"
    assert fn_words(combiners.TopCombineFn(3, key=len)) == f"{top}(_compare=_operator.lt, _key=builtins.len, _n=3)"
    assert fn_words(beam.CombineFn.from_callable(partial(pow, exp=2))) == (
        "functools.partial(args=[], func=builtins.pow, keywords={'exp': 2})"
    )
    spans = Spans(1, {"b": {2.5, 1}, "a": (None, object())})
    assert fn_words(spans) == f"{HERE}.Spans(size=1, unit={{'a': [None, builtins.object], 'b': {{1, 2.5}}}})"
    hinted = Spread(3).with_output_types(bool)
    assert fn_words(hinted) == f"{HERE}.Spread(far=3)"
    assert fn_words(Spans(1, [Spread(1), max])) == f"{HERE}.Spans(size=1, unit=[{HERE}.Spread(far=1), builtins.max])"


def test_very_many_fields_are_summed_up() -> None:
    words = {fn_words(Spans(1, list(range(n)))) for n in (1000, 1001)}
    assert len(words) == 2
    assert max(map(len, words)) < 100
