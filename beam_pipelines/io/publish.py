"""`Publish`: the end of every two-phase sink (see common/publish.py)."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsList, PCollection, PDone
from apache_beam.transforms.window import GlobalWindows

from common.publish import PUBLISH_URN, Epoch, Publisher

METRICS_NAMESPACE = "pipeline"


class Publish(beam.PTransform[PCollection[bytes], PDone]):
    """PCollection[bytes] of staged descriptors -> PDone.

    SparkRunner recognises the composite by its URN, does not run its expansion, and calls `publisher.publish` in the
    driver once per epoch, after the manifest: exactly-once across crashes. The payload is `pickle.dumps(publisher)`.

    Other runners run the expansion, which publishes everything as epoch 0 of `job` when the input is complete: batch
    only. A failed run publishes nothing, a retried bundle publishes once. `job` defaults to an id of its own per
    pipeline, so that a second run is not taken for a repeat of the first.
    """

    def __init__(self, publisher: Publisher, job: str | None = None) -> None:
        super().__init__()
        self._publisher = publisher
        self._job = job or f"run-{uuid.uuid4().hex}"

    def expand(self, staged: PCollection[bytes]) -> PDone:
        # The impulse, not the data, drives the step: an overwrite of a table with no rows must be published too.
        everything = staged | "one_window" >> beam.WindowInto(GlobalWindows())
        (
            staged.pipeline
            | "once" >> beam.Impulse()
            | "publish" >> beam.ParDo(_PublishOnce(self._publisher, Epoch(self._job, 0)), AsList(everything))
        )
        return PDone(staged.pipeline)

    def to_runner_api_parameter(self, _context: Any) -> tuple[str, bytes]:
        return PUBLISH_URN, pickle.dumps(self._publisher)

    @staticmethod
    @beam.PTransform.register_urn(PUBLISH_URN, bytes)
    def from_runner_api_parameter(_transform: Any, payload: bytes, _context: Any) -> Publish:
        return Publish(pickle.loads(payload))


class _PublishOnce(beam.DoFn):
    """Calls the publisher for the single impulse and adds its counters to the job's metrics."""

    def __init__(self, publisher: Publisher, epoch: Epoch) -> None:
        self._publisher = publisher
        self._epoch = epoch

    def process(self, _impulse: bytes, staged: Sequence[bytes]) -> None:
        for name, count in self._publisher.publish(self._epoch, staged).items():
            Metrics.counter(METRICS_NAMESPACE, name).inc(count)
