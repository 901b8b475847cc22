"""Silver: each event once, flat, normalised, enriched."""

from __future__ import annotations

from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsSingleton, PCollection

from beam_pipelines.transforms.bucket import SplitByBucket
from beam_pipelines.transforms.dedupe import Dedupe
from beam_pipelines.transforms.lateness import DropTooLate
from beam_pipelines.transforms.outputs import Fallible
from beam_pipelines.transforms.refine import Enrich, Refine, read_reference
from common.domain import Domain


class Silver(NamedTuple):
    """Silver rows (`Domain.silver_schema`), and dead letters per failing step."""

    rows: PCollection[pa.RecordBatch]
    dead: tuple[PCollection[pa.RecordBatch], ...]


def silver(rows: PCollection[pa.RecordBatch], domain: Domain, buckets: int) -> Silver:
    """Bronze batches -> silver. bronze = silver + duplicates + silver_dlq."""
    keyed_type = tuple[int, pa.RecordBatch]
    in_time = rows | "silver/lateness" >> Fallible(DropTooLate(domain))
    keyed = in_time.good | "silver/bucket" >> beam.ParDo(SplitByBucket(domain.event.id, buckets)).with_output_types(
        keyed_type
    )
    unique = keyed | "silver/dedupe" >> beam.ParDo(Dedupe(domain)).with_output_types(pa.RecordBatch)
    refined = unique | "silver/refine" >> beam.ParDo(Refine(domain)).with_output_types(pa.RecordBatch)
    if domain.reference is None:
        return Silver(refined, (in_time.dead,))
    table = (
        rows.pipeline
        | "silver/reference" >> beam.Create([domain.reference], reshuffle=False)
        | "silver/read_reference" >> beam.Map(read_reference).with_output_types(pa.RecordBatch)
    )
    enrich = beam.ParDo(Enrich(domain), AsSingleton(table)).with_output_types(pa.RecordBatch)
    return Silver(refined | "silver/enrich" >> enrich, (in_time.dead,))
