"""What the steps have in common: counters, and an output for rows beside one for dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection, TaggedOutput

from common.dead_letters import dead_letters

METRICS_NAMESPACE = "pipeline"
DEAD = "dead"


class Outcome(NamedTuple):
    """The two outputs of a fallible step. Both hold record batches."""

    good: PCollection[pa.RecordBatch]
    dead: PCollection[pa.RecordBatch]


class Fallible(beam.PTransform[PCollection[pa.RecordBatch], Outcome]):
    """Runs a DoFn of record batches that sends `dead(...)` aside."""

    def __init__(self, dofn: beam.DoFn) -> None:
        super().__init__()
        self._dofn = dofn

    def expand(self, batches: PCollection[pa.RecordBatch]) -> Outcome:
        # An explicit label keeps state and metrics in place when a DoFn class is renamed.
        outputs = (
            batches | "rows" >> beam.ParDo(self._dofn).with_output_types(pa.RecordBatch).with_outputs(DEAD, main="good")
        )
        outputs[DEAD].element_type = pa.RecordBatch
        return Outcome(outputs.good, outputs[DEAD])


def count(name: str, rows: int) -> None:
    """Adds to counter `name` of the run. Each row is counted once: in the step that decides its fate."""
    Metrics.counter(METRICS_NAMESPACE, name).inc(rows)


def dead(
    step: str,
    rows: pa.RecordBatch,
    reasons: Sequence[str],
    details: Sequence[str | None],
    id_column: str | None = None,
) -> TaggedOutput:
    """Dead letters for a step's side output, counted as `<layer>_dlq`."""
    count(f"{step.partition('/')[0]}_dlq", rows.num_rows)
    return TaggedOutput(DEAD, dead_letters(step, rows, reasons, details, id_column))
