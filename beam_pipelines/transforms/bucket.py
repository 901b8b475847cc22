"""`SplitByBucket`: batches to (bucket, batch), the key that stateful steps hang on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from common.hashing import bucket_of

# A bundle's batches leave together: one element per bucket and bundle, since a stateful step pays per element.
FLUSH_ROWS = 500_000


class SplitByBucket(beam.DoFn):
    """Batches of a bundle -> (bucket, batch) for each bucket that has rows; rows keep their order within a bucket.

    bucket = stable hash of column `key` % `buckets`: a duplicate always meets its original. In the global window.
    """

    def __init__(self, key: str, buckets: int) -> None:
        self._key, self._buckets = key, buckets

    def start_bundle(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0
        self._timestamp = MAX_TIMESTAMP

    def process(self, rows: pa.RecordBatch, timestamp: Timestamp = beam.DoFn.TimestampParam) -> Iterator[WindowedValue]:
        self._batches.append(rows)
        self._rows += rows.num_rows
        self._timestamp = min(self._timestamp, timestamp)
        if self._rows >= FLUSH_ROWS:
            yield from self._flush()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        yield from self._flush()

    def _flush(self) -> Iterator[WindowedValue]:
        if self._rows:
            # Beam timestamps of batches only matter to the watermark: the oldest of what is in it.
            timestamp = min(self._timestamp, GlobalWindow().max_timestamp())
            for keyed in split_by_bucket(pa.concat_batches(self._batches), self._key, self._buckets):
                yield WindowedValue(keyed, timestamp, (GlobalWindow(),))
        self.start_bundle()


def split_by_bucket(rows: pa.RecordBatch, key: str, buckets: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(bucket, its rows in order), buckets ascending: one sort of small integers, then slices."""
    codes = bucket_of(rows.column(key), buckets)
    order = np.argsort(codes, kind="stable")  # a radix sort for 16-bit integers
    ordered = rows.take(pa.array(order))
    bounds = np.searchsorted(codes[order], np.arange(buckets + 1)).tolist()
    for bucket, (start, end) in enumerate(pairwise(bounds)):
        if end > start:
            yield bucket, ordered.slice(start, end - start)
