"""WindowInto for fixed and session windows, on whole microseconds.

Beam runs WindowInto as a DoFn that makes six Timestamps per element: 11 µs of the 16 µs that such an element costs
before it is grouped. Other window functions stay with Beam.
"""

from __future__ import annotations

from typing import Any

from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.transforms.window import FixedWindows, IntervalWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue
from apache_beam.utils.windowed_value import create as windowed

from spark_jobs.beam_runner import beam_internals as beam_parts
from spark_jobs.beam_runner.clock import micros

ASSIGN_URN = "beam_runner:assign_windows:v1"
_KNOWN_WINDOWS = 10_000

_FIXED, _SESSIONS = "beam:window_fn:fixed_windows:v1", "beam:window_fn:session_windows:v1"


def is_numeric(payload: bytes) -> bool:
    """Whether a WindowInto with this payload (a WindowingStrategy) can run here."""
    strategy = beam_runner_api_pb2.WindowingStrategy.FromString(payload)
    return strategy.window_fn.urn in (_FIXED, _SESSIONS)


class AssignWindows(beam_parts.Operation):
    """Gives each element the window of its timestamp; once for each window that it was in, as Beam does."""

    def configure(self, windowfn: Any) -> None:
        self._windows: dict[int, IntervalWindow] = {}
        self._offset: int | None = None
        if isinstance(windowfn, FixedWindows):
            self._size, self._offset = micros(windowfn.size), micros(windowfn.offset)
        else:
            self._size = micros(windowfn.gap_size)

    def process(self, value: WindowedValue) -> None:
        at = value.timestamp_micros
        start = at if self._offset is None else at - (at - self._offset) % self._size
        window = self._windows.get(start)
        if window is None:
            if len(self._windows) >= _KNOWN_WINDOWS:
                self._windows.clear()
            end = Timestamp(micros=start + self._size)
            window = self._windows[start] = IntervalWindow(Timestamp(micros=start), end)
        for _ in value.windows:
            self.output(windowed(value.value, at, [window]))  # a list, as Beam's WindowInto gives


def _build(payload: bytes, factory: Any, **kwargs: Any) -> AssignWindows:
    strategy = beam_runner_api_pb2.WindowingStrategy.FromString(payload)
    operation = AssignWindows(**kwargs)
    operation.configure(beam_parts.window_fn(strategy, factory.context))
    return operation


beam_parts.register_element_operation(ASSIGN_URN, _build)
