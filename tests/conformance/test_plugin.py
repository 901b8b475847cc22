"""What the plugin takes from Beam's tests, so that they run although Beam skips them."""

from __future__ import annotations

import unittest

from parameterized import parameterized

from tests.conformance.plugin import is_skipped, without_skips


class Tests(unittest.TestCase):
    __test__ = False

    @unittest.skip("an issue")
    def test_skipped(self) -> str:
        return "ran"

    def test_by_name(self) -> None:
        if type(self).__name__ == "Tests":
            self.skipTest("an issue")

    def test_run(self) -> None: ...

    @parameterized.expand([("a",)])
    def test_case(self, case: str) -> str:
        return case


def test_a_skip_of_any_kind_is_seen() -> None:
    assert is_skipped(Tests("test_skipped"))
    assert is_skipped(Tests("test_by_name"))
    assert not is_skipped(Tests("test_run"))


def test_decorators_are_taken_away_but_not_the_parameters_of_a_case() -> None:
    assert without_skips(Tests.test_skipped)(Tests()) == "ran"
    assert without_skips(vars(Tests)["test_case_0_a"])(Tests()) == "a"
