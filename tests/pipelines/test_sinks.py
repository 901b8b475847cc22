"""The sinks on Beam's own runner, and what a runner that drives publishers finds in the pipeline proto."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from beam_pipelines.io.lake import WriteTable
from beam_pipelines.io.publish import Publish
from common.errors import PipelineError
from common.lake import Lake, LakePublisher, TableSpec, read, row_count
from common.publish import PUBLISH_URN, Epoch
from tests.unit.lake.rows import SPEC, events


@dataclass(frozen=True)
class FilePublisher:
    """Writes what it was called with to a file, a line per call."""

    path: str

    def publish(self, epoch: Epoch, staged: Sequence[bytes]) -> Mapping[str, int]:
        with open(self.path, "a") as file:
            file.write(f"{epoch.number} {sorted(staged)}\n")
        return {"published": len(staged)}


def pipeline() -> beam.Pipeline:
    return beam.Pipeline(runner=FnApiRunner())


def test_the_proto_carries_urn_and_publisher() -> None:
    p = pipeline()
    _ = p | beam.Create([b"a"]) | "sink" >> Publish(FilePublisher("there"))
    proto = p.to_runner_api()
    (composite,) = [t for t in proto.components.transforms.values() if t.spec.urn == PUBLISH_URN]
    assert composite.unique_name == "sink"
    assert len(composite.inputs) == 1
    assert not composite.outputs
    assert pickle.loads(composite.spec.payload) == FilePublisher("there")
    beam.Pipeline.from_runner_api(proto, FnApiRunner(), p.options)


@pytest.mark.parametrize("descriptors", [[b"a", b"b"], []])
def test_other_runners_publish_once_when_all_is_staged(tmp_path: Path, descriptors: list[bytes]) -> None:
    calls = tmp_path / "calls"
    p = pipeline()
    _ = p | beam.Create(descriptors) | Publish(FilePublisher(str(calls)))
    result = p.run()
    result.wait_until_finish()
    assert calls.read_text() == f"0 {descriptors}\n"
    counters = result.metrics().query()["counters"]
    assert [(c.key.metric.namespace, c.key.metric.name, c.committed) for c in counters] == [
        ("pipeline", "published", len(descriptors))
    ]


def write(lake: Lake, batches: Sequence[pa.RecordBatch], **options: Any) -> None:
    with pipeline() as p:
        _ = p | beam.Create(batches) | beam.Reshuffle() | "silver" >> WriteTable(lake, SPEC, **options)


def ids(lake: Lake) -> list[str]:
    return sorted(read(lake, "silver", ["id"])["id"].to_pylist())


def test_a_table_is_written_in_one_version(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    batches = [events([1, 2], f"b{i}-") for i in range(4)]
    write(lake, batches)
    assert ids(lake) == sorted(name for batch in batches for name in batch["id"].to_pylist())
    assert lake.open("silver").version() == 1  # 0 made the table


def test_a_second_run_appends_or_replaces(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    write(lake, [events([1], "first")])
    write(lake, [events([1], "second")])
    assert ids(lake) == ["first0", "second0"]
    write(lake, [events([1], "third")], mode="overwrite")
    assert ids(lake) == ["third0"]


def test_a_repeated_job_is_written_once(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    for _ in range(2):
        write(lake, [events([1])], job="run-1")
    assert ids(lake) == ["e0"]


def test_no_rows_make_an_empty_table(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    write(lake, [])
    assert lake.exists("silver")
    assert row_count(lake, "silver") == 0


def test_flushes_at_the_row_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beam_pipelines.io.lake.FLUSH_ROWS", 2)
    lake = Lake(str(tmp_path))
    with pipeline() as p:
        _ = p | beam.Create([events([1], f"b{i}-") for i in range(5)], reshuffle=False) | WriteTable(lake, SPEC)
    assert len(ids(lake)) == 5
    assert len(list(tmp_path.rglob("hour=1/*.parquet"))) == 3


def fail_on_second(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    if batch["id"][0].as_py() == "b1-0":
        raise ValueError("broken")
    yield batch


def test_a_failed_run_commits_nothing(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    with pytest.raises(Exception, match="broken"), pipeline() as p:
        _ = (
            p
            | beam.Create([events([1], f"b{i}-") for i in range(3)])
            | beam.FlatMap(fail_on_second)
            | WriteTable(lake, SPEC)
        )
    assert row_count(lake, "silver") == 0


def test_two_writers_of_a_table_need_names(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    p = pipeline()
    rows = p | beam.Create([events([1])])
    _ = rows | "first" >> WriteTable(lake, SPEC)
    with pytest.raises(PipelineError, match="'silver'") as caught:
        _ = rows | "second" >> WriteTable(lake, SPEC)
    assert caught.value.code == "lake_writer_clash"
    _ = rows | "third" >> WriteTable(lake, SPEC, writer="late_rows")
    p.run().wait_until_finish()
    assert ids(lake) == ["e0", "e0"]


def test_publishers_are_small_and_picklable(tmp_path: Path) -> None:
    publisher = LakePublisher(Lake(str(tmp_path)), TableSpec("t", SPEC.schema), "append", "t")
    data = pickle.dumps(publisher)
    assert pickle.loads(data) == publisher
    assert len(data) < 4096
