"""Reading: counts without data, current panes as plain Python finds them."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from common.errors import PipelineError
from common.lake import Lake, TableSpec, commit, current_rows, read, row_count
from common.publish import Epoch
from tests.unit.lake.rows import SPEC, events, staged, write

TIME = pa.timestamp("us", "UTC")
GOLD = TableSpec(
    "gold/by_user",
    pa.schema(
        [
            ("user_id", pa.string()),
            ("tile_start", TIME),
            ("views", pa.int64()),
            ("pane", pa.string()),
            ("events", pa.int64()),
            ("created_timestamp", TIME),
        ]
    ),
)
DAY = datetime(2024, 1, 1, tzinfo=UTC)
RANK = {"early": 0, "on_time": 1, "late": 2}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path))


def test_row_count_needs_the_log_only(lake: Lake) -> None:
    assert row_count(lake, "silver") == 0
    write(lake, 0, events([1, 2, 2]))
    write(lake, 1, events([3]))
    for file in Path(lake.warehouse).rglob("*.parquet"):
        file.unlink()
    assert row_count(lake, "silver") == 4


def test_rows_come_back_as_they_went_in(lake: Lake) -> None:
    batch = events([1, 30, 2])
    write(lake, 0, batch)
    rows = read(lake, "silver")
    assert rows.schema == SPEC.storage_schema
    assert sorted(rows.to_pylist(), key=str) == sorted(batch.to_pylist(), key=str)


def test_a_missing_table_says_so(lake: Lake) -> None:
    with pytest.raises(PipelineError, match="no table silver") as caught:
        read(lake, "silver")
    assert caught.value.code == "lake_no_table"


def test_current_rows_are_the_newest_panes(lake: Lake) -> None:
    random.seed(3)
    panes: list[dict[str, Any]] = [
        {
            "user_id": random.choice("abc"),
            "tile_start": DAY + timedelta(hours=random.randrange(4)),
            "views": i,
            "pane": random.choice(list(RANK)),
            "events": random.randrange(4),
            "created_timestamp": DAY + timedelta(seconds=i),
        }
        for i in range(120)
    ]
    expected = {}
    for pane in sorted(panes, key=lambda p: (p["events"], RANK[p["pane"]], p["created_timestamp"])):
        expected[pane["user_id"], pane["tile_start"]] = pane["views"]
    random.shuffle(panes)
    for number, part in enumerate((panes[:50], panes[50:])):
        batch = pa.RecordBatch.from_pylist(part, schema=GOLD.schema)
        commit(lake, GOLD, Epoch("job", number), staged(lake, batch, spec=GOLD))

    rows = current_rows(lake, "gold/by_user", ["user_id"]).to_pylist()

    assert {(row["user_id"], row["tile_start"]): row["views"] for row in rows} == expected
    assert len(rows) == len(expected)
