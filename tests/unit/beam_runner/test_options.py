"""Flags that Beam has for its other runners."""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from common.errors import ConfigError
from spark_jobs.beam_runner import SparkRunner


@pytest.mark.parametrize(
    "flag",
    [
        "--setup_file=./setup.py",
        "--requirements_file=requirements.txt",
        "--environment_type=DOCKER",
        "--environment_config=image",
        "--job_endpoint=localhost:8099",
        "--sdk_container_image=image",
    ],
)
def test_packaging_and_environments_are_refused_by_name(flag: str) -> None:
    pipeline = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(["--transport=local", flag]))
    _ = pipeline | beam.Create([1])
    with pytest.raises(ConfigError) as refused:
        pipeline.run()
    assert flag in refused.value.message


def test_all_are_named_at_once() -> None:
    flags = ["--extra_package=a.tar.gz", "--worker_harness_container_image=image", "--requirements_file="]
    with pytest.raises(ConfigError) as refused:
        SparkRunner().plan(beam.Pipeline(options=PipelineOptions(flags)))
    assert "--extra_packages=['a.tar.gz']" in refused.value.message
    assert "--worker_harness_container_image=image" in refused.value.message
    assert "requirements_file" not in refused.value.message
