"""Side inputs in an upgrade: what is stored and what waits is read by the coder that wrote it, or not at all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsDict, AsIter, AsList, AsMultiMap, AsSingleton
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, Repeatedly
from apache_beam.transforms.window import FixedWindows, GlobalWindows

from spark_jobs.beam_runner import SparkRunner
from spark_jobs.beam_runner.checkpoint.manifest import Manifest
from spark_jobs.beam_runner.checkpoint.progress import last_manifest
from spark_jobs.beam_runner.errors import CheckpointError
from spark_jobs.beam_runner.planning.upgrade import INCOMPATIBLE, UNCHANGED, Change, compare, refused
from tests.model.script import Script, Step, at, step
from tests.model.stream import Build, Stage

# Main is far ahead of the side input: its first element waits for the side window [0, 10).
SIDE = [step(at(2, ("s", 20)), watermark=3)]
MAIN = [step(at(1, ("a", 1)), watermark=5)]
SIDE_ON, MAIN_ON = [*SIDE, step(at(4, ("s", 40)), watermark=30)], [*MAIN, step(at(11, ("a", 2)), watermark=40)]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def seen(element: Any, side: Any) -> tuple[Any, list[Any]]:
    return element, sorted(side.items() if isinstance(side, dict) else side)


def seen_by_key(element: Any, side: Any) -> tuple[Any, list[Any]]:
    """Of a collection that is read AsMultiMap."""
    return element, [(key, list(side[key])) for key in ("x", "y")]


def joined(
    stage: Stage,
    side: list[Step] = SIDE,
    main: list[Step] = MAIN,
    *,
    side_type: type = int,
    main_type: type = int,
    side_s: int = 10,
    main_s: int = 10,
    lateness: int = 0,
    extra: Any = None,
) -> Build:
    """Main and side, each of one value a step, in windows; what `look` has seen is collected."""

    def build(p: beam.Pipeline) -> None:
        values = p | "side" >> Script(side, stays=True) | "value" >> _second(side_type)
        shaped = values | "side windows" >> beam.WindowInto(FixedWindows(side_s))
        mains = p | "main" >> Script(main, stays=True) | "shape" >> _second(main_type)
        windowed = mains | "main windows" >> beam.WindowInto(FixedWindows(main_s), allowed_lateness=lateness)
        stage.collect(windowed | "look" >> beam.Map(seen, AsList(shaped)))
        if extra is not None:
            extra(p, windowed, shaped)

    return build


def _second(kind: type) -> Any:
    return beam.Map(lambda pair: kind(pair[1])).with_output_types(kind)


def changes(stage: Stage, build: Build) -> dict[str, Change]:
    pipeline = beam.Pipeline(options=PipelineOptions(["--streaming"]))
    build(pipeline)
    found = compare(manifest(stage), SparkRunner().plan(pipeline))
    assert len({c.step for c in found}) == len(found)
    return {c.step: c for c in found}


def manifest(stage: Stage) -> Manifest:
    found = last_manifest(f"{stage.root}/checkpoint")
    assert found is not None
    return found


def is_refused(stage: Stage, build: Build, step: str, why: str) -> None:
    """By `plan` and by the start, in the same words; the checkpoint stays as it is."""
    before = manifest(stage)
    change = changes(stage, build)[step]
    assert change.kind == INCOMPATIBLE
    with pytest.raises(CheckpointError, match=f"{re.escape(step)}: .*{why}") as told:
        stage.play(build)
    assert f"{step}: {change.why}" in told.value.message
    assert (f"--drop_incompatible='{step}'" in str(told.value.hint)) == bool(change.loss)
    assert manifest(stage) == before


VALUE = "side windows.None"


@pytest.mark.parametrize(
    ("change", "step", "why"),
    [
        pytest.param({"side_type": str}, VALUE, "coder was .*varint.* is .*string_utf8", id="side coder"),
        pytest.param({"side_s": 20}, VALUE, "windows was .*size 10 s.* is .*size 20 s", id="side windows"),
        pytest.param({"main_type": str}, "look", "coder was .*varint.* is .*string_utf8", id="main coder"),
        pytest.param({"main_s": 5}, "look", "windows was .*size 10 s.* is .*size 5 s", id="main windows"),
    ],
)
def test_what_is_stored_and_what_waits_is_not_read_by_another_coder(
    stage: Stage, change: Any, step: str, why: str
) -> None:
    stage.play(joined(stage))
    assert changes(stage, joined(stage))["look"] == Change("look", UNCHANGED, "finds " + WAITING)
    assert changes(stage, joined(stage))[VALUE] == Change(VALUE, UNCHANGED, "finds 1 parts")
    is_refused(stage, joined(stage, **change), step, why)
    stage.play(joined(stage, SIDE_ON, MAIN_ON))
    assert stage.values() == [(1, [20, 40]), (2, [])]


WAITING = "1 files of elements that wait for a side input"


def test_parts_and_waiting_elements_are_dropped_by_name(stage: Stage) -> None:
    stage.play(joined(stage))
    other = joined(stage, SIDE_ON, MAIN_ON, side_type=str, main_type=str)
    assert {(c.step, c.loss) for c in refused(changes(stage, other).values())} == {
        (VALUE, "1 parts"),
        ("look", WAITING),
    }
    flags = [f"--drop_incompatible={step}" for step in (VALUE, "look")]
    stage.play(other, *flags)
    stage.play(other, *flags)  # they stay in the command: nothing more is lost
    assert stage.values() == [("2", [])]
    assert [part.end_us for part in manifest(stage).sides.get(VALUE, ())] == []


class Pair(beam.DoFn):
    """Keyed state, and a side input."""

    STATE = beam.transforms.userstate.BagStateSpec("bag", beam.coders.VarIntCoder())

    def process(self, pair: Any, side: Any, bag: Any = beam.DoFn.StateParam(STATE)) -> Any:
        bag.add(pair[1])
        yield pair, sorted(bag.read()), sorted(side)


@pytest.mark.parametrize("grouped", [True, False], ids=["grouping", "keyed state"])
def test_keyed_elements_that_wait_are_not_read_by_another_key_coder(stage: Stage, grouped: bool) -> None:
    def build(key_type: Any) -> Build:
        def inner(p: beam.Pipeline) -> None:
            side = p | "side" >> Script(SIDE, stays=True) | beam.Values()
            fixed = FixedWindows(10)
            side = AsList(side | "side windows" >> beam.WindowInto(fixed))
            main = p | "main" >> Script([step(at(1, ("7", 1)), watermark=15)], stays=True)
            key = beam.Map(lambda pair: (key_type(pair[0]), pair[1])).with_output_types(tuple[key_type, int])
            keyed = main | "key" >> key | "windows" >> beam.WindowInto(fixed)
            if grouped:
                _ = keyed | "step" >> beam.GroupByKey() | "look" >> beam.Map(seen, side)
            else:
                _ = keyed | "step" >> beam.ParDo(Pair(), side)

        return inner

    stage.play(build(str))
    waits = "look" if grouped else "step"
    assert (len(manifest(stage).waiting), manifest(stage).waiting[0].stage) == (1, waits)
    is_refused(stage, build(int), waits, "coder was .*string_utf8.* is .*varint")


def test_elements_that_wait_keep_a_step_from_losing_its_side_input(stage: Stage) -> None:
    def without(p: beam.Pipeline) -> None:
        _ = p | "side" >> Script(SIDE_ON, stays=True)
        main = p | "main" >> Script(MAIN_ON, stays=True) | "shape" >> _second(int)
        windowed = main | "main windows" >> beam.WindowInto(FixedWindows(10)) | "spread" >> beam.Reshuffle()
        stage.collect(windowed | "look" >> beam.Map(lambda x: (x, [])))

    stage.play(joined(stage))
    is_refused(stage, without, "look", "it reads no side input any more")
    stage.play(joined(stage, SIDE_ON, MAIN_ON))
    stage.play(without)


# ---- readers that are new
def ended(stage: Stage, *readers: str, view: Any = AsList, kept: bool = True) -> Build:
    """A bounded collection that has ended with the first epoch; `readers` and, if it is `kept`, "look" read it."""
    runs = 1 + len(readers)

    def build(p: beam.Pipeline) -> None:
        pairs = p | "names" >> beam.Create([("x", 7), ("y", 8)])
        main = p | "main" >> Script([step(at(1, ("a", 1))), step()] * runs, stays=True)
        for reader in [*["look"] * kept, *readers]:
            look = seen_by_key if view is AsMultiMap else seen
            stage.collect(main | reader >> beam.Map(look, view(pairs)), reader)
        _ = pairs | "elsewhere" >> beam.Map(len)

    return build


NAMES = "names/Map(decode).None"
BOTH = [("x", 7), ("y", 8)]


def test_a_new_reader_of_a_collection_that_has_ended_and_was_not_kept_is_refused(stage: Stage) -> None:
    stage.play(ended(stage, kept=False))
    is_refused(stage, ended(stage, "new", kept=False), NAMES, "new reads it, and nothing was kept of it before")
    stage.play(ended(stage, "new", kept=False), f"--drop_incompatible={NAMES}")
    assert stage.values("new") == [(("a", 1), [])]
    assert not refused(changes(stage, ended(stage, "new", kept=False)).values()), "the loss was accepted"
    later = ended(stage, "new", "another", kept=False)
    assert changes(stage, later)[NAMES].why == "another reads it, and not all of it was kept"


@pytest.mark.parametrize("view", [AsList, AsIter, AsDict, AsMultiMap])
def test_a_new_reader_of_a_collection_that_was_kept_sees_all_of_it_in_any_way(stage: Stage, view: Any) -> None:
    stage.play(ended(stage))
    stage.play(ended(stage, "new", view=view))
    both = [("x", [7]), ("y", [8])] if view is AsMultiMap else BOTH
    assert stage.values("look") == [(("a", 1), BOTH), (("a", 1), both)]
    assert stage.values("new") == [(("a", 1), both)]


def test_a_reader_by_another_name_sees_what_was_kept_for_the_old_one(stage: Stage) -> None:
    stage.play(ended(stage))
    renamed = ended(stage, "moved", kept=False)
    stage.play(renamed)
    assert stage.values("moved") == [(("a", 1), BOTH)]


def test_a_step_that_reads_one_more_collection_is_refused_if_that_was_not_kept(stage: Stage) -> None:
    """Also one that is still written to: of its windows that are open the step would see a part."""

    def build(*, more: bool) -> Build:
        def inner(p: beam.Pipeline) -> None:
            fixed = FixedWindows(10)
            main = p | "main" >> Script(MAIN, stays=True) | "main windows" >> beam.WindowInto(fixed)
            side = p | "side" >> Script(SIDE, stays=True) | "side windows" >> beam.WindowInto(fixed)
            _ = main | "look" >> beam.Map(lambda x, *_: x, *[AsList(side)] * more)

        return inner

    stage.play(build(more=False))
    is_refused(stage, build(more=True), VALUE, "look reads it, and nothing was kept of it before")


def far(stage: Stage, *, slow: list[Step], look_late: bool, lateness: int = 0, windows: int = 4) -> Build:
    """`look` is past all windows but the last and they are dropped; `slow` is another stream."""
    steps = [step(at(10 * n + 1, ("s", n)), watermark=10 * n + 9) for n in range(windows)]

    def extra(p: beam.Pipeline, windowed: Any, side: Any) -> None:
        others = p | "slow" >> Script(slow, stays=True) | "slow windows" >> beam.WindowInto(FixedWindows(10))
        stage.collect(others | "slowly" >> beam.Map(lambda x: x), "slowly")
        if look_late:
            stage.collect(others | "late" >> beam.Map(seen, AsList(side)), "late")

    return joined(stage, steps, steps, extra=extra, lateness=lateness)


def test_a_new_reader_that_may_ask_for_windows_that_were_dropped_is_refused(stage: Stage) -> None:
    behind = [step(watermark=5), step(at(6, ("b", 6)), watermark=7)]
    stage.play(far(stage, slow=behind[:1], look_late=False))
    assert stage.keyed() == [(0, [0]), (1, [1]), (2, [2])]
    assert manifest(stage).dropped_us == {VALUE: 29_999_999}
    why = "late may look at windows that nobody needed and that were dropped, up to 1970-01-01T00:00:29.999"
    is_refused(stage, far(stage, slow=behind, look_late=True), VALUE, why)
    stage.play(far(stage, slow=behind, look_late=True), f"--drop_incompatible={VALUE}")
    assert stage.values("late") == [(("b", 6), [])], "the loss was accepted"


def test_a_new_reader_that_is_past_the_windows_that_were_dropped_finds_the_others(stage: Stage) -> None:
    ahead = [step(watermark=35), step(at(36, ("b", 6)), watermark=37)]
    stage.play(far(stage, slow=ahead[:1], look_late=False))
    assert VALUE in manifest(stage).dropped_us
    stage.play(far(stage, slow=ahead, look_late=True, windows=5))
    assert stage.values("late") == [(("b", 6), [3])]


def test_a_reader_that_takes_later_elements_than_before_may_ask_for_dropped_windows(stage: Stage) -> None:
    stage.play(far(stage, slow=[], look_late=False))
    is_refused(stage, far(stage, slow=[], look_late=False, lateness=100), VALUE, "look may look at windows that")


@pytest.mark.parametrize("view", [AsSingleton, AsDict, AsList])
def test_what_no_reader_saw_of_a_side_input_that_was_folded_is_not_there_for_a_new_one(stage: Stage, view: Any) -> None:
    """AsSingleton sees the latest pane: more than 32 are folded to that."""
    fired = [step(at(n, (f"k{n}", n)), watermark=n) for n in range(50)]

    def build(main: list[Step], **views: Any) -> Build:
        def inner(p: beam.Pipeline) -> None:
            each = beam.WindowInto(
                GlobalWindows(), trigger=Repeatedly(AfterCount(1)), accumulation_mode=AccumulationMode.DISCARDING
            )
            side = p | "side" >> Script(fired, stays=True) | "each" >> each
            latest = side | "key" >> beam.Map(lambda pair: ("", pair)) | "latest" >> beam.GroupByKey()
            pairs = latest | "pairs" >> beam.FlatMap(lambda kv: kv[1]).with_output_types(tuple[str, int])
            mains = p | "main" >> Script(main, stays=True)
            for name, view in views.items():
                shown = beam.Map(lambda pair, s: (pair[1], s if isinstance(s, tuple) else dict(s)), view(pairs))
                stage.collect(mains | name >> shown, name)

        return inner

    first = [*[step()] * 50, step(at(1, ("a", 1))), step()]
    stage.play(build(first, look=AsSingleton))
    assert manifest(stage).thinned == ("pairs.None",)
    changed = build([*first, step(at(2, ("a", 2)))], look=AsSingleton, new=view)
    if view is AsSingleton:
        stage.play(changed)
        assert stage.values("look") == [(1, ("k49", 49)), (2, ("k49", 49))]
        assert stage.values("new") == [(2, ("k49", 49))]
    else:
        is_refused(stage, changed, "pairs.None", "new reads .* of it, and no more than the latest pane was kept")


# ---- names
def test_a_side_input_is_found_again_when_the_pipeline_around_it_changes(stage: Stage) -> None:
    """What is also read downstream passes through a buffer, which has a number that changes."""

    def build(main_script: list[Step], *, branch: bool) -> Build:
        def inner(p: beam.Pipeline) -> None:
            if branch:
                _ = p | "first" >> beam.Create([1]) | "others" >> beam.Map(str) | "spread" >> beam.Reshuffle()
            side = p | "side" >> beam.Create([7]) | "as is" >> beam.Map(lambda x: x)
            flat = (side, p | "more" >> beam.Create([8])) | "both" >> beam.Flatten()
            main = p | "main" >> Script(main_script, stays=True)
            stage.collect(main | "look" >> beam.Map(seen, AsList(side)), "one")
            stage.collect(main | "look at both" >> beam.Map(seen, AsList(flat)), "two")
            _ = side | "also" >> beam.Map(seen, AsList(flat))
            _ = flat | "alone" >> beam.Map(seen, AsList(side))

        return inner

    stage.play(build(MAIN, branch=False))
    assert not [name for name in [*manifest(stage).sides, *manifest(stage).output_us] if "ref_PCollection" in name]
    stage.play(build(MAIN_ON, branch=True))
    assert stage.values("one") == [(("a", 1), [7]), (("a", 2), [7])]
    assert stage.values("two") == [(("a", 1), [7, 8]), (("a", 2), [7, 8])]


def test_a_side_input_by_another_name_is_not_taken_for_an_empty_one(stage: Stage) -> None:
    def build(name: str) -> Build:
        def inner(p: beam.Pipeline) -> None:
            side = p | "side" >> beam.Create([7]) | name >> beam.Map(lambda x: x)
            stage.collect(p | "main" >> Script(MAIN, stays=True) | "look" >> beam.Map(seen, AsList(side)))

        return inner

    stage.play(build("old"))
    is_refused(stage, build("new"), "new.None", "look reads it, and nothing was kept of it before")


def test_a_grouping_that_starts_anew_is_not_hidden_by_its_old_panes(stage: Stage) -> None:
    """AsSingleton sees the latest pane, and a grouping whose state was dropped counts from 0 again."""

    def build(side: list[Step], main: list[Step], lateness: int) -> Build:
        def inner(p: beam.Pipeline) -> None:
            each = beam.WindowInto(
                GlobalWindows(),
                trigger=Repeatedly(AfterCount(1)),
                accumulation_mode=AccumulationMode.DISCARDING,
                allowed_lateness=lateness,
            )
            values = p | "side" >> Script(side, stays=True) | beam.Values() | "each" >> each
            latest = values | "latest" >> beam.CombineGlobally(max).without_defaults()
            mains = p | "main" >> Script(main, stays=True)
            stage.collect(mains | "look" >> beam.Map(lambda pair, n: (pair[1], n), AsSingleton(latest)))

        return inner

    fired = [step(at(n, ("s", n)), watermark=n) for n in range(4)]
    first = [step()] * 4 + [step(at(1, ("a", 1)), watermark=1)]
    stage.play(build(fired, first, 0))
    assert stage.values() == [(1, 3)]
    again = build([*fired, step(at(9, ("s", 9)), watermark=9)], [*first, step(), step(at(2, ("a", 2)))], 5)
    is_refused(stage, again, "latest/CombinePerKey/Group", "allowed lateness was 0 s, is 5 s")
    stage.play(again, "--drop_incompatible=latest/CombinePerKey/Group")
    assert stage.values() == [(1, 3), (2, 9)]
