"""`WriteOnline`: gold rows to the online store that Feast serves from."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import PCollection, PDone
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from beam_pipelines.io.publish import Publish
from common.domain import FeatureView
from common.lake import Lake
from common.online import OnlinePublisher, stage_online
from common.online.feast_encoding import require_online_types


class WriteOnline(beam.PTransform[PCollection[pa.RecordBatch], PDone]):
    """PCollection[RecordBatch] of gold/<view> rows -> the newest row per entity in Redis, in Feast's layout.

    Workers keep each bundle's newest row per entity, in the warehouse if it is large; the publisher writes them after
    the epoch is committed. The newest tile wins; of one tile the newest pane.

    `project` is Feast's; `redis_url` carries no password (see common/online/feast_redis.py); `job` is only used on
    runners that do not drive the publisher themselves. Raises PipelineError for a view whose types Feast's Redis
    cannot hold.
    """

    def __init__(self, lake: Lake, view: FeatureView, project: str, redis_url: str, job: str | None = None) -> None:
        super().__init__()
        require_online_types(view)
        self._lake, self._view, self._job = lake, view, job
        self._publisher = OnlinePublisher(lake, view, project, redis_url)

    def expand(self, rows: PCollection[pa.RecordBatch]) -> PDone:
        return (
            rows
            | "one_window" >> beam.WindowInto(GlobalWindows())
            | "stage" >> beam.ParDo(_Stage(self._lake, self._view)).with_output_types(bytes)
            | "publish" >> Publish(self._publisher, self._job)
        )


class _Stage(beam.DoFn):
    """Collects the bundle's rows and stages the newest per entity: RecordBatch -> staged descriptor."""

    def __init__(self, lake: Lake, view: FeatureView) -> None:
        self._lake, self._view = lake, view

    def start_bundle(self) -> None:
        self._batches: list[pa.RecordBatch] = []

    def process(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        descriptor = stage_online(self._lake, self._view, self._batches)
        self._batches = []
        if descriptor is not None:
            yield GlobalWindows.windowed_value(descriptor)
