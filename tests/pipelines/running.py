"""Runs a pipeline on Beam's in-process runner and gives back what its PCollections held."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import PCollection
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

Row = dict[str, Any]
Collections = Mapping[str, PCollection[pa.RecordBatch]]

_collected: dict[str, list[pa.RecordBatch]] = {}


def run(build: Callable[[beam.Pipeline], Collections | None]) -> tuple[dict[str, list[Row]], dict[str, int]]:
    """-> (rows of each collection that `build` returns, counters of namespace `pipeline`).

    FnApiRunner itself: "DirectRunner" would first try to download Prism.
    """
    _collected.clear()
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    names = []
    for name, batches in (build(pipeline) or {}).items():
        names.append(name)
        _ = batches | f"collect/{name}" >> beam.Map(_collect, name)
    result = pipeline.run()
    result.wait_until_finish()
    rows = {name: [row for batch in _collected.get(name, []) for row in to_rows(batch)] for name in names}
    found = result.metrics().query(MetricsFilter().with_namespace("pipeline"))["counters"]
    counters: dict[str, int] = {}
    for counter in found:
        name = counter.key.metric.name
        counters[name] = counters.get(name, 0) + counter.result
    return rows, counters


def to_rows(batch: pa.RecordBatch | pa.Table) -> list[Row]:
    """Plain rows: instants as milliseconds, maps as dicts."""
    columns = {}
    for name in batch.schema.names:
        column = batch.column(name)
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("ms", "UTC"), safe=False).cast(pa.int64())
        columns[name] = column
    names, is_map = list(columns), {name: pa.types.is_map(columns[name].type) for name in columns}
    values = [columns[name].to_pylist() for name in names]
    return [
        {name: dict(value) if is_map[name] else value for name, value in zip(names, row, strict=True)}
        for row in zip(*values, strict=True)
    ]


def _collect(batch: pa.RecordBatch, name: str) -> None:
    _collected.setdefault(name, []).append(batch)
