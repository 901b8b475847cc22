"""A sum per key in a stream, against Spark's `transformWithState` with as many keys a batch as ours has an epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.coders import VarIntCoder
from apache_beam.transforms import userstate

from benchmarks.runner import transform_with_state
from benchmarks.runner.measure import Figure
from benchmarks.runner.rates import ON_SPARK, Build, local_rate, spark_rate, warm_up

SIZES, LARGE = (50_000, 4_000), 200_000  # the peer would need a minute for a batch of the large size
TARGET, TIMES = 60_000, 30


class ValueSum(beam.DoFn):
    SUM = userstate.ReadModifyWriteStateSpec("sum", VarIntCoder())

    def process(self, pair: tuple[int, int], total: Any = beam.DoFn.StateParam(SUM)) -> None:
        total.write((total.read() or 0) + pair[1])


class AddUp(beam.CombineFn):
    def create_accumulator(self) -> int:
        return 0

    def add_input(self, total: int, value: int) -> int:
        return total + value

    def merge_accumulators(self, totals: Iterable[int]) -> int:
        return sum(totals)

    def extract_output(self, total: int) -> int:
        return total


class CombiningSum(beam.DoFn):
    SUM = userstate.CombiningValueStateSpec("sum", VarIntCoder(), AddUp())

    def process(self, pair: tuple[int, int], total: Any = beam.DoFn.StateParam(SUM)) -> None:
        total.add(pair[1])


STATEFUL: dict[str, Build] = {
    "value state": lambda events: events | beam.ParDo(ValueSum()),
    "combining state": lambda events: events | beam.ParDo(CombiningSum()),
}


def nothing(events: Any) -> Any:
    return events | beam.Map(lambda _: None)


def measure(spark: Any, epochs: int) -> Iterator[Figure]:
    goal = f">= {TARGET:,}/s, {TIMES} x"
    warm_up(spark, STATEFUL["value state"], SIZES[0], timed=False)
    for size in SIZES:
        peer = (f"transformWithState, {size:,} keys a batch", transform_with_state.rate(spark, epochs // 2, size))
        yield Figure("state", f"source alone, {size:,}, local", local_rate(nothing, epochs, size, timed=False), "/s")
        for what, build in STATEFUL.items():
            where = f"{what}, {size:,} keys an epoch"
            yield Figure("state", f"{where}, local", local_rate(build, epochs, size, timed=False), "/s", goal, *peer)
            ours = spark_rate(spark, build, epochs, size, timed=False)
            yield Figure("state", f"{where}, Spark", ours, ON_SPARK, goal, *peer)
    for what, build in STATEFUL.items():
        ours = spark_rate(spark, build, epochs, LARGE, timed=False)
        yield Figure("state", f"{what}, {LARGE:,} keys an epoch, Spark", ours, ON_SPARK, f">= {TARGET:,}/s")
