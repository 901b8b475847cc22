"""Commits: once per epoch whoever races, atomic replacement, schemas that grow but never change."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from common.errors import PipelineError
from common.lake import Lake, TableSpec, commit, create_table, read
from common.publish import Epoch
from tests.unit.lake.rows import SCHEMA, SPEC, events, ids, staged, write


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path))


def test_an_epoch_is_committed_once(lake: Lake) -> None:
    files = staged(lake, events([1, 2]))
    versions = [commit(lake, SPEC, Epoch("job", 4), files) for _ in range(3)]
    assert versions == [1, 1, 1]
    assert commit(lake, SPEC, Epoch("job", 3), staged(lake, events([1], "older"))) == 1
    assert commit(lake, SPEC, Epoch("job", 5), staged(lake, events([1], "next"))) == 2
    assert commit(lake, SPEC, Epoch("another", 4), staged(lake, events([1], "other"))) == 3
    assert ids(lake) == ["e0", "e1", "next0", "other0"]


def test_an_empty_epoch_makes_no_version(lake: Lake) -> None:
    write(lake, 0, events([1]))
    assert commit(lake, SPEC, Epoch("job", 1), []) == 1


def test_two_writers_of_one_table_do_not_hide_each_other(lake: Lake) -> None:
    for writer in ("bronze", "silver"):
        commit(lake, SPEC, Epoch("job", 0), staged(lake, events([1], writer)), writer=writer)
    assert ids(lake) == ["bronze0", "silver0"]


def test_racing_drivers_commit_an_epoch_once(lake: Lake) -> None:
    files = staged(lake, events([1, 2]))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: commit(lake, SPEC, Epoch("job", 0), files), range(6)))
    assert ids(lake) == ["e0", "e1"]


def test_racing_jobs_all_get_in(lake: Lake) -> None:
    with ThreadPoolExecutor(4) as pool:
        jobs = [f"j{i}" for i in range(4)]
        list(pool.map(lambda job: commit(lake, SPEC, Epoch(job, 0), staged(lake, events([1], job))), jobs))
    assert ids(lake) == ["j00", "j10", "j20", "j30"]


def test_a_conflict_looks_at_the_log_again(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other driver commits our epoch between our look at the log and our commit."""
    files = staged(lake, events([1]))
    real, calls = DeltaTable.create_write_transaction, []

    def lose_the_race(table: DeltaTable, **kwargs: object) -> None:
        calls.append(1)
        real(table, **kwargs)  # the winner's commit
        raise CommitFailedError("lost")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", lose_the_race)
    assert commit(lake, SPEC, Epoch("job", 0), files) == 1
    assert len(calls) == 1
    assert ids(lake) == ["e0"]


def test_endless_contention_is_reported(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(_table: DeltaTable, **_kwargs: object) -> None:
        raise CommitFailedError("lost")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", lose)
    monkeypatch.setattr("time.sleep", lambda _s: None)
    with pytest.raises(PipelineError) as caught:
        write(lake, 0, events([1]))
    assert caught.value.code == "lake_contention"


def test_racing_creators_share_one_table(lake: Lake) -> None:
    with ThreadPoolExecutor(6) as pool:
        tables = list(pool.map(lambda _: create_table(lake, SPEC), range(6)))
    assert {table.version() for table in tables} == {0}


def test_overwrite_replaces_all_rows_and_the_schema(lake: Lake) -> None:
    write(lake, 0, events([1, 2], "old"))
    narrow = TableSpec(
        "silver", pa.schema([SCHEMA.field("id"), SCHEMA.field("date"), SCHEMA.field("hour")]), ("date", "hour")
    )
    batch = events([5], "new").select(narrow.schema.names)
    for _ in range(2):
        version = commit(lake, narrow, Epoch("run", 0), staged(lake, batch, spec=narrow), mode="overwrite")
    assert version == 2
    assert ids(lake) == ["new0"]
    assert read(lake, "silver").column_names == ["id", "date", "hour"]
    assert ids(lake, version=1) == ["old0", "old1"]


def test_overwrite_with_no_rows_empties_the_table(lake: Lake) -> None:
    write(lake, 0, events([1]))
    commit(lake, SPEC, Epoch("run", 0), [], mode="overwrite")
    assert ids(lake) == []


def test_new_columns_and_nested_fields_are_added(lake: Lake) -> None:
    write(lake, 0, events([1], "v1"))
    device = pa.struct([("os", pa.string()), ("locale", pa.string())])
    fields = [pa.field("device", device) if field.name == "device" else field for field in SCHEMA]
    wider = TableSpec("silver", pa.schema([*fields, ("country", pa.string())]), ("date", "hour"))
    row = {**events([2], "v2").to_pylist()[0], "device": {"os": "ios", "locale": "de"}, "country": "AT"}
    write(lake, 1, pa.RecordBatch.from_pylist([row], schema=wider.schema), wider)
    rows = {row["id"]: (row["device"], row["country"]) for row in read(lake, "silver").to_pylist()}
    assert rows == {"v10": ({"os": "ios", "locale": None}, None), "v20": ({"os": "ios", "locale": "de"}, "AT")}
    write(lake, 2, events([3], "again-v1"))  # an old producer goes on
    assert len(ids(lake)) == 3


def test_retyped_columns_are_refused_by_name(lake: Lake) -> None:
    write(lake, 0, events([1]))
    retyped = [pa.field("device", pa.struct([("os", pa.int64())])) if f.name == "device" else f for f in SCHEMA]
    spec = TableSpec("silver", pa.schema(retyped), ("date", "hour"))
    with pytest.raises(PipelineError, match=r"device\.os is string in the table and int64") as caught:
        commit(lake, spec, Epoch("job", 1), staged(lake, events([1])))
    assert caught.value.code == "lake_schema_conflict"
    assert "new name" in (caught.value.hint or "")
    assert ids(lake) == ["e0"]


def test_other_partitions_are_refused(lake: Lake) -> None:
    write(lake, 0, events([1]))
    with pytest.raises(PipelineError, match=r"partitioned by \(date, hour\) and the rows by \(date\)"):
        write(lake, 1, events([1]), TableSpec("silver", SCHEMA, ("date",)))
