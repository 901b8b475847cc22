"""DoFn lifecycle, bundle finalisation, and metrics that are exact when an epoch fails half way."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import FixedWindows, IntervalWindow
from apache_beam.utils.windowed_value import WindowedValue

from tests.model.script import Script, at, step
from tests.model.stream import Stage, on_spark

Pair = tuple[str, int]
FOUR = [step(*[at(10 * e + n, ("k", 4 * e + n)) for n in range(4)], watermark=10 * e + 5) for e in range(4)]


class Diary(beam.DoFn):
    """Writes down what is called on each instance."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = ""

    def _note(self, what: str) -> None:
        with open(self.path, "a") as file:
            file.write(f"{self.name} {what}\n")

    def setup(self) -> None:
        assert not self.name, "set up twice"
        self.name = f"{os.getpid()}-{id(self)}"
        self._note("setup")

    def start_bundle(self) -> None:
        self._note("start")

    def process(self, pair: Pair) -> Iterator[Pair]:
        self._note("process")
        yield pair

    def finish_bundle(self) -> None:
        self._note("finish")

    def teardown(self) -> None:
        self._note("teardown")


def test_the_life_of_a_dofn(stage: Stage) -> None:
    diary = stage.root / "diary"
    stage.play(lambda p: stage.collect(p | Script(FOUR) | beam.ParDo(Diary(str(diary)))))
    lives: dict[str, list[str]] = {}
    for line in diary.read_text().splitlines():
        name, what = line.split()
        lives.setdefault(name, []).append(what)
        if what == "teardown":  # an address may be used again
            lives[f"{name} ended {len(lives)}"] = lives.pop(name)
    assert sum(life.count("process") for life in lives.values()) == 16
    for life in lives.values():
        assert life[0] == "setup"
        assert life[-1] == "teardown"
        assert life.count("setup") == life.count("teardown") == 1
        inside = False
        for what in life[1:-1]:
            assert inside == (what != "start"), life
            inside = what != "finish"
        assert not inside


class SumPerBundle(beam.DoFn):
    """Per window one sum, emitted when the bundle ends."""

    def start_bundle(self) -> None:
        self.sums: dict[IntervalWindow, int] = {}

    def process(self, pair: Pair, window: Any = beam.DoFn.WindowParam) -> None:
        self.sums[window] = self.sums.get(window, 0) + pair[1]

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for window, total in self.sums.items():
            yield WindowedValue(("sum", total), window.max_timestamp(), [window])


@on_spark
def test_what_finish_bundle_emits_has_its_window(stage: Stage) -> None:
    def build(p: beam.Pipeline) -> None:
        windowed = p | Script(FOUR) | beam.WindowInto(FixedWindows(10))
        sums = windowed | beam.ParDo(SumPerBundle()).with_output_types(Pair)
        stage.collect(sums | beam.CombinePerKey(sum))

    stage.play(build)
    assert stage.panes() == [
        (1, ("sum", 0 + 1 + 2 + 3), (0, 10), "ON_TIME"),
        (2, ("sum", 4 + 5 + 6 + 7), (10, 20), "ON_TIME"),
        (3, ("sum", 8 + 9 + 10 + 11), (20, 30), "ON_TIME"),
        (3, ("sum", 12 + 13 + 14 + 15), (30, 40), "ON_TIME"),
    ]


@on_spark
def test_bundles_are_finalised_after_the_commit_only(stage: Stage) -> None:
    """Programming guide 12.7: a callback may acknowledge to a queue, so what it stands for must be durable."""
    notes = stage.root / "finalised"
    epochs = stage.root / "checkpoint" / "epochs"

    class Acknowledge(beam.DoFn):
        def process(self, pair: Pair, finalizer: Any = beam.DoFn.BundleFinalizerParam) -> Iterator[Pair]:
            def acknowledge() -> None:
                with open(notes, "a") as file:
                    file.write(json.dumps([pair[1], sorted(os.listdir(epochs))]) + "\n")

            finalizer.register(acknowledge)
            yield pair

    stage.play(lambda p: stage.collect(p | Script(FOUR) | beam.ParDo(Acknowledge())))
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    assert sorted(value for value, _ in lines) == list(range(16))
    for value, manifests in lines:
        assert f"{value // 4:09d}.json" in manifests


