"""Counting and comparing: what the conformance figures rest on."""

from __future__ import annotations

import ast
import fnmatch
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from apache_beam.transforms.userstate import StateSpec

from tests.conformance import capabilities
from tests.conformance.results import Result, count, read_committed, read_report, refresh_committed, surprises
from tests.conformance.suites import (
    Expected,
    Suite,
    left_out,
    load_expected,
    load_suites,
    marked_in,
    marked_tests,
    validates_runner,
)

KNOWN = [
    Expected("a reason", ("local/*",), ("m::T::test_known",)),
    Expected("a reason", ("local/*",), ("skips::T::test_skipped",), "skipped"),
]


def record(test: str, outcome: str, **more: Any) -> str:
    fields = {"test": test, "outcome": outcome, "message": "", "seconds": 1.0, "ours": 1, "others": 0, "built": 1}
    return json.dumps({**fields, "validates_runner": False, **more})


def outcomes(tmp_path: Path, *lines: str, end: str = "") -> dict[str, str]:
    report = tmp_path / "report.jsonl"
    report.write_text("\n".join(lines))
    return {r.test: r.outcome for r in read_report(report, "suite", "local/batch", end)}


def test_a_test_that_ran_nothing_on_the_runner_proves_nothing(tmp_path: Path) -> None:
    assert outcomes(tmp_path, record("a", "passed"), record("b", "passed", ours=0)) == {"a": "passed", "b": "untouched"}


def test_a_pipeline_that_was_built_for_the_runner_and_never_ran_counts_as_failed(tmp_path: Path) -> None:
    lines = [record("a", "failed", ours=0, built=1), record("b", "failed", ours=0, built=0)]
    assert outcomes(tmp_path, *lines) == {"a": "failed", "b": "untouched"}


def test_the_last_line_of_a_test_counts_and_a_crash_is_a_failure(tmp_path: Path) -> None:
    lines = [record("a", "unfinished"), record("a", "passed"), record("b", "unfinished", ours=0)]
    found = outcomes(tmp_path, *lines, end="exit code -9")
    assert found == {"a": "passed", "b": "failed", "suite::process": "failed"}


def test_a_suite_without_tests_is_a_failure(tmp_path: Path) -> None:
    assert list(outcomes(tmp_path).values()) == ["failed"]


@pytest.mark.parametrize(
    ("test", "outcome", "surprise"),
    [
        ("m::T::test_known", "failed", False),
        ("m::T::test_known", "passed", True),
        ("m::T::test_known", "skipped", True),
        ("m::T::test_other", "failed", True),
        ("n::T::test_other", "passed", False),
        ("m::T::test_other", "passed", True),  # the listed test is not there any more
        ("skips::T::test_skipped", "skipped", False),
        ("skips::T::test_skipped", "passed", True),
        ("skips::T::test_skipped", "failed", True),
        ("n::T::test_other", "skipped", True),
    ],
)
def test_surprises_are_strict_in_both_directions(test: str, outcome: str, surprise: bool) -> None:
    assert bool(surprises([Result(test, "s", "local/batch", outcome)], KNOWN)) is surprise


def test_known_failures_hold_only_where_they_are_listed() -> None:
    assert surprises([Result("m::T::test_known", "s", "spark/batch", "failed")], KNOWN)


def test_beams_marker_is_counted_across_suites() -> None:
    results = [Result(f"m::T::{s}", s, "local/batch", "passed", validates_runner=True) for s in ("a", "b")]
    assert count(results)["local/batch", "it_validatesrunner"]["passed"] == 2


def test_refreshing_one_place_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    refresh_committed([Result("t", "s", "local/batch", "passed"), Result("old", "s", "local/batch", "passed")], path)
    refresh_committed([Result("t", "s", "spark/batch", "failed")], path)
    refresh_committed([Result("t", "s", "local/batch", "skipped")], path)
    assert read_committed(path) == {"s": {"t": {"local/batch": "skipped", "spark/batch": "failed"}}}


def test_the_suites_and_expectations_name_what_is_installed() -> None:
    modules = [module for suite in load_suites().values() for module in suite.modules]
    assert len(modules) == len(set(modules)), "a module in two suites would be counted twice"
    listed = [(test, where) for some in load_expected() for test in some.tests for where in some.where]
    assert len(listed) == len(set(listed))
    assert {test.partition("::")[0] for test, _ in listed} <= set(modules)
    for suite in load_suites().values():
        assert {test.partition("::")[0] for test in (*suite.skip, *suite.unskip)} <= set(suite.modules)


