"""Panes of a feature view over bundles: early, on time, late."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from beam_pipelines.transforms.tiles import MergeTiles, PartialTiles
from common.domain import Domain, Lateness, load_domain
from tests.unit.beam_pipelines.keyed import Harness

HOUR_MS = 3_600_000
VIEW = "session_engagement_1h"
NOW_NS = 1_700_000_000_123_456_789


@pytest.fixture(scope="module")
def domain() -> Domain:
    loaded = load_domain(Path(__file__).parents[3] / "feature_repo")
    return replace(loaded, lateness=Lateness(allowed_lateness_ms=HOUR_MS), features=(loaded.view(VIEW),))


def harness(domain: Domain, *, bounded: bool) -> Harness:
    dofn = MergeTiles(domain, bounded, now_ns=lambda: NOW_NS)
    return Harness(dofn, dofn.close, f"{VIEW}/3")


def partials(domain: Domain, *times_ms: int) -> pa.RecordBatch:
    names = ["session_id", "event_time", "event_type", "watch_ms", "_kafka_ts_ms"]
    schema = pa.schema([domain.silver_schema.field(name) for name in names])
    rows = [
        {"session_id": "s", "event_time": t, "event_type": "view", "watch_ms": 7, "_kafka_ts_ms": t} for t in times_ms
    ]
    dofn = PartialTiles(domain, buckets=1)
    dofn.start_bundle()
    assert list(dofn.process(pa.RecordBatch.from_pylist(rows, schema=schema))) == []
    (keyed,) = [windowed.value for windowed in dofn.finish_bundle()]
    assert keyed[0] == f"{VIEW}/0"
    return keyed[1]


def panes(batches: list[pa.RecordBatch]) -> list[tuple[str, int, int]]:
    """(pane, hour, events) of each row."""
    return [(row["pane"], row["tile_start"].hour, row["events"]) for batch in batches for row in batch.to_pylist()]


def test_a_stream_sees_each_change_once(domain: Domain) -> None:
    stream = harness(domain, bounded=False)
    assert panes(stream.bundle(partials(domain, 1), partials(domain, 2, HOUR_MS))) == [("early", 0, 2), ("early", 1, 1)]
    assert panes(stream.bundle(partials(domain, 3), watermark_ms=HOUR_MS)) == [("on_time", 0, 3)]
    assert panes(stream.bundle(partials(domain, 4), watermark_ms=HOUR_MS + 5)) == [("late", 0, 4)]
    assert panes(stream.bundle(watermark_ms=2 * HOUR_MS)) == [("on_time", 1, 1)]
    assert stream.timer.at_ms == 3 * HOUR_MS
    assert panes(stream.bundle(watermark_ms=3 * HOUR_MS)) == []
    assert stream.cell.stored is None


def test_a_bounded_source_has_one_pane_per_tile(domain: Domain) -> None:
    batch = harness(domain, bounded=True)
    assert panes(batch.bundle(partials(domain, 1, HOUR_MS))) == []
    assert panes(batch.bundle(partials(domain, 2, 9 * HOUR_MS), watermark_ms=10**12)) == [
        ("on_time", 0, 2),
        ("on_time", 1, 1),
        ("on_time", 9, 1),
    ]
    assert batch.firings == 2  # closes all, and lets go of all


def test_rows_have_the_declared_schema_and_the_clock_of_their_emission(domain: Domain) -> None:
    (rows,) = harness(domain, bounded=False).bundle(partials(domain, 1))
    assert rows.schema == domain.view(VIEW).gold_schema()
    assert rows.column("created_timestamp").cast(pa.int64()).to_pylist() == [NOW_NS // 1000]
    assert rows.column("event_timestamp").cast(pa.int64()).to_pylist() == [HOUR_MS * 1000]


def test_the_watermark_of_years_closes_every_tile_in_few_firings(domain: Domain) -> None:
    stream = harness(domain, bounded=False)
    closed = panes(stream.bundle(partials(domain, *range(0, 5_000 * HOUR_MS, HOUR_MS)), watermark_ms=10**12))
    assert len(closed) == 5_000
    assert {pane for pane, *_ in closed} == {"on_time"}
    assert stream.firings < 20
