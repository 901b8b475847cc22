"""What the groupings without a trigger driver have in common."""

from __future__ import annotations

from typing import Any

from apache_beam.transforms.trigger import AccumulationMode
from apache_beam.transforms.window import TimestampCombiner

from spark_jobs.beam_runner.clock import micros
from spark_jobs.beam_runner.keyed.values import ValueDecoder

_COMBINERS = {TimestampCombiner.OUTPUT_AT_EARLIEST: min, TimestampCombiner.OUTPUT_AT_LATEST: max}  # else: the window


class DriverlessPanes:
    """Takes one key group of a grouping through an epoch: elements at the old watermark, then time moves on."""

    def __init__(self, windowing: Any, key_impl: Any, value_coder: Any) -> None:
        self._window_impl = windowing.windowfn.get_window_coder().get_impl()
        self._decode_key = key_impl.decode_nested
        self._decoder = ValueDecoder(value_coder)
        self._lateness = micros(windowing.allowed_lateness)
        self._accumulates = windowing.accumulation_mode == AccumulationMode.ACCUMULATING
        self._combine: Any = _COMBINERS.get(windowing.timestamp_combiner)
        self.dropped = 0
