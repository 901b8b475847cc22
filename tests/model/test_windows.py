"""Windows: what each WindowFn assigns, and when the default trigger fires. Programming guide, chapter 8."""

from __future__ import annotations

import apache_beam as beam
from apache_beam.transforms.window import FixedWindows, GlobalWindows, Sessions, SlidingWindows

from tests.model.script import Script, at, step
from tests.model.stream import Stage, end_of


def test_fixed_windows_fire_once_when_the_watermark_passes_their_end(stage: Stage) -> None:
    script = [
        step(at(1, ("k", 1)), at(11, ("k", 2)), watermark=5),
        step(at(9, ("k", 3)), watermark=10),
        step(at(12, ("k", 4)), watermark=19),
        step(),
    ]

    def build(p: beam.Pipeline) -> None:
        stage.collect(p | Script(script) | beam.WindowInto(FixedWindows(10)) | beam.GroupByKey())

    stage.play(build)
    assert stage.panes() == [
        (1, ("k", [1, 3]), (0, 10), "ON_TIME"),
        (3, ("k", [2, 4]), (10, 20), "ON_TIME"),
    ]
    assert [o.at for o in stage.outs()] == [end_of(10), end_of(20)]
