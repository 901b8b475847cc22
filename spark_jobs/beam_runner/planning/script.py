"""TestStream: elements, watermarks and processing time by a script, one event an epoch.

How far the script has come is kept as residuals of its inputs, like the position of any other source. The pipeline's
processing time is the script's until it ends; after its last event the watermarks go to the end of time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from apache_beam.testing.test_stream import WindowedValueHolder
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from spark_jobs.beam_runner.checkpoint.manifest import Residual
from spark_jobs.beam_runner.clock import MAX_US, MIN_US

_MS = 1000  # the proto counts in milliseconds


@dataclass(frozen=True)
class ScriptEvent:
    """One of: elements (a chunk) or a watermark for one input, or an advance of processing time."""

    input: str = ""
    chunk: bytes = b""
    watermark_us: int | None = None
    advance_us: int = 0


@dataclass(frozen=True)
class Script:
    """`inputs` are labels of the input transforms that the events are played to."""

    inputs: tuple[str, ...]
    events: tuple[ScriptEvent, ...]

    def clock_us(self, played: int) -> int:
        """Processing time after the first `played` events."""
        return sum(event.advance_us for event in self.events[:played])

    def residuals(self, played: int) -> list[Residual]:
        """What is left after `played` events: one residual an input, none at the end."""
        if played >= len(self.events):
            return []
        watermarks = dict.fromkeys(self.inputs, MIN_US)
        for event in self.events[:played]:
            if event.watermark_us is not None:
                watermarks[event.input] = event.watermark_us
        return [Residual(name, b"%d" % played, watermark, 0, 0) for name, watermark in watermarks.items()]

    def played(self, residuals: tuple[Residual, ...]) -> int:
        """How many events have been played, given what is left."""
        return next((int(r.element) for r in residuals if r.transform in self.inputs), len(self.events))


def read_script(payload: Any, inputs: dict[str, tuple[str, Any]], coder: Any) -> Script:
    """`inputs`: output tag -> (input label, windowed coder of the data channel); `coder`: of the script's elements."""
    return Script(
        inputs=tuple(label for label, _ in inputs.values()),
        events=tuple(_read_event(event, inputs, coder) for event in payload.events),
    )


def _read_event(event: Any, inputs: dict[str, tuple[str, Any]], coder: Any) -> ScriptEvent:
    kind = event.WhichOneof("event")
    if kind == "processing_time_event":
        return ScriptEvent(advance_us=event.processing_time_event.advance_duration * _MS)
    body = getattr(event, kind)
    label, windowed_coder = inputs[body.tag or "None"]
    if kind == "watermark_event":
        watermark_us = body.new_watermark * _MS
        # The end of time is cut to milliseconds in the proto.
        return ScriptEvent(label, watermark_us=MAX_US if watermark_us >= MAX_US - _MS else watermark_us)
    impl = windowed_coder.get_impl()
    return ScriptEvent(label, chunk=b"".join(impl.encode_nested(_windowed(e, coder)) for e in body.elements))


def _windowed(element: Any, coder: Any) -> WindowedValue:
    value = coder.decode(element.encoded_element)
    if isinstance(value, WindowedValueHolder):
        return value.windowed_value
    return WindowedValue(value, Timestamp(micros=element.timestamp * _MS), (GlobalWindow(),))
