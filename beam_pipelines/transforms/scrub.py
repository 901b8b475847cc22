"""`Scrub`: personal data hashed, masked or dropped; the rows become bronze rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import pyarrow as pa

from beam_pipelines.transforms.outputs import count
from common.domain import Domain
from common.pii import Scrubber, load_key
from common.records import millis, partition_columns


class Scrub(beam.DoFn):
    """Valid decoded batch -> bronze batch: PII policy applied, raw bytes gone, partition columns added.

    The key is read on the worker (environment, else `key_file`): it is in no pipeline, log or Spark setting.
    """

    def __init__(self, domain: Domain, key_file: Path | None) -> None:
        self._policy = dict(domain.pii)
        self._schema = domain.bronze_schema
        self._key_file = key_file

    def setup(self) -> None:
        needs_key = "hmac" in self._policy.values()
        self._scrubber = Scrubber(self._policy, load_key(self._key_file) if needs_key else b"")

    def process(self, rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        count("bronze", rows.num_rows)
        date, hour = partition_columns(millis(rows.column("_kafka_ts_ms")))
        added = {"pii_scrubbed": pa.repeat(True, rows.num_rows), "date": date, "hour": hour}
        scrubbed = self._scrubber.scrub(rows)
        yield pa.RecordBatch.from_arrays(
            [added[name] if name in added else scrubbed.column(name) for name in self._schema.names],
            schema=self._schema,
        )
