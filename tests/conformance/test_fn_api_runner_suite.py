"""The short form of `make conformance`, for every `make test`: Beam's runner suite in process, a part of it on Spark.

Everything else of Beam's suites, in both modes and on both transports, is in `python -m tests.conformance`.
"""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner_test import FnApiRunnerTest as BeamSuite

from spark_jobs.beam_runner import SparkRunner
from tests.conformance.capabilities import skipped_by_beams_runner

pytestmark = pytest.mark.slow

# Every test that Beam's own Spark runner skips, and what else needs real shuffles and real workers.
ON_SPARK = skipped_by_beams_runner("spark") | {
    "test_batch_rebatch_pardos",
    "test_flattened_side_input",
    "test_pardo_state_timers",
    "test_error_traceback_includes_user_code",
}
NOT_ON_SPARK = [name for name in dir(BeamSuite) if name.startswith("test_") and name not in ON_SPARK]


class TestLocalTransport(BeamSuite):
    """The task code, plan, state and manifests, without Spark's scheduling."""

    def create_pipeline(self, is_drain: bool = False) -> beam.Pipeline:
        return beam.Pipeline(runner=SparkRunner(is_drain=is_drain), options=PipelineOptions(["--transport=local"]))


class TestSparkTransport(BeamSuite):
    """The same as Spark jobs: real shuffles, real Python workers."""

    def create_pipeline(self, is_drain: bool = False) -> beam.Pipeline:
        return beam.Pipeline(runner=SparkRunner(is_drain=is_drain), options=PipelineOptions(["--tasks=2"]))


for name in NOT_ON_SPARK:
    setattr(TestSparkTransport, name, None)


def test_what_beams_own_spark_runner_skips_is_known_and_runs_here() -> None:
    skipped = skipped_by_beams_runner("spark")
    assert {"test_metrics", "test_unbounded_source_read", "test_register_finalizations"} < skipped
    assert all(callable(getattr(TestSparkTransport, test)) for test in skipped)
