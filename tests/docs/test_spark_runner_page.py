"""The Python of docs/spark-runner.md runs, and says what it is said to."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream

from spark_jobs.beam_runner import SparkRunner
from spark_jobs.beam_runner.checkpoint.progress import committed_counters
from spark_jobs.beam_runner.options import SparkRunnerOptions
from tests.faults import counting_job

PAGE = Path(__file__).resolve().parents[2] / "docs/spark-runner.md"
BATCH, STREAM, SINK = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_the_batch_runs_as_written(tmp_path: Path) -> None:
    out = tmp_path / "sums"
    exec(BATCH.replace("beam.Map(print)", f"beam.Map(str) | beam.io.WriteToText({str(out)!r})"), {})
    lines = [line for path in tmp_path.glob("sums*") for line in path.read_text().splitlines()]
    assert sorted(lines) == ["('a', 4)", "('b', 2)"]


def test_the_stream_runs_as_written(tmp_path: Path) -> None:
    def build(pipeline: beam.Pipeline) -> beam.Pipeline:
        counting_job.build(pipeline, f"{tmp_path}/out", 60, 20)
        return pipeline

    code = STREAM.replace("/var/lib/jobs/clicks", f"{tmp_path}/checkpoint")
    code = code.replace('"--streaming"', '"--streaming", "--transport=local", "--until_idle"')
    names: dict[str, Any] = {"beam": beam, "build": build}
    exec(BATCH.partition("\nwith ")[0], names)
    exec(code, names)
    assert committed_counters(f"{tmp_path}/checkpoint")
    assert len(counting_job.published(tmp_path / "out/sums")) == 60 * counting_job.SOURCES


def test_the_sink_writes_each_epoch_once(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": __name__}
    exec(SINK, names)
    flags = ["--streaming", "--transport=local", f"--checkpoint={tmp_path}/checkpoint"]
    globals()["OneFileAnEpoch"] = names["OneFileAnEpoch"]  # where pickle looks for it

    def run() -> None:
        with beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(flags)) as pipeline:
            script = test_stream.TestStream().add_elements([{"a": 1}, {"a": 2}]).add_elements([{"a": 3}])
            names["write"](pipeline | script, str(tmp_path))

    def written() -> dict[str, list[Any]]:
        return {p.name: [json.loads(line) for line in p.open()] for p in tmp_path.glob("*.jsonl")}

    run()
    once = written()
    assert [len(lines) for _, lines in sorted(once.items()) if lines] == [2, 1]
    assert sorted(event["a"] for lines in once.values() for event in lines) == [1, 2, 3]
    run()  # publishes the last epoch again
    assert written() == once


def test_every_flag_on_the_page_exists() -> None:
    known = set(SparkRunnerOptions().get_all_options()) | {"streaming"}
    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"--([a-z_]+)", text)) - known == set()
