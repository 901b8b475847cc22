"""The peer of keyed state: Spark's `transformWithState` with a Python processor and RocksDB, a sum per key.

Each micro-batch brings every key once, as the epochs of `state.py` do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.runner.measure import processor_seconds

ROCKSDB = "org.apache.spark.sql.execution.streaming.state.RocksDBStateStoreProvider"
LONGEST_S = 600.0


def rate(spark: Any, batches: int, keys: int) -> float:
    """Keys per second of processor time of Spark's processes and its Python workers, after the first two batches."""
    from pyspark.sql import functions
    from pyspark.sql.streaming import StatefulProcessor, StatefulProcessorHandle

    class Sum(StatefulProcessor):
        def init(self, handle: StatefulProcessorHandle) -> None:
            self.total = handle.getValueState("total", "total long")

        def handleInputRows(self, _key: Any, rows: Iterator[Any], _timers: Any) -> Iterator[Any]:  # noqa: N802  Spark's name
            (before,) = self.total.get() or (0,)
            self.total.update((before + sum(row.number for row in rows),))
            return iter(())

        def close(self) -> None:
            pass

    spark.conf.set("spark.sql.streaming.stateStore.providerClass", ROCKSDB)
    spark.conf.set("spark.sql.shuffle.partitions", "2")
    source = spark.readStream.format("rate-micro-batch").option("rowsPerBatch", keys).option("numPartitions", 2).load()
    numbers = source.select((source.value % keys).alias("key"), functions.expr("value & 127").alias("number"))
    sums = numbers.groupBy("key").transformWithState(Sum(), "key long, total long", "Append", "None")
    query = sums.writeStream.format("noop").outputMode("append").start()
    try:
        _wait_for(query, 2)
        began, first = processor_seconds(), _batches(query)
        _wait_for(query, first + batches)
        return keys * (_batches(query) - first) / (processor_seconds() - began)
    finally:
        query.stop()


def _batches(query: Any) -> int:
    return 0 if query.lastProgress is None else int(query.lastProgress["batchId"]) + 1


def _wait_for(query: Any, batches: int) -> None:
    deadline = time.monotonic() + LONGEST_S
    while _batches(query) < batches:
        if query.exception() is not None:
            raise query.exception()
        if time.monotonic() > deadline:
            raise TimeoutError(f"transformWithState made {_batches(query)} batches in {LONGEST_S:.0f} s")
        time.sleep(0.02)
