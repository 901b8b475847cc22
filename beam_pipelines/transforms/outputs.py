"""What the steps have in common: counters, steps of several outputs, and dead letters beside the good rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection, TaggedOutput

from common.dead_letters import dead_letters

METRICS_NAMESPACE = "pipeline"
GOOD, DEAD = "good", "dead"


class Outputs(beam.PTransform[PCollection[pa.RecordBatch], dict[str, PCollection[pa.RecordBatch]]]):
    """Runs a DoFn with an output per tag, all of record batches, of which `main` (if any) is what it yields untagged.

    The DoFn's step has a fixed label, `<step>/rows`: state must not get lost when a class is renamed.
    """

    def __init__(self, dofn: beam.DoFn, tags: Sequence[str], main: str | None = None) -> None:
        super().__init__()
        self._dofn, self._tags, self._main = dofn, tags, main

    def expand(self, batches: PCollection[pa.RecordBatch]) -> dict[str, PCollection[pa.RecordBatch]]:
        rows = beam.ParDo(self._dofn).with_output_types(pa.RecordBatch)
        rows.label = "rows"
        outputs = batches | "rows" >> rows.with_outputs(*self._tags, main=self._main)
        by_tag = {tag: outputs[tag] for tag in (*self._tags, *filter(None, [self._main]))}
        for pcollection in by_tag.values():
            pcollection.element_type = pa.RecordBatch
        return by_tag


class Outcome(NamedTuple):
    """The two outputs of a fallible step."""

    good: PCollection[pa.RecordBatch]
    dead: PCollection[pa.RecordBatch]


class Fallible(beam.PTransform[PCollection[pa.RecordBatch], Outcome]):
    """Runs a DoFn of record batches that yields good rows, and sends others aside with `dead`."""

    def __init__(self, dofn: beam.DoFn) -> None:
        super().__init__()
        self._dofn = dofn

    def expand(self, batches: PCollection[pa.RecordBatch]) -> Outcome:
        return Outcome(**(batches | "outputs" >> Outputs(self._dofn, [DEAD], main=GOOD)))


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
