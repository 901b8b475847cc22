"""TestStream as a source: what Beam's own suite does not look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.transforms import window

from spark_jobs.beam_runner import SparkRunner
from spark_jobs.beam_runner.errors import UnsupportedPipelineError
from tests.unit.beam_runner import script_job


def windowed_sums(pipeline: beam.Pipeline) -> Any:
    script = (
        test_stream.TestStream()
        .add_elements([window.TimestampedValue(("a", 1), 1), window.TimestampedValue(("a", 2), 11)])
        .advance_watermark_to(5)
        .add_elements([window.TimestampedValue(("a", 4), 6)])
        .advance_watermark_to(10)
        .add_elements([window.TimestampedValue(("a", 8), 12)])
        .advance_watermark_to_infinity()
    )
    return (
        pipeline
        | script.with_output_types(tuple[str, int])
        | beam.WindowInto(window.FixedWindows(10))
        | "sum" >> beam.CombinePerKey(sum)
        | beam.Map(lambda pair: b'["%b", %d]' % (pair[0].encode(), pair[1]))
    )


@pytest.mark.parametrize("stop_after", range(7))
def test_a_script_goes_on_where_a_restart_finds_it(tmp_path: Path, stop_after: int) -> None:
    script_job.run(tmp_path, windowed_sums, stop_after=stop_after)
    last = script_job.run(tmp_path, windowed_sums)
    assert script_job.rows(tmp_path) == [["a", 5], ["a", 10]]
    assert last.epochs == 7  # the impulses, then one for each event


def test_a_second_test_stream_and_one_from_a_service_are_refused_by_name() -> None:
    pipeline = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(["--streaming", "--transport=local"]))
    for label in ("one", "two"):
        _ = pipeline | label >> test_stream.TestStream(endpoint="localhost:1" if label == "two" else None)
    with pytest.raises(UnsupportedPipelineError) as refused:
        pipeline.run()
    assert refused.value.gaps == [
        "two: a TestStream whose events come from a service",
        "one, two: more than one TestStream",
    ]
