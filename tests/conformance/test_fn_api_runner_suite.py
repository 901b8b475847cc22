"""Beam's own runner suite, with SparkRunner in place of the in-memory runner."""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import fn_runner_test

from spark_jobs.beam_runner import SparkRunner

pytestmark = [pytest.mark.conformance, pytest.mark.slow]


class TestLocalTransport(fn_runner_test.FnApiRunnerTest):
    """The task code, plan, state and manifests, without Spark's scheduling."""

    def create_pipeline(self, is_drain: bool = False) -> beam.Pipeline:
        return beam.Pipeline(runner=SparkRunner(is_drain=is_drain), options=PipelineOptions(["--transport=local"]))


class TestSparkTransport(fn_runner_test.FnApiRunnerTest):
    """The same as Spark jobs: real shuffles, real Python workers."""

    def create_pipeline(self, is_drain: bool = False) -> beam.Pipeline:
        return beam.Pipeline(runner=SparkRunner(is_drain=is_drain), options=PipelineOptions(["--tasks=2"]))
