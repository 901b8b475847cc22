"""The short form of `make conformance`, for every `make test`: Beam's runner suite in process, a part of it on Spark.

Everything else of Beam's suites, in both modes and on both transports, is in `python -m tests.conformance`.
"""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import fn_runner_test

from spark_jobs.beam_runner import SparkRunner
from tests.conformance.capabilities import FN_API_RUNNER, skipped_by_beams_runner
from tests.conformance.plugin import without_skips
from tests.conformance.suites import load_suites

pytestmark = pytest.mark.slow

# Beam's class has no name of its own in this module: pytest would run it as it is, on Beam's own runner.
TESTS = {name: test for name, test in vars(fn_runner_test.FnApiRunnerTest).items() if name.startswith("test_")}
# What Beam skips by decorators or by the names of its classes, and any runner can run.
UNSKIPPED = {test.removeprefix(FN_API_RUNNER) for test in load_suites()["fn_api_runner"].unskip}
# That, every test that Beam's own Spark runner skips, and what else needs real shuffles and real workers.
ON_SPARK = skipped_by_beams_runner("spark") | {
    *UNSKIPPED,
    "test_batch_rebatch_pardos",
    "test_flattened_side_input",
    "test_pardo_state_timers",
    "test_error_traceback_includes_user_code",
}


class TestLocalTransport(fn_runner_test.FnApiRunnerTest):
    """The task code, plan, state and manifests, without Spark's scheduling."""

    def create_pipeline(self, is_drain: bool = False) -> beam.Pipeline:
        return beam.Pipeline(runner=SparkRunner(is_drain=is_drain), options=PipelineOptions(["--transport=local"]))


class TestSparkTransport(fn_runner_test.FnApiRunnerTest):
    """The same as Spark jobs: real shuffles, real Python workers."""

    def create_pipeline(self, is_drain: bool = False) -> beam.Pipeline:
        return beam.Pipeline(runner=SparkRunner(is_drain=is_drain), options=PipelineOptions(["--tasks=2"]))


for name in UNSKIPPED:
    setattr(TestLocalTransport, name, without_skips(TESTS[name]))
    setattr(TestSparkTransport, name, without_skips(TESTS[name]))
for name in TESTS.keys() - ON_SPARK:
    setattr(TestSparkTransport, name, None)


def test_what_beams_own_spark_runner_skips_is_known_and_runs_here() -> None:
    skipped = skipped_by_beams_runner("spark")
    assert {"test_metrics", "test_unbounded_source_read", "test_register_finalizations"} < skipped
    assert all(callable(getattr(TestSparkTransport, test)) for test in skipped)


def test_nothing_of_beams_suite_is_skipped() -> None:
    assert len(TESTS) == 75
    assert not any(getattr(getattr(TestLocalTransport, name), "__unittest_skip__", False) for name in TESTS)