def test_every_test_that_beam_marks_for_all_runners_is_in_a_suite_or_left_out_for_a_reason() -> None:
    assert len(marked_tests()) > 40
    assert left_out() == set()


def test_a_marked_test_is_missed_by_no_suite_without_a_reason() -> None:
    suite = Suite("s", ("a.in_test",), without={"a.java_test": "needs Java", "a.b_test": "in the suite `b`"})
    tests = ["a.in_test::T::test", "a.java_test::T::test", "a.b_test::T::test", "a.new_test::T::test"]
    assert [suite.accounts_for(test) for test in tests] == [True, True, False, False]
    part = Suite("s", ("a.part_test",), classes=("T",))
    assert [part.accounts_for(f"a.part_test::{group}::test") for group in "TU"] == [True, False]


def test_beams_marks_are_found_on_classes_and_tests_and_nowhere_else() -> None:
    source = """
@pytest.mark.it_validatesrunner
class A:
  def test_a(self): ...
  def helper(self): ...
class B:
  @parameterized.expand([1, 2])
  @pytest.mark.it_validatesrunner
  def test_b(self, n): ...
  def test_c(self): ...
"""
    assert marked_in("m", ast.parse(source)) == {"m::A::test_a", "m::B::test_b_[0-9]*"}
    with pytest.raises(LookupError, match="not understood"):
        marked_in("m", ast.parse("pytestmark = pytest.mark.it_validatesrunner"))


def test_every_suite_and_every_marked_test_has_results() -> None:
    committed = read_committed()
    assert committed.keys() == load_suites().keys()
    tests = [test for tests in committed.values() for test in tests]
    assert [pattern for pattern in marked_tests() if not fnmatch.filter(tests, pattern)] == []


def test_the_committed_results_hold_no_surprise() -> None:
    results = [
        Result(test, suite, where, outcome)
        for suite, tests in read_committed().items()
        for test, places in tests.items()
        for where, outcome in places.items()
    ]
    assert results
    assert surprises(results, load_expected()) == []


def test_nothing_that_beams_own_spark_runner_skips_is_a_known_failure() -> None:
    skipped = capabilities.skipped_by_beams_runner("spark")
    listed = {test for known in load_expected() for test in known.tests if "::FnApiRunnerTest::" in test}
    assert not {test.rpartition("::")[2] for test in listed} & skipped


@pytest.mark.parametrize("place", capabilities.PLACES)
def test_of_the_tests_for_every_runner_at_most_two_fail(place: str) -> None:
    """Beam's suite for runners, and what Beam marks with `it_validatesrunner`."""
    found = Counter(
        places.get(place, "missing")
        for tests in read_committed().values()
        for test, places in tests.items()
        if test.startswith(capabilities.FN_API_RUNNER) or validates_runner(test)
    )
    assert found["missing"] == 0
    assert found["passed"] > 115
    assert found["failed"] <= 2


def test_the_capability_table_is_what_the_results_make() -> None:
    rows, committed = capabilities.load_rows(), read_committed()
    assert capabilities.idle_patterns(rows, committed) == []
    assert capabilities.DOCUMENT.read_text(encoding="utf-8") == capabilities.render(rows, committed)


def test_beams_python_sdk_has_the_kinds_of_state_that_the_table_names() -> None:
    kinds = {kind.__name__.removesuffix("StateSpec") for kind in StateSpec.__subclasses__()}
    assert kinds == {"ReadModifyWrite", "Bag", "Set", "CombiningValue", "OrderedList"}


def test_a_skipped_test_shows_with_what_it_is_skipped_for() -> None:
    (test, *_), reason = next((e.tests, e.reason) for e in load_expected() if e.outcome == "skipped")
    skipping = {"s": {test: {"local/batch": "skipped"}, "m::T::test": {"local/batch": "passed"}}}
    assert f"| `s` | 1/1 |  |  |  | 1: {reason} |" in capabilities.render([], skipping)


def test_a_row_without_a_passing_test_is_a_gap() -> None:
    row = capabilities.Row("What?", "Thing", {"spark": "Yes", "flink": ""}, ("m::*",), (), "")
    failing = {"s": {"m::T::test": {"local/batch": "failed"}}}
    assert "**gap**" in capabilities.render([row], failing)
    passing = {"s": {"m::T::test": {"local/batch": "passed"}}}
    assert "**gap**" not in capabilities.render([row], passing).partition("## Gaps")[2]
    assert "| Thing | 1/1 |" in capabilities.render([row], passing)