class Measured(beam.DoFn):
    """One of each metric. Raises once at element `fails_at`, after it has counted it."""

    def __init__(self, fails_at: int, once: str) -> None:
        self.fails_at, self.once = fails_at, once

    def process(self, pair: Pair) -> Iterator[Pair]:
        value = pair[1]
        Metrics.counter("model", "counter").inc(value)
        Metrics.distribution("model", "distribution").update(value)
        Metrics.gauge("model", "gauge").set(value)
        Metrics.string_set("model", "set").add(f"mod {value % 3}")
        Metrics.bounded_trie("model", "trie").add(["all", f"mod {value % 2}"])
        if value == self.fails_at and not Path(self.once).exists():
            Path(self.once).touch()
            raise RuntimeError("half way")
        yield pair


@pytest.mark.parametrize("fails_at", [-1, 2, 15])
def test_metrics_are_exact_when_an_epoch_fails_half_way(stage: Stage, fails_at: int) -> None:
    def build(p: beam.Pipeline) -> None:
        measured = p | Script(FOUR) | beam.ParDo(Measured(fails_at, str(stage.root / "failed"))).with_output_types(Pair)
        stage.collect(measured)

    if fails_at >= 0:
        with pytest.raises(RuntimeError, match="half way"):
            stage.play(build)
    stage.play(build)
    assert sorted(stage.values()) == [("k", n) for n in range(16)]
    metrics = stage.result.metrics().query(beam.metrics.MetricsFilter().with_namespace("model"))
    (counter,) = metrics["counters"]
    (distribution,) = metrics["distributions"]
    (gauge,) = metrics["gauges"]
    (string_set,) = metrics["string_sets"]
    (trie,) = metrics["bounded_tries"]
    assert {tuple(path[:-1]) for path in trie.committed.flattened()} == {("all", "mod 0"), ("all", "mod 1")}
    assert counter.committed == sum(range(16))
    found = distribution.committed
    assert (found.sum, found.count, found.min, found.max) == (120, 16, 0, 15)
    assert gauge.committed.value == 15
    assert set(string_set.committed) == {"mod 0", "mod 1", "mod 2"}


def test_state_and_output_are_exact_when_an_epoch_fails_half_way(stage: Stage) -> None:
    """A failed epoch leaves nothing: neither in state, nor in panes, nor in what was published."""

    class Total(beam.DoFn):
        SUM = beam.transforms.userstate.CombiningValueStateSpec("sum", sum)

        def process(self, pair: Pair, total: Any = beam.DoFn.StateParam(SUM)) -> Iterator[Pair]:
            total.add(pair[1])
            yield pair[0], total.read()

    def build(p: beam.Pipeline) -> None:
        pairs = p | Script(FOUR)
        stage.collect(pairs | "total" >> beam.ParDo(Total()).with_output_types(Pair), "totals")
        windowed = pairs | beam.WindowInto(FixedWindows(10))
        late_failure = beam.ParDo(Measured(4 + 5 + 6 + 7, str(stage.root / "failed")))
        stage.collect(windowed | "sums" >> beam.CombinePerKey(sum) | late_failure, "sums")

    with pytest.raises(RuntimeError, match="half way"):
        stage.play(build)
    stage.play(build)
    running = [sum(range(n + 1)) for n in range(16)]
    assert stage.values("totals") == [("k", total) for total in running]
    assert [o.value for o in stage.outs("sums")] == [("k", 6), ("k", 22), ("k", 38), ("k", 54)]
