"""A changed pipeline on an old checkpoint: window functions and CombineFns, which are known by name and fields."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders.coders import IntervalWindowCoder
from apache_beam.transforms import combiners, window
from apache_beam.utils.timestamp import Duration

from spark_jobs.beam_runner.checkpoint.checkpoint import Checkpoint
from spark_jobs.beam_runner.errors import CheckpointError
from spark_jobs.beam_runner.planning.fn_words import fn_words
from spark_jobs.beam_runner.planning.upgrade import INCOMPATIBLE, UNCHANGED
from tests.unit.beam_runner.test_streaming import Build, last_manifest, run
from tests.unit.beam_runner.test_upgrade import changes, events, grouped


class Spans(window.NonMergingWindowFn):
    """Fixed windows that Beam does not know."""

    def __init__(self, size: int, unit: Any = Duration(1)) -> None:
        self.size, self.unit = size, unit

    def assign(self, context: Any) -> list[Any]:
        start = int(context.timestamp) // self.size * self.size
        return [window.IntervalWindow(start, start + self.size)]

    def get_window_coder(self) -> Any:
        return IntervalWindowCoder()


class Slices(Spans):
    """The same by another name."""


HERE = __name__


def write_words(root: Path, step: str, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """The last epoch once more, with what `step` depends on in other words."""
    last = last_manifest(root)
    words = json.dumps(change(json.loads(last.fingerprint[step])))
    again = replace(last, epoch=last.epoch + 1, fingerprint={**last.fingerprint, step: words})
    Checkpoint(root / "checkpoint").commit_manifest(again.epoch, again.to_json())


# ---- window functions
@pytest.mark.parametrize(
    ("new", "now"),
    [
        pytest.param(Slices(1000), "Slices(size=1000, unit=Duration(1))", id="class"),
        pytest.param(Spans(2000), "Spans(size=2000, unit=Duration(1))", id="field"),
        pytest.param(Spans(1000, Duration(2)), "Spans(size=1000, unit=Duration(2))", id="duration"),
    ],
)
def test_another_custom_window_function_is_refused(tmp_path: Path, new: Any, now: str) -> None:
    run(tmp_path, grouped(Spans(1000)))
    assert changes(tmp_path, grouped(Spans(1000)))["group"].kind == UNCHANGED
    change = changes(tmp_path, grouped(new))["group"]
    urn = "beam:window_fn:pickled_python:v1"
    was = f"{HERE}.Spans(size=1000, unit=Duration(1))"
    assert change.why == f"windows was {urn} {was}, is {urn} {HERE}.{now}"
    assert (change.kind, change.loss) == (INCOMPATIBLE, "state of 1 key groups")


def test_a_custom_window_function_that_was_noted_by_its_urn_alone_is_not_refused_for_that(tmp_path: Path) -> None:
    run(tmp_path, grouped(Spans(1000)))
    write_words(tmp_path, "group", lambda words: {**words, "windows": "beam:window_fn:pickled_python:v1"})
    assert changes(tmp_path, grouped(Spans(1000)))["group"].kind == UNCHANGED
    assert changes(tmp_path, grouped(window.FixedWindows(1000)))["group"].kind == INCOMPATIBLE
    run(tmp_path, grouped(Spans(1000)))
    assert changes(tmp_path, grouped(Spans(2000)))["group"].kind == INCOMPATIBLE
