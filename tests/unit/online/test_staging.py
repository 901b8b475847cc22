"""Online staging: one row per entity, the right one, inside the descriptor or in a file until it is published."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from common.domain import Aggregate, FeatureView
from common.lake import Lake
from common.online import stage_online
from common.online.staging import MAX_INLINE_BYTES, discard_staged, newest_rows, read_staged

VIEW = FeatureView(
    "by_user", "user", "user_id", pa.string(), 3_600_000, (Aggregate("views", "count", None, {}, pa.int64()),)
)
DAY = datetime(2024, 1, 1, tzinfo=UTC)
RANK = {"early": 0, "on_time": 1, "late": 2}


def gold(user: str, hour: int, views: int, pane: str = "on_time", events: int = 1) -> dict[str, object]:
    start = DAY + timedelta(hours=hour)
    return {
        "user_id": user,
        "event_timestamp": start + timedelta(hours=1),
        "tile_start": start,
        "views": views,
        "pane": pane,
        "version_ms": 0,
        "events": events,
        "created_timestamp": DAY,
        "feature_date": "2024-01-01",
        "feature_type": "by_user",
    }


def batch(*rows: dict[str, object]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=VIEW.gold_schema())


def test_the_newest_tile_and_pane_of_each_entity_is_kept() -> None:
    random.seed(5)
    keys = {
        (random.choice("abcd"), random.randrange(5), random.choice(list(RANK)), random.randrange(4)) for _ in "x" * 99
    }
    rows = [gold(user, hour, i, pane, events) for i, (user, hour, pane, events) in enumerate(sorted(keys))]
    expected = {}
    for row in sorted(rows, key=lambda r: (r["event_timestamp"], r["events"], RANK[str(r["pane"])])):
        expected[row["user_id"]] = row["views"]
    random.shuffle(rows)

    kept = newest_rows(VIEW, pa.Table.from_batches([batch(*rows)])).to_pylist()

    assert {row["user_id"]: row["views"] for row in kept} == expected
    assert len(kept) == len(expected)


def test_small_bundles_travel_in_the_descriptor(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    descriptor = stage_online(lake, VIEW, [batch(gold("a", 1, 7)), batch(gold("a", 2, 9))])
    assert descriptor is not None
    rows = read_staged(lake, descriptor)
    assert rows is not None
    assert rows.select(["user_id", "views"]).to_pylist() == [{"user_id": "a", "views": 9}]
    assert list(tmp_path.iterdir()) == []


def test_large_bundles_go_to_a_file_that_publishing_discards(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    random.seed(1)
    rows = [gold(f"{random.random()}", 1, i) for i in range(20_000)]
    descriptor = stage_online(lake, VIEW, [batch(*rows)])
    assert descriptor is not None
    assert len(descriptor) < 200 < MAX_INLINE_BYTES
    staged = read_staged(lake, descriptor)
    assert staged is not None
    assert staged.num_rows == 20_000
    for _ in range(2):  # a repeat finds nothing to discard
        discard_staged(lake, [descriptor])
        assert read_staged(lake, descriptor) is None


@pytest.mark.parametrize("batches", [[], [batch()]])
def test_no_rows_stage_nothing(tmp_path: Path, batches: list[pa.RecordBatch]) -> None:
    assert stage_online(Lake(str(tmp_path)), VIEW, batches) is None
