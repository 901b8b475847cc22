"""A changed pipeline on an old checkpoint: unchanged labels keep their state, the rest is told, or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import BytesCoder, Coder, StrUtf8Coder, VarIntCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import trigger, userstate, window
from apache_beam.typehints.row_type import RowTypeConstraint

from beam_pipelines.io.publish import Publish
from spark_jobs.beam_runner import SparkRunner
from spark_jobs.beam_runner.checkpoint.progress import last_manifest
from spark_jobs.beam_runner.errors import CheckpointError
from spark_jobs.beam_runner.planning.upgrade import GONE, INCOMPATIBLE, NEW, UNCHANGED, Change, compare, refused
from tests.faults import counting_job
from tests.unit.beam_runner.test_streaming import Build, run

OPTIONS = PipelineOptions(["--streaming"])


def events(p: beam.Pipeline, available: int) -> Any:
    return (
        p
        | "source" >> beam.Create([0])
        | "read" >> beam.ParDo(counting_job.Count(available, 50)).with_output_types(tuple[int, int])
        | "one key" >> beam.Map(lambda pair: (0, pair[1])).with_output_types(tuple[int, int])
    )


def publish(rows: Any, label: str, folder: Path) -> None:
    _ = rows | label >> Publish(counting_job.FolderPublisher(str(folder)))


def keeps(*specs: Any, value: Any = 1) -> beam.DoFn:
    """A stateful DoFn with these state cells, to which it adds `value`."""
    names = [f"a{i}" for i in range(len(specs))]
    scope: dict[str, Any] = {"beam": beam, "specs": specs, "value": value}
    arguments = ", ".join(f"{name}=beam.DoFn.StateParam(specs[{i}])" for i, name in enumerate(names))
    touch = "; ".join(f"{name}.add(value)" for name in names) or "pass"
    exec(f"def process(self, pair, {arguments}):\n    {touch}", scope)
    return type("Keeps", (beam.DoFn,), {"process": scope["process"]})()


def changes(root: Path, build: Build) -> dict[str, Change]:
    pipeline = beam.Pipeline(options=OPTIONS)
    build(pipeline)
    manifest = last_manifest(f"{root}/checkpoint")
    assert manifest is not None
    found = compare(manifest, SparkRunner().plan(pipeline))
    assert len({c.step for c in found}) == len(found)
    return {c.step: c for c in found}


def test_unchanged_labels_keep_their_state_while_others_come_go_and_are_renamed(tmp_path: Path) -> None:
    def before(p: beam.Pipeline) -> None:
        pairs = events(p, 100)
        publish(pairs | "sums" >> beam.ParDo(counting_job.RunningSum()), "to sums", tmp_path / "sums")
        _ = pairs | "old name" >> beam.Map(lambda x: x) | "drop me" >> beam.Reshuffle() | "end" >> beam.Map(len)

    def after(p: beam.Pipeline) -> None:
        pairs = events(p, 200)
        early = pairs | "look" >> beam.Filter(lambda pair: True) | "spread" >> beam.Reshuffle()
        same = early | "back" >> beam.Map(lambda x: x).with_output_types(tuple[int, int])
        publish(same | "sums" >> beam.ParDo(counting_job.RunningSum()), "to sums", tmp_path / "sums")
        _ = pairs | "new name" >> beam.WindowInto(window.FixedWindows(5)) | "group" >> beam.GroupByKey()

    run(tmp_path, before)
    found = changes(tmp_path, after)
    assert found["sums"] == Change("sums", UNCHANGED, "finds state of 1 key groups")
    assert found["end"].kind == GONE
    assert found["group"].kind == NEW
    assert not refused(found.values())
    run(tmp_path, after)
    last = counting_job.published(tmp_path / "sums")[-1]
    assert max(total for _, _, total in counting_job.published(tmp_path / "sums")) == sum(i * 4 for i in range(200))
    assert len(last) == 3
    assert changes(tmp_path, after).keys() == {s.id for s in SparkRunner().plan(_built(after)).stages}, "all is known"


def _built(build: Build) -> beam.Pipeline:
    pipeline = beam.Pipeline(options=OPTIONS)
    build(pipeline)
    return pipeline


def test_a_step_that_is_gone_does_not_keep_a_job_from_its_end(tmp_path: Path) -> None:
    """Its watermark stands still for ever: the job would wait for it."""

    def numbers(p: beam.Pipeline) -> Any:
        return p | "source" >> beam.Create([0]) | "read" >> beam.ParDo(Ends(3)).with_output_types(int)

    class PauseError(Exception):
        pass

    def stop(_info: Any) -> None:
        raise PauseError

    with pytest.raises(PauseError):
        run(tmp_path, lambda p: numbers(p) | "shuffle" >> beam.Reshuffle() | "old" >> beam.Map(str), on_epoch=stop)
    result = run(tmp_path, lambda p: numbers(p) | "new" >> beam.Map(str))
    assert result.state == "DONE"
    manifest = last_manifest(f"{tmp_path}/checkpoint")
    assert manifest is not None
    assert manifest.done


class Ends(counting_job.Count):
    """One element an epoch, and then the end."""

    def __init__(self, available: int) -> None:
        super().__init__(available, 1)

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        source: int,
        tracker: Any = beam.DoFn.RestrictionParam(counting_job.Forever()),
    ) -> Iterator[Any]:
        index = tracker.current_restriction().start
        if index >= self.available:
            while tracker.try_claim(index):
                index = 2**62
            return
        if tracker.try_claim(index):
            yield index
            tracker.defer_remainder()


CELL, OTHER = (userstate.BagStateSpec(name, VarIntCoder()) for name in ("cell", "other"))
EACH = {"trigger": trigger.Repeatedly(trigger.AfterCount(1))}
GBK = beam.GroupByKey()


def as_text() -> Any:
    return beam.Map(lambda pair: (pair[0], str(pair[1]))).with_output_types(tuple[int, str])


def sets_timer(name: str, domain: Any) -> beam.DoFn:
    """A stateful DoFn that sets a timer far ahead at each element."""
    spec = userstate.TimerSpec(name, domain)

    class Sets(beam.DoFn):
        def process(
            self, pair: Any, cell: Any = beam.DoFn.StateParam(CELL), timer: Any = beam.DoFn.TimerParam(spec)
        ) -> None:
            cell.add(pair[1])
            timer.set(20_000_000_000)

        @userstate.on_timer(spec)
        def fired(self) -> None:
            """Never: it is far ahead."""

    return Sets()


WATERMARK, REAL_TIME = userstate.TimeDomain.WATERMARK, userstate.TimeDomain.REAL_TIME


def row_cell(**fields: type) -> Any:
    row = RowTypeConstraint.from_fields(list(fields.items()))
    return userstate.BagStateSpec("cell", beam.coders.RowCoder.from_type_hint(row, None))


def keyed(step: beam.DoFn, key_type: Any = int, into: Any = None, **windowing: Any) -> Build:
    def build(p: beam.Pipeline) -> None:
        pairs = events(p, 50) | "key" >> beam.Map(lambda kv: (key_type(kv[0]), kv[1])).with_output_types(
            tuple[key_type, int]
        )
        windowed = pairs | "windows" >> beam.WindowInto(into or window.GlobalWindows(), **windowing)
        _ = windowed | "step" >> beam.ParDo(step)

    return build


def grouped(into: Any, **windowing: Any) -> Build:
    return lambda p: events(p, 50) | beam.WindowInto(into, **windowing) | "group" >> beam.GroupByKey()


@pytest.mark.parametrize(
    ("old", "new", "step", "why"),
    [
        pytest.param(
            keyed(keeps(CELL)),
            keyed(keeps(CELL), str),
            "step",
            "coder was .*kv.varint, varint.* is .*kv.string_utf8, varint",
            id="key coder",
        ),
        pytest.param(
            keyed(keeps(CELL)),
            keyed(keeps(userstate.BagStateSpec("cell", StrUtf8Coder()))),
            "step",
            r"state cell was bag\(varint\), is bag\(string_utf8\)",
            id="state coder",
        ),
        pytest.param(
            keyed(keeps(CELL)),
            keyed(keeps(userstate.SetStateSpec("cell", VarIntCoder()))),
            "step",
            r"state cell was bag\(varint\), is set\(varint\)",
            id="state kind",
        ),
        pytest.param(
            keyed(sets_timer("t", WATERMARK)),
            keyed(sets_timer("t", REAL_TIME)),
            "step",
            "timer t was event time, timer.*, is processing time, timer",
            id="timer domain",
        ),
        pytest.param(
            keyed(sets_timer("t", WATERMARK)),
            keyed(sets_timer("renamed", WATERMARK)),
            "step",
            "timer t was event time, timer.*, is none",
            id="timer renamed",
        ),
        pytest.param(
            keyed(sets_timer("t", WATERMARK)),
            keyed(keeps(CELL)),
            "step",
            "timer t was event time, timer.*, is none",
            id="timer gone",
        ),
        pytest.param(
            keyed(keeps(row_cell(x=int, y=str), value=beam.Row(x=1, y="one"))),
            keyed(keeps(row_cell(y=str, x=int), value=beam.Row(y="one", x=1))),
            "step",
            r"state cell was bag\(row\{x: int64, y: string\}\), is bag\(row\{y: string, x: int64\}\)",
            id="fields of a row",
        ),
        pytest.param(
            keyed(keeps(CELL, OTHER)),
            keyed(keeps(OTHER, userstate.BagStateSpec("new", VarIntCoder()))),
            "step",
            "state cell is gone while state new is new: if that is its new name, it would be empty",
            id="state renamed",
        ),
        pytest.param(
            grouped(window.FixedWindows(1000)),
            lambda p: events(p, 50) | as_text() | beam.WindowInto(window.FixedWindows(1000)) | "group" >> GBK,
            "group",
            r"coder was .*kv.varint, varint.* is .*kv.varint, string_utf8",
            id="coder of values",
        ),
        pytest.param(
            grouped(window.FixedWindows(1000), timestamp_combiner=window.TimestampCombiner.OUTPUT_AT_LATEST),
            grouped(window.FixedWindows(1000), timestamp_combiner=window.TimestampCombiner.OUTPUT_AT_EARLIEST),
            "group",
            "timestamp was latest_in_pane, is earliest_in_pane",
            id="timestamp",
        ),
        pytest.param(
            grouped(window.FixedWindows(1000), accumulation_mode=trigger.AccumulationMode.DISCARDING, **EACH),
            grouped(window.FixedWindows(1000), accumulation_mode=trigger.AccumulationMode.ACCUMULATING, **EACH),
            "group",
            "panes was discarding, is accumulating",
            id="panes",
        ),
        pytest.param(
            keyed(keeps(CELL)),
            lambda p: events(p, 50) | beam.Reshuffle() | "step" >> beam.Map(str),
            "step",
            "it keeps no state any more",
            id="state no more",
        ),
        pytest.param(
            keyed(keeps(CELL)),
            keyed(keeps(CELL), into=window.FixedWindows(5)),
            "step",
            "windows was the global window, is fixed windows: size 5 s",
            id="windows",
        ),
        pytest.param(
            grouped(window.FixedWindows(1000)),
            grouped(window.FixedWindows(2000)),
            "group",
            "windows was fixed windows: size 1000 s.* is fixed windows: size 2000 s",
            id="window size",
        ),
        pytest.param(
            grouped(window.Sessions(1000)),
            grouped(window.Sessions(1001)),
            "group",
            "sessions: gap size 1000 s, is sessions: gap size 1001 s",
            id="session gap",
        ),
        pytest.param(
            grouped(window.FixedWindows(1000)),
            grouped(window.FixedWindows(1000), allowed_lateness=9),
            "group",
            "allowed lateness was 0 s, is 9 s",
            id="lateness",
        ),
        pytest.param(
            grouped(window.FixedWindows(1000)),
            grouped(
                window.FixedWindows(1000),
                trigger=trigger.AfterWatermark(early=trigger.AfterCount(5)),
                accumulation_mode=trigger.AccumulationMode.DISCARDING,
            ),
            "group",
            "trigger was default",
            id="trigger",
        ),
    ],
)
def test_state_that_cannot_be_read_is_refused_in_words(
    tmp_path: Path, old: Build, new: Build, step: str, why: str
) -> None:
    run(tmp_path, old)
    before = (tmp_path / "checkpoint/epochs/000000000.json").read_bytes()
    change = changes(tmp_path, new)[step]
    assert change.kind == INCOMPATIBLE
    with pytest.raises(CheckpointError, match=f"{step}: .*{why}") as told:
        run(tmp_path, new)
    assert f"--drop_incompatible='{step}'" in str(told.value.hint)
    assert change.why in told.value.message, "the start and the plan say the same"
    assert (tmp_path / "checkpoint/epochs/000000000.json").read_bytes() == before
    run(tmp_path, old)


def test_state_cells_may_come_and_go_and_timers_may_come(tmp_path: Path) -> None:
    extra = userstate.BagStateSpec("extra", BytesCoder())
    run(tmp_path, keyed(keeps(CELL)))
    assert changes(tmp_path, keyed(keeps(CELL, extra)))["step"].kind == UNCHANGED
    assert changes(tmp_path, keyed(keeps(extra)))["step"].kind == UNCHANGED
    assert changes(tmp_path, keyed(sets_timer("t", REAL_TIME)))["step"].kind == UNCHANGED


class OneCoder(VarIntCoder):
    """Like VarIntCoder, but by another name."""

    def to_runner_api_parameter(self, context: Any) -> Any:
        return Coder.to_runner_api_parameter(self, context)


class AnotherCoder(OneCoder):
    """One more."""


def test_custom_coders_are_told_apart_by_class(tmp_path: Path) -> None:
    one, other = (keyed(keeps(userstate.BagStateSpec("cell", coder()))) for coder in (OneCoder, AnotherCoder))
    run(tmp_path, one)
    assert changes(tmp_path, one)["step"].kind == UNCHANGED
    assert changes(tmp_path, other)["step"].why == "state cell was bag(OneCoder), is bag(AnotherCoder)"


def sums(available: int, out: Path, label: str = "sums") -> Build:
    def build(p: beam.Pipeline) -> None:
        publish(events(p, available) | label >> beam.ParDo(counting_job.RunningSum()), f"to {label}", out)

    return build


def test_a_loss_that_is_accepted_by_name_starts_the_step_anew(tmp_path: Path) -> None:
    run(tmp_path, sums(50, tmp_path / "a"))
    found = changes(tmp_path, sums(100, tmp_path / "b", "renamed"))
    assert {s for s, c in found.items() if c.kind == INCOMPATIBLE} == {"sums", "to sums"}
    flags = ["--drop_incompatible=sums"]
    with pytest.raises(CheckpointError, match="to sums: the sink is gone and epoch 0 may not be published"):
        run(tmp_path, sums(100, tmp_path / "b", "renamed"), *flags)
    flags.append("--drop_incompatible=to sums")
    run(tmp_path, sums(100, tmp_path / "b", "renamed"), *flags)
    run(tmp_path, sums(150, tmp_path / "b", "renamed"), *flags)  # the flags stay in the command: nothing more is lost
    totals = [total for _, _, total in counting_job.published(tmp_path / "b")]
    assert max(totals) == sum(i * 4 for i in range(50, 150))


def test_a_source_that_is_not_read_to_its_end_is_refused_and_may_be_dropped(tmp_path: Path) -> None:
    def other(p: beam.Pipeline) -> None:
        _ = p | "source" >> beam.Create([0]) | "other read" >> beam.Map(lambda x: x)

    run(tmp_path, lambda p: events(p, 50))
    with pytest.raises(CheckpointError, match="read/Process: the source is gone and not read to its end"):
        run(tmp_path, other)
    run(tmp_path, other, "--drop_incompatible=read/Process")


def test_a_checkpoint_of_another_pipeline_is_told_as_such(tmp_path: Path) -> None:
    run(tmp_path, sums(50, tmp_path / "a"))

    def another(p: beam.Pipeline) -> None:
        _ = p | "theirs" >> beam.Impulse() | "their step" >> beam.Map(len)

    with pytest.raises(CheckpointError, match=r"is the checkpoint of another pipeline.*such as .*sums") as told:
        run(tmp_path, another)
    assert "new --checkpoint" in str(told.value.hint)
    assert "--drop_incompatible" not in str(told.value.hint), "a source that is new cannot be made to run"


def test_a_format_is_words_and_says_nothing_of_pickles() -> None:
    stages = SparkRunner().plan(_built(keyed(keeps(CELL)))).stages
    (kept,) = [json.loads(stage.state_format) for stage in stages if stage.keeps_state]
    assert kept == {
        "allowed lateness": "0 s",
        "coder": "windowed_value(kv(varint, varint), global_window)",
        "kind": "keyed",
        "state cell": "bag(varint)",
        "windows": "the global window",
    }
