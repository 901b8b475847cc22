"""Plans are data: levels, kinds of edges and names, without running anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import VarIntCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.testing import test_stream
from apache_beam.transforms import userstate, window

from spark_jobs.beam_runner.beam_internals import prepare_proto, translations
from spark_jobs.beam_runner.errors import UnsupportedPipelineError
from spark_jobs.beam_runner.planning.plan import GROUP, IMPULSE, KEYED, SHUFFLE, Plan
from spark_jobs.beam_runner.planning.translate import make_plan
from tests.unit.beam_runner import hash_seeds


class Remember(beam.DoFn):
    SEEN = userstate.ReadModifyWriteStateSpec("seen", VarIntCoder())

    def process(self, pair: tuple[int, int], seen: Any = beam.DoFn.StateParam(SEEN)) -> Iterator[tuple[int, int]]:
        seen.write(1)
        yield pair


def pairs(p: beam.Pipeline) -> Any:
    return (
        p | "start" >> beam.Impulse() | "pairs" >> beam.FlatMap(lambda _: [(1, 2)]).with_output_types(tuple[int, int])
    )


def plan_of(build: Callable[[beam.Pipeline], Any], *flags: str) -> Plan:
    options = PipelineOptions(flags)
    pipeline = beam.Pipeline(options=options)
    build(pipeline)
    return make_plan(prepare_proto(pipeline, options), options)


def kinds(plan: Plan) -> dict[str, tuple[int, str]]:
    return {stage.id: (stage.level, stage.inputs[0].kind) for stage in plan.stages}


def test_steps_without_a_shuffle_are_one_stage() -> None:
    assert kinds(plan_of(lambda p: pairs(p) | beam.Map(lambda x: x) | beam.Filter(bool))) == {"pairs": (0, IMPULSE)}


def test_a_group_by_key_raises_the_level() -> None:
    plan = plan_of(lambda p: pairs(p) | "g" >> beam.GroupByKey() | "h" >> beam.GroupByKey())
    assert kinds(plan) == {"pairs": (0, IMPULSE), "g": (1, GROUP), "h": (2, GROUP)}
    assert plan.levels == 3


def test_a_stateful_dofn_is_a_keyed_stage_named_after_it() -> None:
    assert kinds(plan_of(lambda p: pairs(p) | "remember" >> beam.ParDo(Remember())))["remember"] == (1, KEYED)


def test_two_shuffles_side_by_side_share_a_level() -> None:
    def build(p: beam.Pipeline) -> None:
        start = pairs(p)
        _ = start | "a" >> beam.GroupByKey()
        _ = start | "b" >> beam.ParDo(Remember())

    plan = plan_of(build)
    assert plan.levels == 2
    assert {stage.id for stage in plan.stages if stage.level == 1} == {"a", "b"}


def test_a_side_input_raises_the_level_of_its_reader() -> None:
    def build(p: beam.Pipeline) -> None:
        side = p | "other" >> beam.Impulse() | "side" >> beam.Map(len)
        _ = pairs(p) | "use" >> beam.Map(lambda x, s: (x, s), beam.pvalue.AsSingleton(side))

    plan = plan_of(build)
    (reader,) = [stage for stage in plan.stages if stage.sides]
    assert reader.level == 1
    assert reader.sides[0].producers == ("side",)


def test_a_reshuffle_spreads_but_does_not_group() -> None:
    plan = plan_of(lambda p: pairs(p) | "spread" >> beam.Reshuffle() | "after" >> beam.Map(lambda x: x))
    assert plan.stage_with("after").inputs[0].kind == SHUFFLE


class LeastAndGreatest(beam.PTransform):
    """Two combiners that Beam may pack into one."""

    def annotations(self) -> dict[str, bytes]:
        return {python_urns.APPLY_COMBINER_PACKING: b""}

    def expand(self, numbers: Any) -> Any:
        return numbers | "least" >> beam.CombinePerKey(min), numbers | "greatest" >> beam.CombinePerKey(max)


def test_a_stream_keeps_the_state_of_each_combiner_under_its_own_name() -> None:
    def keyed(*flags: str) -> list[str]:
        plan = plan_of(lambda p: pairs(p) | "both" >> LeastAndGreatest(), *flags)
        return sorted(stage.id for stage in plan.stages if stage.keeps_state)

    assert keyed("--streaming") == ["both/greatest/Group", "both/least/Group"]
    (packed,) = keyed()
    assert "greatest" in packed and "least" in packed  # noqa: PT018


class MadeUp(beam.PTransform[Any, Any]):
    """Of a kind that the runner does not know."""

    def __init__(self, urn: str) -> None:
        super().__init__()
        self.urn = urn

    def expand(self, source: Any) -> Any:
        return beam.pvalue.PCollection(source.pipeline)

    def to_runner_api_parameter(self, context: Any) -> Any:
        return self.urn, None


def test_transforms_of_an_unknown_kind_are_refused_all_at_once_by_name() -> None:
    def build(p: beam.Pipeline) -> None:
        _ = pairs(p) | "strange" >> MadeUp("beam:transform:made_up:v1")
        _ = p | "more" >> beam.Create([1]) | "stranger" >> MadeUp("beam:transform:invented:v1")

    with pytest.raises(UnsupportedPipelineError) as refused:
        plan_of(build)
    assert refused.value.gaps == [
        "strange: a transform of the unknown kind beam:transform:made_up:v1",
        "stranger: a transform of the unknown kind beam:transform:invented:v1",
    ]


def test_gaps_are_refused_all_at_once_by_name() -> None:
    def build(p: beam.Pipeline) -> None:
        _ = p | "remote" >> test_stream.TestStream(endpoint="localhost:1")
        _ = p | "second" >> test_stream.TestStream().advance_watermark_to_infinity()

    with pytest.raises(UnsupportedPipelineError, match=r"(?s)remote, second: more.*remote: .*service"):
        plan_of(build)


def test_a_flatten_of_different_kinds_of_windows_is_refused_with_who_makes_them() -> None:
    """Beam only warns; elements would be written with one window's coder and read with another's."""

    def build(p: beam.Pipeline) -> None:
        fixed = pairs(p) | "ten" >> beam.WindowInto(window.FixedWindows(10))
        whole = p | "all" >> beam.Create([(1, 2)])
        sessions = whole | "gaps" >> beam.WindowInto(window.Sessions(5))
        _ = (fixed, sessions) | "intervals" >> beam.Flatten()  # both are intervals
        _ = (fixed, whole) | "mixed" >> beam.Flatten()

    with pytest.raises(UnsupportedPipelineError) as refused:
        plan_of(build)
    (gap,) = refused.value.gaps
    assert gap.startswith("mixed: a Flatten of collections in different kinds of windows, of 'all/Map(decode)' in the")
    assert "and of 'ten' in fixed windows: size 10 s" in gap


def test_producers_come_first_whatever_order_beam_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam takes what reads a collection from its buffer for the producer of a side input, if its sets come so."""

    def build(p: beam.Pipeline) -> None:
        side = p | "side" >> beam.Create([7]) | "as is" >> beam.Map(lambda x: x)
        flat = (side, p | "more" >> beam.Create([8])) | "both" >> beam.Flatten()
        _ = side | "also" >> beam.Map(lambda x, y: x, beam.pvalue.AsList(flat))
        _ = flat | "alone" >> beam.Map(lambda x, y: x, beam.pvalue.AsList(side))

    monkeypatch.setattr(translations, "sort_stages", lambda stages, _: list(stages))
    plan = plan_of(build)
    order = [stage.id for stage in plan.stages]
    for stage in plan.stages:
        for producer in (*stage.producers, *(p for side in stage.sides for p in side.producers)):
            assert order.index(producer) < order.index(stage.id)
    assert {side.label for stage in plan.stages for side in stage.sides} == {"as is.None", "both/Read.None"}


