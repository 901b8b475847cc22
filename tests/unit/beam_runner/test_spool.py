"""Rows that a task has no memory for: they wait in a file, and nothing else changes."""

from __future__ import annotations

import pickle
import resource
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import VarIntCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

from spark_jobs.beam_runner import SparkRunner
from spark_jobs.beam_runner.bundles import spool as spool_module
from spark_jobs.beam_runner.bundles.exchange import EdgeId, Outbox, Row
from spark_jobs.beam_runner.bundles.spool import LEAST_BYTES, Spilled, Spool

SIZE = 2 * LEAST_BYTES
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
    lost._file.truncate(SIZE - 1)
    with pytest.raises(EOFError, match="1 bytes before"):
        bytes(lost)


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


def test_a_shuffle_spreads_its_first_elements_one_by_one_and_more_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[tuple[EdgeId, int, int]] = []
    send = Outbox.send

    def noted(self: Outbox, edge: EdgeId, partition: int, row: Row) -> None:
        rows.append((edge, partition % self.partitions, len(row[2])))
        send(self, edge, partition, row)

    monkeypatch.setattr(Outbox, "send", noted)
    count, tasks = 20_000, 4
    flags = ["--transport=local", f"--tasks={tasks}"]
    with beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(flags)) as pipeline:
        numbers = pipeline | beam.Create([0]) | beam.FlatMap(lambda _: [1] * count).with_output_types(int)
        _ = numbers | "spread" >> beam.Reshuffle() | beam.Map(lambda number: number)
    edge = rows[-1][0]
    spread = [(partition, size) for some, partition, size in rows if some == edge]
    one = spread[0][1]
    assert sum(size for _, size in spread) == count * one
    assert {size for _, size in spread[:256]} == {one}
    assert len(spread) < 2_000
    shares = Counter[int]()
    for partition, size in spread:
        shares[partition] += size // one
    assert max(shares.values()) - min(shares.values()) < count / tasks / 32
