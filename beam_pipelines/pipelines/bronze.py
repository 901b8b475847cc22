"""Bronze: every readable event as it came, without personal data."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import PCollection

from beam_pipelines.transforms.decode import Decode, WriterSchemas
from beam_pipelines.transforms.outputs import Fallible
from beam_pipelines.transforms.scrub import Scrub
from beam_pipelines.transforms.validate import Validate
from common.domain import Domain


class Bronze(NamedTuple):
    """Bronze rows (`Domain.bronze_schema`), and dead letters per failing step."""

    rows: PCollection[pa.RecordBatch]
    dead: tuple[PCollection[pa.RecordBatch], ...]


def bronze(
    raw: PCollection[pa.RecordBatch], domain: Domain, writer_schemas: WriterSchemas, pii_key_file: Path | None
) -> Bronze:
    """RAW batches -> bronze. consumed = bronze + bronze_dlq."""
    decoded = raw | "bronze/decode" >> Fallible(Decode(writer_schemas, domain))
    valid = decoded.good | "bronze/validate" >> Fallible(Validate(domain))
    scrubbed = valid.good | "bronze/scrub" >> beam.ParDo(Scrub(domain, pii_key_file)).with_output_types(pa.RecordBatch)
    return Bronze(scrubbed, (decoded.dead, valid.dead))
