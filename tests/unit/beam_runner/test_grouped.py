"""What writers of pairs leave behind: bytes per key, as if each pair had been encoded when it came."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import Coder, FastPrimitivesCoder, VarIntCoder
from apache_beam.coders.coders import GlobalWindowCoder, IntervalWindowCoder, ListCoder
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import GlobalWindow, IntervalWindow
from apache_beam.utils.windowed_value import WindowedValue

from spark_jobs.beam_runner import SparkRunner
from spark_jobs.beam_runner.bundles.exchange import key_group
from spark_jobs.beam_runner.keyed import combining, grouped
from spark_jobs.beam_runner.keyed.combining import CombiningWriter
from spark_jobs.beam_runner.keyed.grouped import GroupingWriter, Layout, read_block
from spark_jobs.beam_runner.keyed.values import ValueDecoder, packer

ANY = FastPrimitivesCoder()
# Many of these are equal to each other in Python, and differ once they are encoded.
KEYS = [1, 1.0, True, "1", b"1", b"\x01", (1,), (True,), None, 0, False, "", b"", ANY.encode(1), 1 << 70]

Sent = list[tuple[int, bytes]]


def pair(key: Any, value: Any, *windows: Any) -> WindowedValue:
    return WindowedValue((key, value), 0, windows or (GlobalWindow(),))


def by_key(sent: Sent, coder: Coder) -> dict[bytes, list[Any]]:
    """Encoded key -> values in the order in which they left."""
    decoder = ValueDecoder(coder)
    found: dict[bytes, list[Any]] = defaultdict(list)
    for _, block in sent:
        for _, key, count, data, _ in read_block(block):
            found[key] += decoder.decode(count, data)
    return dict(found)


@pytest.mark.parametrize("held_bytes", [64 << 20, 1000, 0])
@pytest.mark.parametrize("coder", [VarIntCoder(), ANY])
def test_keys_are_told_apart_by_their_encoding(monkeypatch: pytest.MonkeyPatch, coder: Coder, held_bytes: int) -> None:
    monkeypatch.setattr(grouped, "HELD_BYTES", held_bytes)
    sent: Sent = []
    impl = coder.get_impl()
    writer = GroupingWriter(
        Layout(by_window=True),
        ANY.get_impl(),
        GlobalWindowCoder().get_impl(),
        impl.encode_nested,
        lambda group, block: sent.append((group, block)),
        packer(coder),
    )
    writer.key_groups = 4
    truth: dict[bytes, list[int]] = defaultdict(list)
    for number in range(200):
        key = KEYS[number * 7 % len(KEYS)]
        writer.add(pair(key, number))
        truth[ANY.get_impl().encode_nested(key)].append(number)
    writer.flush()
    assert by_key(sent, coder) == truth
    assert all(key_group(run[1], 4) == group for group, block in sent for run in read_block(block))


class Listed(beam.CombineFn):
    """Keeps what it is given, in order; `compact` and merging leave a mark."""

    def create_accumulator(self) -> list[Any]:
        return []

    def add_input(self, accumulator: list[Any], value: Any) -> list[Any]:
        return [*accumulator, *value] if isinstance(value, list) else [*accumulator, value]

    def compact(self, accumulator: list[Any]) -> list[Any]:
        return [*accumulator, "compact"]


def combined(monkeypatch: pytest.MonkeyPatch, held_bytes: int, most_keys: int) -> tuple[Sent, dict[bytes, list[Any]]]:
    """-> (what left, the values that each key had in order)."""
    monkeypatch.setattr(grouped, "HELD_BYTES", held_bytes)
    monkeypatch.setattr(combining, "HELD_BYTES", held_bytes)
    monkeypatch.setattr(combining, "MOST_KEYS", most_keys)
    sent: Sent = []
    writer = CombiningWriter(
        Listed(),
        contextlib.nullcontext(),
        ANY.get_impl(),
        IntervalWindowCoder().get_impl(),
        ListCoder(ANY).get_impl().encode_nested,
        lambda group, block: sent.append((group, block)),
    )
    truth: dict[bytes, list[Any]] = defaultdict(list)
    for number in range(300):
        key = KEYS[number * 7 % len(KEYS)]
        value: Any = [number, "listed"] if number % 4 == 0 else number
        writer.add(pair(key, value, IntervalWindow(0, 10)))
        truth[ANY.get_impl().encode_nested(key)] += value if isinstance(value, list) else [value]
        if isinstance(value, list):
            value.clear()  # as a DoFn may that fills one buffer again and again
    writer.flush()
    return sent, truth


@pytest.mark.parametrize(("held_bytes", "most_keys"), [(64 << 20, 100), (4000, 100), (4000, 3), (0, 0)])
def test_accumulators_hold_what_their_keys_had_in_order(
    monkeypatch: pytest.MonkeyPatch, held_bytes: int, most_keys: int
) -> None:
    sent, truth = combined(monkeypatch, held_bytes, most_keys)
    accumulators = by_key(sent, ListCoder(ANY))
    assert {key: [v for some in seen for v in some if v != "compact"] for key, seen in accumulators.items()} == truth
    assert all(some[-1] == "compact" and some.count("compact") == 1 for seen in accumulators.values() for some in seen)
    if most_keys == 100:
        assert all(len(seen) == 1 for seen in accumulators.values()), "room is made by folding"


class Counted(beam.CombineFn):
    """A sum that counts its inputs in a metric, and whose setup is needed."""

    def __init__(self) -> None:
        self.inputs = Metrics.counter("test", "inputs")
        self.start: int | None = None

    def setup(self) -> None:
        self.start = 0

    def create_accumulator(self) -> int:
        assert self.start is not None, "set up"
        return self.start

    def add_input(self, total: int, value: int) -> int:
        self.inputs.inc()
        return total + value

    def merge_accumulators(self, totals: Iterable[int]) -> int:
        return sum(totals)

    def extract_output(self, total: int) -> int:
        return total

    def teardown(self) -> None:
        self.start = None


@pytest.mark.parametrize("values", [int, Any])
def test_metrics_of_a_lifted_combine_are_those_of_its_step(values: Any) -> None:
    p = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(["--transport=local"]))
    numbers = p | beam.Create([("a", 1), ("b", 2), ("a", 3)]).with_output_types(tuple[str, values])
    assert_that(numbers | "Add up" >> beam.CombinePerKey(Counted()), equal_to([("a", 4), ("b", 2)]))
    (counter,) = p.run().metrics().query(beam.metrics.MetricsFilter().with_name("inputs"))["counters"]
    assert counter.committed == 3
    assert counter.key.step == "Add up/Precombine"  # as Beam's own runner names it
