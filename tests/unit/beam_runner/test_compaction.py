"""Side inputs that grow: how often they are folded, and what a long stream with one costs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsDict, AsIter, AsSingleton
from apache_beam.transforms import trigger, window

from spark_jobs.beam_runner import SparkRunner
from spark_jobs.beam_runner.bundles.compaction import MOST_PARTS, parts_to_fold
from spark_jobs.beam_runner.checkpoint.manifest import SidePart
from tests.model.script import Script, at, step


def test_what_stays_for_ever_is_written_a_few_times_and_lies_in_a_few_parts() -> None:
    parts: list[SidePart] = []
    written = most = 0
    for n in range(10_000):
        run = parts_to_fold(parts, tasks=2)
        if run:
            size = sum(part.size_bytes for part in run)
            parts[-len(run) :] = [SidePart(f"fold {n}", 0, size_bytes=size)]
            written += size
        parts.append(SidePart(f"part {n}", 0, size_bytes=1))
        most = max(most, len(parts))
    assert sum(part.size_bytes for part in parts) == 10_000
    assert most <= MOST_PARTS + 2 + 14 + 1  # and as many large ones as there are powers of two
    assert written <= 10 * 10_000


def test_small_parts_after_a_large_one_do_not_move_it() -> None:
    large, small = SidePart("large", 0, size_bytes=10**9), [SidePart(str(n), 0, size_bytes=9) for n in range(40)]
    assert parts_to_fold([large, *small], 1) == tuple(small)
    assert parts_to_fold([large, *small[:20]], 1) == ()


EPOCHS = 1000


def slowly_updating(p: beam.Pipeline) -> Any:
    """The pattern of Beam's documentation: something is read anew now and then, here in every other epoch."""
    updates = [step(at(n, (f"k{n % 5}", n)), watermark=n) if n % 2 else step(watermark=n) for n in range(EPOCHS)]
    read = p | "updates" >> Script(updates)
    return read | "each" >> beam.WindowInto(
        window.GlobalWindows(),
        trigger=trigger.Repeatedly(trigger.AfterCount(1)),
        accumulation_mode=trigger.AccumulationMode.DISCARDING,
    )


@pytest.mark.slow
def test_a_thousand_epochs_with_a_slowly_updating_side_input_cost_as_much_at_the_end(tmp_path: Path) -> None:
    sizes: list[tuple[int, int, int]] = []
    seconds: list[float] = []

    def build(p: beam.Pipeline) -> None:
        updates = slowly_updating(p)
        newest = updates | beam.Values() | beam.CombineGlobally(max).without_defaults()
        by_key = updates | beam.CombinePerKey(max)
        fixed = p | "ticks" >> Script([step(at(n, ("t", n)), watermark=n) for n in range(EPOCHS)])
        main = p | "main" >> Script([step(at(n, ("m", n)), watermark=n) for n in range(EPOCHS)])
        main = main | "main windows" >> beam.WindowInto(window.FixedWindows(10))
        views = {
            "newest": AsSingleton(newest, default_value=0),
            "by key": AsDict(by_key),
            "windowed": AsIter(fixed | "windows" >> beam.WindowInto(window.FixedWindows(10))),
        }
        for name, view in views.items():
            _ = main | name >> beam.Map(lambda pair, _: pair, view)

    def measure(_: object) -> None:
        root = tmp_path / "checkpoint"
        files = [path for folder in ("side", "state") for path in (root / folder).iterdir()]
        manifest = max((root / "epochs").glob("*.json"))
        sizes.append((len(files), sum(path.stat().st_size for path in files), manifest.stat().st_size))
        seconds.append(time.process_time())

    options = PipelineOptions(["--streaming", "--transport=local", f"--checkpoint={tmp_path}/checkpoint"])
    pipeline = beam.Pipeline(runner=SparkRunner(on_epoch=measure), options=options)
    build(pipeline)
    pipeline.run().wait_until_finish()
    assert len(sizes) >= EPOCHS
    for column in range(3):  # files, their bytes, bytes of the manifest
        early, late = [size[column] for size in sizes[100:300]], [size[column] for size in sizes[800:-1]]
        assert max(late) <= 1.2 * max(early), column
    assert seconds[-1] - seconds[-200] <= 1.3 * (seconds[300] - seconds[100])
