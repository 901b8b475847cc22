"""Rows that a task has no memory for: they wait in a file, and nothing else changes."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import VarIntCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.transforms.window import FixedWindows

from spark_jobs.beam_runner import SparkRunner
from spark_jobs.beam_runner.bundles import spool as spool_module
from spark_jobs.beam_runner.bundles import task, waiting
from spark_jobs.beam_runner.bundles.exchange import EdgeId, Outbox, Row, held
from spark_jobs.beam_runner.bundles.spool import Spilled, Spool
from spark_jobs.beam_runner.keyed import grouped
from tests.model.script import Script, at, step
from tests.model.stream import Stage

SIZE = 8 << 10
KEYS, VALUES = 7, 40


def test_what_is_beyond_the_memory_is_read_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_LOCAL_DIRS", f"{tmp_path},elsewhere")
    some = [bytes([number]) * (SIZE + number) for number in range(10)]
    spool = Spool(3 * SIZE)
    kept = [spool.keep(data) for data in some]
    assert [type(data) for data in kept] == [bytes] * 2 + [Spilled] * 8
    assert type(spool.keep(b"small")) is bytes, "a place in a file would cost more"
    assert spool.keep(kept[-1]) is kept[-1]
    del spool
    assert [bytes(data) for data in kept[::-1]] == some[::-1], "in any order"
    assert [len(data) for data in kept] == [len(data) for data in some]
    assert pickle.loads(pickle.dumps(kept)) == some
    assert list(tmp_path.iterdir()) == [], "nothing to clean up after a crash"


def test_a_file_that_lost_its_end_is_an_error() -> None:
    lost = Spool(0).keep(bytes(SIZE))
    assert isinstance(lost, Spilled)
    lost._file._file.truncate(SIZE - 1)
    with pytest.raises(EOFError, match="1 bytes before"):
        bytes(lost)


def test_what_the_system_writes_in_parts_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[:1000], at))
    monkeypatch.setattr(os, "pread", lambda file, length, at: read(file, min(length, 700), at))
    some, spool = [os.urandom(SIZE + number) for number in range(3)], Spool(0)
    kept = [spool.keep(data) for data in some]
    assert all(isinstance(data, Spilled) for data in kept)
    assert [bytes(data) for data in kept] == some


def test_a_full_disk_is_an_error_that_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int, _data: memoryview, _at: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path))
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match=f"No space left.*{tmp_path}.*SPARK_LOCAL_DIRS"):
        Spool(0).keep(bytes(SIZE))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OSError, match=f"Permission denied.*{tmp_path}.*SPARK_LOCAL_DIRS"):
        Spool(0).keep(bytes(SIZE))


def test_a_large_row_does_not_take_the_room_of_those_behind_it() -> None:
    spool = Spool(10 * SIZE)
    assert isinstance(spool.keep(bytes(11 * SIZE)), Spilled)
    assert type(spool.keep(bytes(SIZE))) is bytes


def test_a_key_group_beyond_what_may_be_open_is_read_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "OPEN_BYTES", 3 * SIZE)
    blocks = [
        grouped.write_block([(b"", b"hot", 1, bytes([n]) * SIZE, None), (b"", b"k", 1, b"few", None)]) for n in range(6)
    ]
    arrived = grouped.runs_by_key(blocks)
    assert [type(data) for _, data in arrived[b"hot"]] == [bytes] * 2 + [Spilled] * 4
    assert [bytes(data) for _, data in arrived[b"hot"]] == [bytes([n]) * SIZE for n in range(6)]
    assert arrived[b"k"] == [(1, b"few")] * 6


def test_rows_that_wait_are_written_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PORTION_BYTES", 3 * SIZE)
    spool = Spool(0)
    rows: list[list[Row]] = [held([(n, b"", bytes([n]) * SIZE) for n in range(count)], spool) for count in (4, 0, 3)]
    stored = [waiting.decode_rows(waiting.encode_rows(portion)) for portion in waiting.portions(rows)]
    assert [sum(map(len, portion)) for portion in stored] == [3, 3, 1]
    joined = [[row for portion in stored for row in portion[index]] for index in range(3)]
    assert joined == [[(n, b"", bytes([n]) * SIZE) for n in range(count)] for count in (4, 0, 3)]
    assert list(waiting.portions([[], []])) == []


def test_rows_that_wait_for_a_side_input_are_in_files_as_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[type] = []

    def noted(rows: list[list[Row]]) -> Iterator[list[list[Row]]]:
        waited.extend(type(row[2]) for some in rows for row in some)
        return waiting.portions(rows)

    monkeypatch.setattr(task, "portions", noted)
    main = [step(*(at(second, ("k", bytes(SIZE))) for second in (1, 11, 2, 12)), watermark=1), step(), step()]
    side = [step(at(1, ("s", b"side")), watermark=10), step(watermark=50), step()]
    scripts, stage = {"main": main, "side": side}, Stage(tmp_path)

    def build(p: beam.Pipeline) -> None:
        played = [p | name >> Script(script, element_type=tuple[str, bytes]) for name, script in scripts.items()]
        pairs, values = (some | f"{n}" >> beam.WindowInto(FixedWindows(10)) for n, some in enumerate(played))
        stage.collect(pairs | beam.Map(lambda pair, seen: len(pair[1]) + len(seen), beam.pvalue.AsList(values)))

    stage.run(build, 1, "--spill_above_mb=0")
    assert sorted(stage.values()) == [SIZE] * 2 + [SIZE + 1] * 2
    assert set(waited) == {Spilled}


def value(key: int, number: int) -> bytes:
    return bytes([key, number]) * (SIZE // 2)


class Running(beam.DoFn):
    SUM = ReadModifyWriteStateSpec("sum", VarIntCoder())

    def process(self, pair: tuple[int, bytes], total: Any = beam.DoFn.StateParam(SUM)) -> Iterator[tuple[int, int]]:
        total.write((total.read() or 0) + zlib.crc32(pair[1]))
        yield pair[0], total.read()


class Tell(beam.DoFn):
    def process(self, pair: tuple[int, int], name: str) -> None:
        beam.metrics.Metrics.counter(name, str(pair[0])).inc(pair[1])


def grouped_reshuffled_and_in_state(pipeline: Any) -> None:
    made = (
        pipeline
        | beam.Create(list(range(KEYS)))
        | beam.FlatMap(lambda key: [(key, value(key, number)) for number in range(VALUES)]).with_output_types(
            tuple[int, bytes]
        )
    )
    shuffled = made | "spread" >> beam.Reshuffle()
    sums = {
        "grouped": made | beam.GroupByKey() | beam.MapTuple(lambda key, some: (key, sum(map(zlib.crc32, some)))),
        "shuffled": shuffled | beam.MapTuple(lambda key, some: (key, zlib.crc32(some))),
        "state": shuffled | beam.ParDo(Running()) | beam.CombinePerKey(max),
    }
    for name, sum_of_keys in sums.items():
        _ = sum_of_keys | f"tell {name}" >> beam.ParDo(Tell(), name)


@pytest.mark.parametrize("transport", ["local", pytest.param("spark", marks=pytest.mark.slow)])
def test_a_pipeline_whose_rows_are_all_in_files(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spilled = Counter[str]()

    class Counted(Spilled):
        __slots__ = ()

        def __init__(self, *where: Any) -> None:
            super().__init__(*where)
            spilled["rows"] += 1

    monkeypatch.setattr(spool_module, "Spilled", Counted)
    flags = [f"--transport={transport}", "--tasks=3", "--spill_above_mb=0"]
    pipeline = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(flags))
    grouped_reshuffled_and_in_state(pipeline)
    found = pipeline.run().metrics().query()["counters"]
    counters = {(c.key.metric.namespace, c.key.metric.name): c.committed for c in found}
    truth = {str(key): sum(zlib.crc32(value(key, number)) for number in range(VALUES)) for key in range(KEYS)}
    for name in ("grouped", "shuffled", "state"):
        assert {key: n for (space, key), n in counters.items() if space == name} == truth, name
    assert spilled["rows"] > KEYS or transport == "spark", "in processes of their own"


def peak_of_a_worker(spill_above_mb: int, megabytes: int) -> int:
    """MiB, of a Python worker that is sent and sends on so many megabytes in one task."""

    class Peak(beam.DoFn):
        def __init__(self) -> None:
            self.peak = beam.metrics.Metrics.distribution("memory", "peak")
            self.values = beam.metrics.Metrics.counter("memory", "values")

        def process(self, pair: tuple[int, Any]) -> None:
            self.values.inc(sum(len(value) >> 10 for value in pair[1]))

        def finish_bundle(self) -> None:
            self.peak.update(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)

    flags = ["--tasks=1", f"--spill_above_mb={spill_above_mb}"]
    pipeline = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(flags))
    _ = (
        pipeline
        | beam.Create([0])
        | beam.FlatMap(lambda _: ((n, bytes(1 << 10)) for n in range(megabytes << 10))).with_output_types(
            tuple[int, bytes]
        )
        | beam.GroupByKey()
        | beam.ParDo(Peak())
    )
    metrics = pipeline.run().metrics().query()
    (values,) = (c.committed for c in metrics["counters"] if c.key.metric.name == "values")
    assert values == megabytes << 10
    (peak,) = (d.committed.max for d in metrics["distributions"] if d.key.metric.name == "peak")
    return int(peak)


@pytest.mark.slow
def test_a_task_needs_no_memory_for_all_that_it_receives() -> None:
    spilled = peak_of_a_worker(16, 512)  # first: workers go on to the next job, and a peak stays one
    in_memory = peak_of_a_worker(4096, 512)
    assert in_memory > 512
    assert spilled < in_memory - 400, f"{spilled} of {in_memory} MiB"


def rows_of_a_shuffle(
    count: int, tasks: int, monkeypatch: pytest.MonkeyPatch, *, times: int = 1
) -> list[tuple[int, int]]:
    """-> (task, elements) of the rows by which so many elements of one task are spread, so many epochs long."""
    rows: list[tuple[EdgeId, int, int]] = []
    send = Outbox.send

    def noted(self: Outbox, edge: EdgeId, partition: int, row: Row) -> None:
        rows.append((edge, partition % self.partitions, len(row[2])))
        send(self, edge, partition, row)

    monkeypatch.setattr(Outbox, "send", noted)
    flags = ["--transport=local", f"--tasks={tasks}", "--streaming"]
    with beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(flags)) as pipeline:
        script = test_stream.TestStream()
        for _ in range(times):
            script.add_elements([count])
        numbers = pipeline | script | beam.FlatMap(lambda count: [1] * count).with_output_types(int)
        _ = numbers | "spread" >> beam.Reshuffle() | beam.Map(lambda number: number)
    monkeypatch.undo()
    edge = rows[-1][0]
    spread = [(partition, size) for some, partition, size in rows if some == edge]
    one = spread[0][1]
    assert sum(size for _, size in spread) == times * count * one
    return [(partition, size // one) for partition, size in spread]


@pytest.mark.parametrize(("count", "tasks", "most_rows"), [(20_000, 4, 2_000), (300, 100, 300), (5_000, 200, 5_000)])
def test_a_shuffle_spreads_its_first_elements_one_by_one_and_more_in_chunks(
    count: int, tasks: int, most_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of_a_shuffle(count, tasks, monkeypatch)
    assert {elements for _, elements in rows[:256]} == {1}
    assert len(rows) <= most_rows
    shares = Counter[int]()
    for partition, elements in rows:
        shares[partition] += elements
    assert max(shares.values()) <= 1.1 * count / tasks + 1


def test_a_shuffle_routes_alike_in_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an epoch that is run again does."""
    rows = rows_of_a_shuffle(1_000, 3, monkeypatch, times=2)
    half = len(rows) // 2
    assert rows[:half] == rows[half:]
