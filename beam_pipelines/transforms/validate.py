"""`Validate`: quality rules; what breaks one is a dead letter with its bytes."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.transforms.outputs import dead
from common.domain import Domain
from common.quality import judge, rules_of

STEP = "bronze/validate"


class Validate(beam.DoFn):
    """Decoded batch -> the rows that meet every rule, in order; the others as dead letters."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain

    def setup(self) -> None:
        self._rules = rules_of(self._domain)

    def process(self, rows: pa.RecordBatch) -> Iterator[pa.RecordBatch | TaggedOutput]:
        verdict = judge(self._rules, rows)
        if not len(verdict.bad):
            yield rows
            return
        reasons, fields = [rule.reason for rule in verdict.rules], [rule.field for rule in verdict.rules]
        yield dead(STEP, rows.take(pa.array(verdict.bad)), reasons, fields, self._domain.event.id)
        good = np.ones(rows.num_rows, bool)
        good[verdict.bad] = False
        if good.any():
            yield rows.filter(pa.array(good))
