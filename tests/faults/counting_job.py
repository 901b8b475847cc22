"""A streaming job with state, timers and windows whose right results are plain arithmetic. A program, to be killed.

Four sources emit (key, value) with unique values; `sums` keeps a running sum per key in state; `windows` adds up values
in fixed windows; `quiet` counts per key and reports by an event-time timer. Each publishes to its own folder; sums
are staged in files before, as a table's rows are.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.coders import VarIntCoder
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import userstate, window
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import Duration, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from beam_pipelines.io.publish import Publish
from common.publish import Epoch
from spark_jobs.beam_runner import SparkRunner

SOURCES, KEYS, PER_SECOND, WINDOW_S, TIMER_S = 4, 97, 100, 10, 5
SUMMED_COUNTER = "summed"


def event(source: int, index: int) -> tuple[int, int, int]:
    """-> (key, value, event time in seconds) of a source's element."""
    return index * 7919 % KEYS, index * SOURCES + source, index // PER_SECOND


def watermark_s(index: int) -> int:
    return index // PER_SECOND - 1


def slice_length(size: int) -> int:
    """How much a source gives in an epoch. The fault suite makes it differ from attempt to attempt, as Kafka does."""
    return size


class Forever(RestrictionProvider):
    def initial_restriction(self, element: int) -> OffsetRange:
        return OffsetRange(0, 2**62)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element: int, restriction: OffsetRange) -> int:
        return int(restriction.size())


class Count(beam.DoFn):
    """Emits `available` elements, `slice_size` an epoch, then says that it is idle."""

    def __init__(self, available: int, slice_size: int) -> None:
        self.available, self.slice_size = available, slice_size

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        source: int,
        tracker: Any = beam.DoFn.RestrictionParam(Forever()),
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider()),
    ) -> Iterator[Any]:
        index = tracker.current_restriction().start
        stop = index + slice_length(self.slice_size)
        while True:
            if index >= self.available:
                tracker.defer_remainder(Duration(0.3))
                return
            if index == stop:
                tracker.defer_remainder()
                return
            if not tracker.try_claim(index):
                return
            key, value, second = event(source, index)
            yield window.TimestampedValue((key, value), second)
            index += 1
            watermark.set_watermark(Timestamp(watermark_s(index)))


class RunningSum(beam.DoFn):
    SUM = userstate.ReadModifyWriteStateSpec("sum", VarIntCoder())

    def process(self, pair: tuple[int, int], total: Any = beam.DoFn.StateParam(SUM)) -> Iterator[bytes]:
        Metrics.counter("counting", SUMMED_COUNTER).inc()
        now = (total.read() or 0) + pair[1]
        total.write(now)
        yield json.dumps([pair[0], pair[1], now]).encode()


class CountWhenQuiet(beam.DoFn):
    SEEN = userstate.ReadModifyWriteStateSpec("seen", VarIntCoder())
    QUIET = userstate.TimerSpec("quiet", userstate.TimeDomain.WATERMARK)

    def process(
        self, pair: tuple[int, int], seen: Any = beam.DoFn.StateParam(SEEN), quiet: Any = beam.DoFn.TimerParam(QUIET)
    ) -> None:
        seen.write((seen.read() or 0) + 1)
        quiet.set(TIMER_S)

    @userstate.on_timer(QUIET)
    def report(self, key: Any = beam.DoFn.KeyParam, seen: Any = beam.DoFn.StateParam(SEEN)) -> Iterator[bytes]:
        yield json.dumps([key, seen.read()]).encode()


class StageFile(beam.DoFn):
    """Writes a bundle's rows to a file of its own and emits the file's path, as bytes."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def start_bundle(self) -> None:
        self.rows: list[Any] = []

    def process(self, row: bytes) -> None:
        self.rows.append(json.loads(row))

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self.rows:
            yield GlobalWindows.windowed_value(stage_file(self.folder, self.rows).encode())


def stage_file(folder: str, rows: list[Any]) -> str:
    os.makedirs(folder, exist_ok=True)
    path = f"{folder}/{uuid.uuid4().hex}.json"
    Path(path).write_text(json.dumps(rows))
    return path


class FolderPublisher:
    """One file per epoch, replaced by a repeat: idempotent. `staged_files`: descriptors are paths of files of rows."""

    def __init__(self, folder: str, *, staged_files: bool = False) -> None:
        self.folder, self.staged_files = folder, staged_files

    def publish(self, epoch: Epoch, staged: Sequence[bytes]) -> dict[str, int]:
        os.makedirs(self.folder, exist_ok=True)
        final = Path(self.folder) / f"{epoch.number:06d}.json"
        draft = final.with_suffix(".tmp")
        if self.staged_files:
            rows = [row for path in staged for row in json.loads(Path(path.decode()).read_text())]
        else:
            rows = [json.loads(item) for item in staged]
        draft.write_text(json.dumps(rows))
        draft.replace(final)
        return {"rows": len(staged)}


def published(folder: Path) -> list[list[Any]]:
    return [row for path in sorted(folder.glob("*.json")) for row in json.loads(path.read_text())]


def expected_values(per_source: int) -> dict[int, list[int]]:
    values: dict[int, list[int]] = defaultdict(list)
    for source in range(SOURCES):
        for index in range(per_source):
            key, value, _ = event(source, index)
            values[key].append(value)
    return values


def expected_windows(per_source: int) -> dict[tuple[int, int], int]:
    """(key, window start) -> sum, of the windows that the final watermark has closed."""
    sums: dict[tuple[int, int], int] = defaultdict(int)
    for source in range(SOURCES):
        for index in range(per_source):
            key, value, second = event(source, index)
            sums[key, second // WINDOW_S * WINDOW_S] += value
    return {k: v for k, v in sums.items() if k[1] + WINDOW_S <= watermark_s(per_source)}


def _with_window(pair: tuple[int, int], at: Any = beam.DoFn.WindowParam) -> bytes:
    return json.dumps([pair[0], int(at.start), pair[1]]).encode()


def build(pipeline: beam.Pipeline, out: str, available: int, slice_size: int) -> None:
    events = (
        pipeline
        | "sources" >> beam.Create(list(range(SOURCES)))
        | "read" >> beam.ParDo(Count(available, slice_size)).with_output_types(tuple[int, int])
    )
    _ = (
        events
        | "sums" >> beam.ParDo(RunningSum())
        | "stage sums" >> beam.ParDo(StageFile(f"{out}/staged")).with_output_types(bytes)
        | "publish sums" >> Publish(FolderPublisher(f"{out}/sums", staged_files=True))
    )
    _ = events | "quiet" >> beam.ParDo(CountWhenQuiet()) | "publish quiet" >> Publish(FolderPublisher(f"{out}/quiet"))
    _ = (
        events
        | "fixed" >> beam.WindowInto(window.FixedWindows(WINDOW_S))
        | "add up" >> beam.CombinePerKey(sum)
        | "format" >> beam.Map(_with_window)
        | "publish windows" >> Publish(FolderPublisher(f"{out}/windows"))
    )


def main(arguments: Iterable[str]) -> None:
    root, available, slice_size, *flags = arguments
    options = PipelineOptions(["--streaming", "--until_idle", f"--checkpoint={root}/checkpoint", *flags])
    pipeline = beam.Pipeline(runner=SparkRunner(), options=options)
    build(pipeline, f"{root}/out", int(available), int(slice_size))
    print(pipeline.run().wait_until_finish())


if __name__ == "__main__":
    main(sys.argv[1:])
