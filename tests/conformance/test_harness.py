"""The harness end to end: one of Beam's tests, on SparkRunner and on Beam's own runner."""

from __future__ import annotations

import pytest

from tests.conformance.__main__ import run_suite
from tests.conformance.suites import load_suites

pytestmark = pytest.mark.slow
TEST = "transforms.ptransform_test::PTransformTest::test_impulse"


@pytest.mark.parametrize(("transport", "outcome"), [("local", "passed"), ("beam", "untouched")])
def test_only_what_ran_on_the_runner_is_counted(transport: str, outcome: str) -> None:
    (result,) = run_suite(load_suites()["ptransform"], transport, "streaming", TEST)
    assert (result.test, result.outcome, result.message) == (TEST, outcome, "")
    assert result.validates_runner


def test_a_test_that_beam_skips_is_run_if_it_is_listed() -> None:
    suite = load_suites()["fn_api_runner"]
    test = next(test for test in suite.unskip if test.endswith("test_pardo_et_timer_with_no_firing"))
    (result,) = run_suite(suite, "local", "batch", test)
    assert (result.outcome, result.message) == ("passed", "")
