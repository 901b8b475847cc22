"""Compaction keeps rows and transaction ids; vacuum takes orphans and leaves live files."""

from __future__ import annotations

from pathlib import Path

from common.lake import Lake, commit
from common.lake.maintenance import maintain
from common.publish import Epoch
from tests.unit.lake.rows import SPEC, events, ids, staged, write


def test_maintain_compacts_and_deletes_orphans(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    for number in range(4):
        write(lake, number, events([1], f"n{number}-"))
    staged(lake, events([1], "orphan"))
    before = ids(lake)

    report = maintain(lake, "silver", retention_hours=0)

    assert (report.files_compacted, report.files_written) == (4, 1)
    assert report.files_deleted == 5  # four compacted ones and the orphan
    assert ids(lake) == before
    assert len(list(tmp_path.rglob("date=*/**/*.parquet"))) == 1
    commit(lake, SPEC, Epoch("job", 3), staged(lake, events([1], "replayed")))
    assert ids(lake) == before


def test_retention_keeps_staged_files(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    write(lake, 0, events([1]))
    files = staged(lake, events([1], "staged"))
    assert maintain(lake, "silver").files_deleted == 0
    commit(lake, SPEC, Epoch("job", 1), files)
    assert ids(lake) == ["e0", "staged0"]
