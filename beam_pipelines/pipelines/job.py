"""The job: source -> bronze -> silver -> gold, each layer to its table, features to the online store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import PBegin, PCollection

from beam_pipelines.io.lake import WriteTable
from beam_pipelines.io.online import WriteOnline
from beam_pipelines.pipelines.bronze import bronze
from beam_pipelines.pipelines.gold import gold
from beam_pipelines.pipelines.silver import silver
from beam_pipelines.transforms.decode import WriterSchemas
from common.domain import Domain
from common.lake import Lake, Mode, TableSpec
from common.records import DEAD_LETTER_SCHEMA

HOURLY = ("date", "hour")
FEATURES = ("feature_date", "feature_type")


@dataclass(frozen=True)
class Online:
    """Where features are served from. `project` is Feast's; `redis_url` has no password."""

    project: str
    redis_url: str


@dataclass(frozen=True)
class JobConfig:
    """What the job is made of.

    source: gives RAW batches (common/records.py): `ReadFromKafka`, or anything else in a test.
    bounded: whether the source ends; then tiles have no early panes.
    mode: `overwrite` replaces the tables (a batch run), `append` adds to them.
    run: id of the run, for runners that do not drive publishers themselves (see `Publish`).
    buckets: spread of keyed state; fixed for the life of a checkpoint.
    """

    domain: Domain
    source: beam.PTransform[PBegin, PCollection[pa.RecordBatch]]
    writer_schemas: WriterSchemas
    lake: Lake
    bounded: bool
    mode: Mode = "append"
    run: str | None = None
    buckets: int = 16
    pii_key_file: Path | None = None
    online: Online | None = None


def tables(domain: Domain) -> dict[str, TableSpec]:
    """The job's tables by name: bronze, silver, dlq and gold/<view>."""
    specs = [
        TableSpec("bronze", domain.bronze_schema, HOURLY),
        TableSpec("silver", domain.silver_schema, HOURLY),
        TableSpec("dlq", DEAD_LETTER_SCHEMA),
        *(TableSpec(f"gold/{view.name}", view.gold_schema(), FEATURES) for view in domain.features),
    ]
    return {spec.name: spec for spec in specs}


def build(p: beam.Pipeline, job: JobConfig) -> None:
    """Adds the whole job to the pipeline."""
    domain = job.domain
    raw = p | "source" >> job.source
    bronze_rows, bronze_dead = bronze(raw, domain, job.writer_schemas, job.pii_key_file)
    silver_rows, silver_dead = silver(bronze_rows, domain, job.buckets)
    views = gold(silver_rows, domain, job.buckets, bounded=job.bounded)
    dead = (*bronze_dead, *silver_dead) | "dlq/all" >> beam.Flatten()

    written = {"bronze": bronze_rows, "silver": silver_rows, "dlq": dead}
    written |= {f"gold/{name}": panes for name, panes in views.items()}
    specs = tables(domain)
    for name, rows in written.items():
        _ = rows | f"{name}/write" >> WriteTable(job.lake, specs[name], job.run, mode=job.mode)
    if job.online is not None:
        for view in domain.features:
            to_online = WriteOnline(job.lake, view, job.online.project, job.online.redis_url, job.run)
            _ = views[view.name] | f"gold/{view.name}/online" >> to_online
