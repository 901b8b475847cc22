"""Tiles against plain sums, in any order of merging; and their life under the watermark."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain import Aggregate, FeatureView
from common.open_tiles import OpenTiles, next_firing_ms
from common.tiles import aggregate_rows, gold_rows, merge_tiles

TILE_MS = 1_000
VIEW = FeatureView(
    "user_1s",
    "user",
    "user_id",
    pa.string(),
    TILE_MS,
    (
        Aggregate("views", "count", None, {"type": "view"}, pa.int64()),
        Aggregate("all_events", "count", None, {}, pa.int64()),
        Aggregate("watched", "sum", "watch", {}, pa.int64()),
        Aggregate("least", "min", "watch", {}, pa.int64()),
        Aggregate("most", "max", "watch", {"type": "view"}, pa.int64()),
        Aggregate("average", "mean", "watch", {"type": "view"}, pa.float64()),
    ),
)
SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("time", pa.timestamp("ms", "UTC")),
        ("type", pa.string()),
        ("watch", pa.int64()),
        ("_kafka_ts_ms", pa.int64()),
    ]
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "user_id": st.sampled_from(["a", "b", "c", None]),
            "time": st.integers(0, 5 * TILE_MS),
            "type": st.sampled_from(["view", "like", None]),
            "watch": st.one_of(st.none(), st.integers(-1000, 1000)),
            "_kafka_ts_ms": st.integers(0, 10_000),
        }
    ),
    min_size=1,
    max_size=40,
)


def batch_of(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def plain(rows: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    groups = defaultdict(list)
    for row in rows:
        if row["user_id"] is not None:
            groups[row["user_id"], row["time"] // TILE_MS * TILE_MS].append(row)
    expected = {}
    for tile, some in groups.items():
        watched = [row["watch"] for row in some if row["watch"] is not None]
        viewed = [row["watch"] for row in some if row["watch"] is not None and row["type"] == "view"]
        expected[tile] = {
            "views": sum(row["type"] == "view" for row in some),
            "all_events": len(some),
            "watched": sum(watched),
            "least": min(watched, default=None),
            "most": max(viewed, default=None),
            "average": pytest.approx(sum(viewed) / len(viewed)) if viewed else None,
            "events": len(some),
            "version_ms": max(row["_kafka_ts_ms"] for row in some),
        }
    return expected


def features(tiles: pa.RecordBatch) -> dict[tuple[str, int], dict[str, Any]]:
    names = ["views", "all_events", "watched", "least", "most", "average", "events", "version_ms"]
    gold = gold_rows(VIEW, tiles, "early", 0)
    starts = gold.column("tile_start").cast(pa.int64()).to_numpy() // 1000
    return {
        (row["user_id"], int(start)): {name: row[name] for name in names}
        for row, start in zip(gold.to_pylist(), starts, strict=True)
    }


@given(ROWS)
def test_aggregates_are_those_of_plain_python(rows: list[dict[str, Any]]) -> None:
    assert features(aggregate_rows(VIEW, batch_of(rows), "time")) == plain(rows)


@given(ROWS, st.integers(1, 6), st.randoms(use_true_random=False))
def test_any_split_merged_in_any_order_is_the_whole(
    rows: list[dict[str, Any]], parts: int, order: random.Random
) -> None:
    shuffled = order.sample(rows, len(rows))
    tiles = [aggregate_rows(VIEW, batch_of(shuffled[i::parts]), "time") for i in range(parts)]
    while len(tiles) > 1:
        tiles = [merge_tiles(VIEW, tiles[:2]), *tiles[2:]]
        order.shuffle(tiles)
    assert features(tiles[0]) == plain(rows)


# ---- the watermark
OPEN = OpenTiles(VIEW, allowed_lateness_ms=2 * TILE_MS)


def tiles_at(*times_ms: int) -> pa.RecordBatch:
    rows = [{"user_id": "a", "time": time, "type": "view", "watch": 1, "_kafka_ts_ms": time} for time in times_ms]
    return aggregate_rows(VIEW, batch_of(rows), "time")


def after(*times_ms: int) -> pa.RecordBatch:
    empty = pa.RecordBatch.from_pylist([], schema=OPEN.schema)
    return OPEN.settled(OPEN.merge(empty, tiles_at(*times_ms)))


def starts(panes: dict[str, pa.RecordBatch]) -> dict[str, list[int]]:
    return {pane: tiles.column("tile_ms").to_pylist() for pane, tiles in panes.items()}


def test_a_tile_closes_when_the_watermark_reaches_its_end() -> None:
    tiles = after(500, 1_500)
    assert starts(OPEN.close(tiles, 999).panes) == {}
    closing = OPEN.close(tiles, 1_000)
    assert starts(closing.panes) == {"on_time": [0]}
    assert closing.next_ms == 2_000


def test_a_tile_closes_once() -> None:
    closing = OPEN.close(after(500), 1_000)
    assert starts(OPEN.close(closing.tiles, 1_500).panes) == {}


def test_what_changes_an_open_tile_is_early_and_a_closed_one_late() -> None:
    closed = OPEN.close(after(500, 1_500), 1_000).tiles
    merged = OPEN.merge(closed, tiles_at(600, 1_600))
    assert starts(OPEN.unsettled(merged)) == {"early": [1_000], "late": [0]}
    assert starts(OPEN.unsettled(OPEN.settled(merged))) == {}


def test_late_panes_hold_all_events_of_the_tile() -> None:
    merged = OPEN.merge(OPEN.close(after(100, 200), 1_000).tiles, tiles_at(600))
    assert OPEN.unsettled(merged)["late"].column("events").to_pylist() == [3]


def test_an_early_pane_of_the_bundle_that_closes_the_tile_is_not_sent_twice() -> None:
    closing = OPEN.close(OPEN.merge(after(500), tiles_at(600)), 1_000)
    assert starts(closing.panes) == {"on_time": [0]}
    assert starts(OPEN.unsettled(closing.tiles)) == {}


def test_a_tile_lives_until_its_end_plus_the_lateness() -> None:
    closed = OPEN.close(after(500), 1_000)
    assert closed.next_ms == 3_000
    assert OPEN.close(closed.tiles, 2_999).tiles.num_rows == 1
    gone = OPEN.close(closed.tiles, 3_000)
    assert (gone.tiles.num_rows, gone.next_ms) == (0, None)


def test_a_tile_that_changes_and_expires_in_one_bundle_still_has_its_pane() -> None:
    closed = OPEN.close(after(500), 1_000).tiles
    closing = OPEN.close(OPEN.merge(closed, tiles_at(600)), 3_000)
    assert starts(closing.panes) == {"late": [0]}
    assert closing.tiles.num_rows == 0


def test_a_tile_that_opens_and_expires_at_once_has_one_pane() -> None:
    closing = OPEN.close(OPEN.merge(after(), tiles_at(500)), 9_000)
    assert starts(closing.panes) == {"on_time": [0]}
    assert closing.tiles.num_rows == 0


def test_a_backlog_of_22_years_needs_few_firings() -> None:
    ends = np.arange(1, 190_001) * 3_600_000
    fired, firings = 0, 0
    while fired < ends[-1]:
        fired = next_firing_ms(fired, ends[ends > fired])
        firings += 1
    assert firings < 20


def test_timers_of_neighbouring_tiles_fire_at_each_end() -> None:
    assert next_firing_ms(1_000, np.array([2_000, 3_000])) == 2_000
