"""Gold: features per entity and tile of event time, with early, on-time and late panes."""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import PCollection

from beam_pipelines.transforms.outputs import Outputs
from beam_pipelines.transforms.tiles import MergeTiles, PartialTiles
from common.domain import Domain


def gold(
    rows: PCollection[pa.RecordBatch], domain: Domain, buckets: int, *, bounded: bool
) -> dict[str, PCollection[pa.RecordBatch]]:
    """Silver batches -> panes of each feature view (`FeatureView.gold_schema`), by view name.

    A bounded source has no early panes: its tiles close once, complete.
    """
    partials = beam.ParDo(PartialTiles(domain, buckets)).with_output_types(tuple[str, pa.RecordBatch])
    panes: dict[str, PCollection[pa.RecordBatch]] = (
        rows
        | "gold/partials" >> partials
        | "gold/tiles" >> Outputs(MergeTiles(domain, bounded), [view.name for view in domain.features])
    )
    return panes
