"""The gold pipeline against features that DuckDB computes from the true silver rows."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest

from beam_pipelines.pipelines.gold import gold
from common.domain import Domain
from tests.pipelines.conftest import Log
from tests.pipelines.oracle import ENTITY_KEY, gold_of
from tests.pipelines.running import run


@pytest.fixture(scope="module")
def ran(domain: Domain, log: Log) -> Any:
    def build(p: beam.Pipeline) -> Any:
        rows = [{**row, "event_time": row["event_time"], "properties": None} for row in log.truth.silver]
        table = pa.Table.from_pylist(rows, schema=domain.silver_schema)
        return gold(p | beam.Create(table.to_batches(500), reshuffle=False), domain, 16, bounded=True)

    return run(build)


@pytest.mark.parametrize("view", ENTITY_KEY)
def test_each_tile_of_each_entity_has_one_row_with_its_features(ran: Any, log: Log, domain: Domain, view: str) -> None:
    rows, _ = ran
    features = domain.view(view).schema().names
    names = [ENTITY_KEY[view], "tile_start_ms", *features, "events", "version_ms"]
    found = [{**row, "tile_start_ms": row["tile_start"]} for row in rows[view]]
    expected = [tuple(row[name] for name in names) for row in gold_of(log.truth.silver, view)]
    assert sorted((tuple(row[name] for name in names) for row in found), key=repr) == sorted(expected, key=repr)


@pytest.mark.parametrize("view", ENTITY_KEY)
def test_rows_are_true_from_the_end_of_their_tile(ran: Any, view: str) -> None:
    rows, _ = ran
    for row in rows[view]:
        assert row["event_timestamp"] == row["tile_start"] + 3_600_000
        assert row["pane"] == "on_time"
        assert row["feature_type"] == view


def test_panes_are_counted_per_view(ran: Any, log: Log) -> None:
    _, counters = ran
    assert counters == {f"gold.{view}": len(gold_of(log.truth.silver, view)) for view in ENTITY_KEY}
