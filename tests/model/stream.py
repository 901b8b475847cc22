"""Runs a scripted stream and collects what comes out: value, time, window and pane of every element, by epoch."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.window import IntervalWindow
from apache_beam.utils.windowed_value import PaneInfo, PaneInfoTiming

from beam_pipelines.io.publish import Publish
from common.publish import Epoch
from spark_jobs.beam_runner import SparkRunner, SparkRunnerOptions
from spark_jobs.beam_runner.checkpoint.progress import last_manifest

RESTARTED_TASKS = (1, 3, 2)
_MOST_RUNS = 60

Build = Callable[[beam.Pipeline], None]
Window = tuple[float, float] | None
Test = TypeVar("Test", bound=Callable[..., None])


def on_spark(test: Test) -> Test:
    """The test runs a third time: as Spark jobs, with the restarts (marker `slow`)."""
    test.on_spark = True  # type: ignore[attr-defined]
    return test


@dataclass(frozen=True)
class Out:
    """One output element. Times are seconds; `window` is (start, end), or None for the global window."""

    epoch: int
    value: Any
    at: float
    window: Window
    timing: str
    index: int
    on_time_index: int  # PaneInfo's non-speculative index
    first: bool
    last: bool


class _Describe(beam.DoFn):
    def process(
        self,
        value: Any,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
        pane: PaneInfo = beam.DoFn.PaneInfoParam,
    ) -> Iterator[bytes]:
        bounds = (float(window.start), float(window.end)) if isinstance(window, IntervalWindow) else None
        yield pickle.dumps(
            Out(
                -1,
                _plain(value),
                timestamp.micros / 1e6,
                bounds,
                PaneInfoTiming.to_string(pane.timing),
                pane.index,
                pane.nonspeculative_index,
                pane.is_first,
                pane.is_last,
            )
        )


def _plain(value: Any) -> Any:
    """Groups as sorted lists: Beam promises no order inside a group."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if hasattr(value, "__iter__") and not isinstance(value, (str, bytes)):
        items = list(map(_plain, value))
        try:
            return sorted(items)
        except TypeError:  # of mixed types, or None
            return sorted(items, key=repr)
    return value


class _Folder:
    """Publisher: one file per epoch, replaced by a repeat."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def publish(self, epoch: Epoch, staged: Sequence[bytes]) -> dict[str, int]:
        os.makedirs(self.folder, exist_ok=True)
        final = Path(self.folder) / f"{epoch.number:06d}"
        draft = final.with_suffix(".tmp")
        draft.write_bytes(pickle.dumps(list(staged)))
        draft.replace(final)
        return {}


class Stage:
    """Where a test's pipelines run: a folder for the checkpoint and the output, a transport, stops or no stops."""

    def __init__(self, root: Path, transport: str = "local", *, restarts: bool = False) -> None:
        self.root, self.transport, self.restarts = root, transport, restarts
        self.result: Any = None

    def collect(self, collection: Any, label: str = "out") -> None:
        """End of a pipeline: records every element of `collection` under `label`."""
        described = collection | f"describe {label}" >> beam.ParDo(_Describe()).with_output_types(bytes)
        _ = described | f"publish {label}" >> Publish(_Folder(str(self.root / "out" / label)))

    def play(self, build: Build, *flags: str) -> Any:
        """Runs the pipeline until its script ends or goes idle; -> the last run's result.

        With `restarts` the job is stopped after every epoch and resumed by a new runner with another number of tasks.
        """
        if not self.restarts:
            return self.run(build, 2, *flags)
        flags = ("--spill_above_mb=0", *flags)
        # Building a pipeline is most of what a run of a few elements costs, so the restarts share one.
        pipeline = self._pipeline(build, *flags)
        for run in range(_MOST_RUNS):
            tasks = RESTARTED_TASKS[run % len(RESTARTED_TASKS)]
            result = self._run(pipeline, self._options(tasks, *flags), stop_after_epoch=True)
            if result.state == "DONE" or self._done():
                return result
        raise AssertionError(f"the stream did not end within {_MOST_RUNS} restarts")

    def _done(self) -> bool:
        manifest = last_manifest(f"{self.root}/checkpoint")
        return manifest is not None and manifest.done

    def run(self, build: Build, tasks: int, *flags: str, stop_after_epoch: bool = False) -> Any:
        """One run, until the script ends or goes idle, or until the first epoch is committed."""
        options = self._options(tasks, *flags)
        return self._run(self._pipeline(build, *flags), options, stop_after_epoch=stop_after_epoch)

    def _options(self, tasks: int, *flags: str) -> PipelineOptions:
        own = [f"--transport={self.transport}", f"--checkpoint={self.root}/checkpoint", "--key_groups=8"]
        return PipelineOptions(["--streaming", "--until_idle", f"--tasks={tasks}", *own, *flags])

    def _pipeline(self, build: Build, *flags: str) -> beam.Pipeline:
        pipeline = beam.Pipeline(options=self._options(2, *flags))
        build(pipeline)
        return pipeline

    def _run(self, pipeline: beam.Pipeline, options: PipelineOptions, *, stop_after_epoch: bool) -> Any:
        started = threading.Event()
        running: list[Any] = []

        def stop(_: object) -> None:
            assert started.wait(60)
            running[0].request_stop()

        runner = SparkRunner(on_epoch=stop if stop_after_epoch else None)
        running.append(runner.run_pipeline(pipeline, options))
        started.set()
        running[0].wait_until_finish()
        self.result = running[0]
        return running[0]

    def drain(self, build: Build, after_epochs: int) -> None:
        """Runs without end, and asks for a drain when so many epochs are committed."""
        reached = threading.Event()

        def count(info: Any) -> None:
            if info.epoch + 1 >= after_epochs:
                reached.set()

        options = self._options(2)
        options.view_as(SparkRunnerOptions).until_idle = False
        self.result = SparkRunner(on_epoch=count).run_pipeline(self._pipeline(build), options)
        try:
            assert reached.wait(60)
            self.result.drain()
        except BaseException:
            self.result.request_stop()
            self.result.wait_until_finish(60_000)
            raise
        self.result.wait_until_finish(60_000)

    def outs(self, label: str = "out") -> list[Out]:
        """In the order of epochs; within an epoch by key and window, and panes of one window as they came."""
        found: list[Out] = []
        for path in sorted((self.root / "out" / label).glob("[0-9]" * 6)):
            rows = [replace(pickle.loads(item), epoch=int(path.name)) for item in pickle.loads(path.read_bytes())]
            found += sorted(rows, key=lambda o: (repr(_key(o.value)), o.window or (0, 0)))
        return found

    def keyed(self, label: str = "out") -> list[Any]:
        """Values sorted by key, each key's values as they came: tasks work side by side, so keys have no order."""
        return sorted(self.values(label), key=lambda value: repr(_key(value)))

    def values(self, label: str = "out") -> list[Any]:
        return [out.value for out in self.outs(label)]

    def panes(self, label: str = "out") -> list[tuple[int, Any, Window, str]]:
        """(epoch, value, window, timing)"""
        return [(o.epoch, o.value, o.window, o.timing) for o in self.outs(label)]

    def counters(self) -> dict[str, int]:
        """User counters of all runs on the checkpoint, by name, summed over steps."""
        sums: dict[str, int] = {}
        for counter in self.result.metrics().query()["counters"]:
            name = counter.key.metric.name
            sums[name] = sums.get(name, 0) + counter.committed
        return sums


def _key(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and value else value


def end_of(second: float) -> float:
    """The last instant of a window that ends at `second`, in the whole milliseconds that Beam's coder keeps."""
    return second - 1e-3
