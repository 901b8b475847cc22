"""Every event is accounted for, or the difference is named with its size."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from beam_pipelines import accounting
from beam_pipelines.accounting import Accounts

BALANCED = Accounts(
    consumed=100, bronze=95, bronze_dlq=5, silver=80, duplicates=10, silver_dlq=5, late=7, panes={"v": 9}
)
ROWS = {"bronze": 95, "silver": 80, "dlq": 10, "gold/v": 9}
LAKE: Any = None


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Rows per table, to be changed by a test."""
    rows = dict(ROWS)
    monkeypatch.setattr(accounting, "row_count", lambda _lake, table: rows[table])
    return rows


def test_what_adds_up_has_no_differences(rows: dict[str, int]) -> None:
    assert list(BALANCED.differences(LAKE)) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"consumed": 101}, "consumed = 101, but bronze + bronze_dlq = 100 (off by -1)"),
        ({"duplicates": 1_010}, "bronze = 95, but silver + duplicates + silver_dlq = 1,095 (off by +1,000)"),
    ],
)
def test_counters_that_do_not_add_up(rows: dict[str, int], change: dict[str, Any], named: str) -> None:
    assert list(replace(BALANCED, **change).differences(LAKE)) == [named]


@pytest.mark.parametrize("table", list(ROWS))
@pytest.mark.parametrize("off_by", [-1, 1])
def test_a_row_too_many_or_too_few_in_any_table(rows: dict[str, int], table: str, off_by: int) -> None:
    rows[table] += off_by
    (difference,) = BALANCED.differences(LAKE)
    assert f"rows in {table} = {ROWS[table] + off_by}" in difference
    assert f"off by {off_by:+}" in difference


def test_all_differences_are_named_at_once(rows: dict[str, int]) -> None:
    rows.update(bronze=0, silver=0)
    assert len(list(replace(BALANCED, consumed=0).differences(LAKE))) == 3


def test_counters_come_by_name_and_an_untouched_one_is_zero() -> None:
    domain: Any = SimpleNamespace(features=[SimpleNamespace(name="v"), SimpleNamespace(name="w")])
    counters = {"pipeline/consumed": 3, "pipeline/bronze": 3, "pipeline/gold.v": 2, "elsewhere/bronze_dlq": 9}
    accounts = Accounts.from_counters(counters, domain)
    assert accounts == Accounts(consumed=3, bronze=3, panes={"v": 2, "w": 0})