PRINT_TIMERS = """
from tests.unit.beam_runner.test_plan import *
class Timed(beam.DoFn):
    T = userstate.TimerSpec("t", userstate.TimeDomain.WATERMARK)
    def process(self, pair, side, timer=beam.DoFn.TimerParam(T)):
        timer.set(1)
    @userstate.on_timer(T)
    def fired(self):
        pass
def build(p):
    side = p | "names" >> beam.Create([("x", "y")])
    _ = pairs(p) | "step" >> beam.ParDo(Timed(), beam.pvalue.AsDict(side))
(kept,) = [s.state_format for s in plan_of(build).stages if s.keeps_state]
print(kept)
"""


def test_timers_are_encoded_with_the_key_of_the_main_input_whatever_the_hash_seed() -> None:
    """Beam takes any input's, also a side input's: a restart would read timers with another coder."""
    (kept,) = hash_seeds.outputs(PRINT_TIMERS, 4)
    assert json.loads(kept)["timer t"] == "event time, timer(varint, global_window)"


PRINT_PLAN = """
from tests.unit.beam_runner.test_plan import *
def build(p):
    start = pairs(p)
    for name in "abcdef":
        mapped = start | name >> beam.Map(lambda x: x)
        _ = mapped | "group " + name >> beam.GroupByKey() | "out " + name >> beam.Map(len)
    _ = (start, start | "m" >> beam.Map(lambda x: x)) | beam.Flatten() | "remember" >> beam.ParDo(Remember())
plan = plan_of(build)
print(sorted((s.id, s.level, s.state_format) for s in plan.stages if s.keeps_state))
"""


def test_names_of_stages_with_state_do_not_depend_on_the_hash_seed() -> None:
    seen = hash_seeds.outputs(PRINT_PLAN, 3)
    assert len(seen) == 1
    assert "remember" in seen.pop()


def test_rows_with_fields_of_any_type_have_a_state_format() -> None:
    """Beam gives a field whose type it cannot tell no type at all."""
    rows = beam.Map(lambda x: beam.Row(known=x, sign=x // abs(x) if x else 0))
    plan = plan_of(lambda p: p | beam.Create(range(3)) | beam.Map(int) | rows | beam.GroupBy("sign"))
    (group,) = [stage for stage in plan.stages if stage.keeps_state]
    assert "pythonsdk_any:v1(any)" in group.state_format
