"""Staging: rows go to the right files, in order, with true statistics, and nobody sees them yet."""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import PipelineError
from common.lake import Lake, TableSpec, read, stage
from common.lake.durable import SYNC_EACH_MAX_FILES, make_durable
from tests.unit.lake.rows import SCHEMA, SPEC, events, ids, staged, write


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path))


def test_each_partition_gets_its_rows_in_order(lake: Lake) -> None:
    random.seed(7)
    hours: list[int | None] = [random.choice([0, 1, 5, 24, 30, None]) for _ in range(200)]
    batch = events(hours)
    expected = defaultdict(list)
    for row in batch.to_pylist():
        expected[row["date"], None if row["hour"] is None else str(row["hour"])].append(row["id"])

    files = staged(lake, batch.slice(0, 90), batch.slice(90))

    written = {
        (file.partition["date"], file.partition["hour"]): pq.read_table(f"{lake.warehouse}/silver/{file.path}")
        for file in files
    }
    assert {key: table["id"].to_pylist() for key, table in written.items()} == dict(expected)
    assert len(files) == len(expected)
    assert all("date" not in table.column_names for table in written.values())


def test_descriptor_tells_size_rows_and_bounds(lake: Lake) -> None:
    (file,) = staged(lake, events([3, 3, 3]))
    stats = json.loads(file.stats)
    assert (file.rows, stats["numRecords"]) == (3, 3)
    assert file.size == os.path.getsize(f"{lake.warehouse}/silver/{file.path}")
    assert stats["minValues"] == {"event_time": "2024-01-01T03:00:00.000000Z"}
    assert stats["maxValues"] == {"event_time": "2024-01-01T03:02:00.000000Z"}
    assert stats["nullCount"] == {"event_time": 0}


def test_nulls_are_counted_and_have_no_bounds(lake: Lake) -> None:
    (file,) = staged(lake, events([None, None]))
    stats = json.loads(file.stats)
    assert stats["nullCount"] == {"event_time": 2}
    assert stats["minValues"] == stats["maxValues"] == {}


def test_readers_skip_files_by_statistics(lake: Lake) -> None:
    spec = TableSpec("silver", SCHEMA)
    for number, hour in enumerate((1, 9)):
        write(lake, number, events([hour]), spec)
    late = next(file for file in Path(lake.warehouse).glob("silver/*.parquet") if _hour(file) == 9)
    late.unlink()  # a reader that opened it would fail
    before_noon = pl.col("event_time") < pl.datetime(2024, 1, 1, 5, time_zone="UTC")
    assert read(lake, "silver", ["id"], before_noon).num_rows == 1
    with pytest.raises(FileNotFoundError):
        read(lake, "silver", ["id"])


def _hour(file: Path) -> int:
    return int(pq.read_table(file)["event_time"][0].as_py().hour)


def test_staged_rows_are_invisible_until_committed(lake: Lake) -> None:
    write(lake, 0, events([1], "seen"))
    staged(lake, events([1, 2], "unseen"))
    assert ids(lake) == ["seen0"]


def test_no_rows_stage_nothing(lake: Lake) -> None:
    assert stage(lake, SPEC, []) is None
    assert stage(lake, SPEC, [events([])]) is None
    assert not Path(lake.warehouse, "silver").exists()


def test_files_are_snappy(lake: Lake) -> None:
    (file,) = staged(lake, events([0]))
    metadata = pq.read_metadata(f"{lake.warehouse}/silver/{file.path}")
    assert metadata.row_group(0).column(0).compression == "SNAPPY"


def test_rows_that_do_not_fit_are_refused_without_their_values(lake: Lake) -> None:
    schema = pa.schema([("id", pa.int64())])
    batch = pa.RecordBatch.from_pydict({"id": ["secret-value"]})
    with pytest.raises(PipelineError, match="table numbers") as caught:
        stage(lake, TableSpec("numbers", schema), [batch])
    assert caught.value.code == "lake_bad_rows"
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    with pytest.raises(PipelineError) as caught:
        stage(lake, TableSpec("numbers", schema), [pa.RecordBatch.from_pydict({"other": [1]})])
    assert caught.value.code == "lake_bad_rows"


def test_partition_values_that_readers_would_quote_differently_are_refused(lake: Lake) -> None:
    spec = TableSpec("t", pa.schema([("a", pa.int64()), ("kind", pa.string())]), ("kind",))
    with pytest.raises(PipelineError) as caught:
        stage(lake, spec, [pa.RecordBatch.from_pydict({"a": [1], "kind": ["x/y"]})])
    assert caught.value.code == "lake_bad_partition"
    assert "x/y" not in str(caught.value)


def test_spec_refuses_unknown_partition_column() -> None:
    with pytest.raises(PipelineError, match="nowhere"):
        TableSpec("t", SCHEMA, ("nowhere",))


@pytest.mark.parametrize("count", [1, SYNC_EACH_MAX_FILES])
def test_few_files_are_synced_with_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    paths = [f"date=d/hour={i}/f" for i in range(count)]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_bytes(b"x")
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    make_durable(str(tmp_path), paths)
    folders = [f"date=d/hour={i}" for i in range(count)]
    assert sorted(synced) == sorted(str(tmp_path / name) for name in [*paths, *folders, "date=d", "."])


def test_many_files_are_synced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr("common.lake.durable._sync_filesystem", synced.append)
    monkeypatch.setattr(os, "fsync", lambda _fd: pytest.fail("a file was synced alone"))
    make_durable(str(tmp_path), [f"f{i}" for i in range(SYNC_EACH_MAX_FILES + 1)])
    assert synced == [str(tmp_path)]


@pytest.mark.bench
def test_bench_many_small_partitions(lake: Lake) -> None:
    import time

    batch = events([i % 7800 for i in range(100_000)])
    start = time.perf_counter()
    files = staged(lake, batch)
    print(f"{(time.perf_counter() - start) / len(files) * 1e3:.2f} ms per file")
