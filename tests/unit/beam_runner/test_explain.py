"""A plan with every kind of edge, as text, JSON and a diagram; and what `--explain` prints without running anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import window

from beam_pipelines.io.publish import Publish
from spark_jobs.beam_runner import SparkRunner, runner
from spark_jobs.beam_runner.checkpoint.manifest import Manifest
from spark_jobs.beam_runner.errors import UnsupportedPipelineError
from spark_jobs.beam_runner.planning.plan import FORWARD, GROUP, IMPULSE, KEYED, SHUFFLE, Plan
from spark_jobs.beam_runner.planning.upgrade import INCOMPATIBLE, Change
from tests.faults import counting_job
from tests.unit.beam_runner import hash_seeds

GOLDEN = Path(__file__).parent / "golden"


def first(pair: tuple[int, int], names: list[str]) -> bytes:
    return f"{names[0]} {pair[0]}".encode()


def build(p: beam.Pipeline) -> None:
    """Source, shuffle, keyed state, group, side input (and with it a forward edge), two publishers."""
    fixed = window.FixedWindows(10)
    names = p | "names" >> beam.Impulse() | "name" >> beam.Map(bytes.decode)
    events = (
        p
        | "start" >> beam.Impulse()
        | "sources" >> beam.FlatMap(lambda _: range(4)).with_output_types(int)
        | "spread" >> beam.Reshuffle()
        | "read" >> beam.ParDo(counting_job.Count(10, 5)).with_output_types(tuple[int, int])
    )
    _ = (
        events
        | "sums" >> beam.ParDo(counting_job.RunningSum())
        | "to sums" >> Publish(counting_job.FolderPublisher(""))
    )
    lists = (
        events
        | "fixed" >> beam.WindowInto(fixed, allowed_lateness=60)
        | "lists" >> beam.GroupByKey()
        | 'with "names"' >> beam.Map(first, beam.pvalue.AsList(names)).with_output_types(bytes)
    )
    _ = lists | "to lists" >> Publish(counting_job.FolderPublisher(""))
    checked = events | "check" >> beam.Map(first, beam.pvalue.AsList(names)) | "anew" >> beam.WindowInto(fixed)
    _ = (lists, checked) | "both" >> beam.Flatten() | "after both" >> beam.Map(len)


def plan() -> Plan:
    pipeline = beam.Pipeline(options=PipelineOptions(["--streaming"]))
    build(pipeline)
    return SparkRunner().plan(pipeline)


def test_the_pipeline_has_every_kind_of_edge() -> None:
    """Or the texts below would show too little."""
    shown = plan()
    assert {i.kind for s in shown.stages for i in s.inputs} == {IMPULSE, FORWARD, SHUFFLE, GROUP, KEYED}
    assert [s.id for s in shown.stages if s.sides]
    assert {label for s in shown.stages for label in s.publishes} == set(shown.publishers) == {"to sums", "to lists"}
    assert {label for s in shown.stages for label in s.sources} == {"read/Process"}


@pytest.mark.parametrize(("form", "file"), [("text", "plan.txt"), ("json", "plan.json"), ("mermaid", "plan.mmd")])
def test_the_plan_reads_so(form: str, file: str) -> None:
    """To renew the files: python -m tests.unit.beam_runner.test_explain"""
    assert plan().explain(form) + "\n" == (GOLDEN / file).read_text()


def test_json_and_text_do_not_depend_on_the_hash_seed() -> None:
    code = "from tests.unit.beam_runner.test_explain import plan; print(plan().explain('json'), plan().explain())"
    assert len(hash_seeds.outputs(code, 4)) == 1


def explained(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[str, Any]:
    pipeline = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(["--streaming", *flags]))
    build(pipeline)
    capsys.readouterr()
    result = pipeline.run()
    return capsys.readouterr().out, result


def test_the_flag_prints_the_plan_and_runs_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, result = explained(capsys, "--explain=text", f"--checkpoint={tmp_path}/c", "--spark_master=spark://nowhere:1")
    assert out == plan().explain() + "\n"
    assert (result.state, result.wait_until_finish()) == ("DONE", "DONE")
    assert not (tmp_path / "c").exists()


def test_with_a_checkpoint_the_flag_tells_what_a_start_means(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ["--streaming", "--until_idle", "--transport=local", f"--checkpoint={tmp_path}/c"]
    pipeline = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(flags))
    counting_job.build(pipeline, str(tmp_path / "out"), 10, 5)
    pipeline.run().wait_until_finish()
    printed = {}
    for form in ("json", "text"):
        with pytest.raises(SystemExit) as ended:
            explained(capsys, f"--explain={form}", f"--checkpoint={tmp_path}/c")
        assert ended.value.code == 3
        printed[form] = capsys.readouterr().out
    document = json.loads(printed["json"])
    kinds = {change["step"]: change["kind"] for change in document["changes"]}
    assert (kinds["sums"], kinds["lists"], kinds["quiet"]) == ("unchanged", "new", "incompatible")
    assert document["refused"]
    assert "unchanged     sums: finds state of" in printed["text"]


@pytest.mark.parametrize(("drop", "ends"), [("other", 3), ("sums", None)])
def test_what_is_dropped_does_not_refuse_the_start(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drop: str, ends: int | None
) -> None:
    lost = Change("sums", INCOMPATIBLE, "another coder", "state of 4 key groups")
    monkeypatch.setattr(runner, "last_manifest", lambda _: Manifest())
    monkeypatch.setattr(runner, "compare", lambda *_: [lost])
    flags = ("--explain=json", f"--checkpoint={tmp_path}/c", f"--drop_incompatible={drop}")
    if ends is None:
        out, _ = explained(capsys, *flags)
    else:
        with pytest.raises(SystemExit) as ended:
            explained(capsys, *flags)
        assert ended.value.code == ends
        out = capsys.readouterr().out
    assert json.loads(out)["refused"] is (ends is not None)


def test_what_a_start_would_refuse_has_no_plan() -> None:
    from apache_beam.testing import test_stream

    pipeline = beam.Pipeline(options=PipelineOptions())
    _ = pipeline | "clock" >> test_stream.TestStream(endpoint="localhost:1")
    with pytest.raises(UnsupportedPipelineError, match="clock"):
        SparkRunner().plan(pipeline)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for form, file in (("text", "plan.txt"), ("json", "plan.json"), ("mermaid", "plan.mmd")):
        (GOLDEN / file).write_text(plan().explain(form) + "\n")
