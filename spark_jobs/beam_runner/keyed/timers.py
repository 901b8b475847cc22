"""Timers of stateful DoFns: kept in key groups, fired in time order within the epoch in which they fall due.

No timer outlives its window: at the latest it fires when the window expires, and still sees the state that goes then.
So nothing that is buffered is lost, and a stream flushes what the batch does, where all windows expire at the end. A
firing at the expiry sets no more timers: a loop ends with its window. (Beam's Java `StatefulDoFnRunner` has no timers
of expired windows either, but refuses to set them, or ignores those of processing time.)
"""

from __future__ import annotations

import heapq
import itertools
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from apache_beam.portability.api import beam_runner_api_pb2

from spark_jobs.beam_runner.beam_internals import last_us
from spark_jobs.beam_runner.bundles.bundle import StageProcessor
from spark_jobs.beam_runner.bundles.exchange import key_group
from spark_jobs.beam_runner.clock import MIN_US, NEVER_US, expiry_us
from spark_jobs.beam_runner.keyed.state import TIMER, TIMES, KeyGroup

REAL_TIME = beam_runner_api_pb2.TimeDomain.PROCESSING_TIME
_LENGTHS = struct.Struct("<HHHHI")


@dataclass(frozen=True)
class TimerId:
    """What makes a timer one timer: setting it again replaces it."""

    transform: str
    family: str
    tag: str
    window: bytes
    key: bytes

    def encode(self) -> bytes:
        parts = (self.transform.encode(), self.family.encode(), self.tag.encode(), self.window, self.key)
        return _LENGTHS.pack(*map(len, parts)) + b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> TimerId:
        at = _LENGTHS.size
        parts = []
        for length in _LENGTHS.unpack_from(data):
            parts.append(data[at : at + length])
            at += length
        return cls(parts[0].decode(), parts[1].decode(), parts[2].decode(), parts[3], parts[4])


class TimerService:
    """Moves timers that DoFns set into key groups, and due timers back into the DoFns, in one bundle."""

    def __init__(
        self, processor: StageProcessor, groups: dict[int, KeyGroup], key_impl: Any, key_groups: int, lateness_us: int
    ) -> None:
        self._processor, self._groups, self._key_impl, self._key_groups = processor, groups, key_impl, key_groups
        self._lateness_us = lateness_us
        self._order = itertools.count()

    def take_new(self, at_us: int) -> Iterator[tuple[int, bytes]]:
        """Stores what was set or cleared at time `at_us`; yields (group, timer id) of each timer that was set."""
        beam = self._processor.processor
        for (transform, family), info in beam.timers_info.items():
            data = info.output_stream.get()
            if not data:
                continue
            info.output_stream._clear()
            coder = info.timer_coder_impl
            domain = self._processor.timer_domains[transform, family]
            for timer in coder.decode_all(data):
                key = self._key_impl.encode_nested(timer.user_key)
                number = key_group(key, self._key_groups)
                window = coder._windows_coder_impl.encode_nested(timer.windows)
                timer_id = TimerId(transform, family, timer.dynamic_timer_tag, window, key).encode()
                expiry = expiry_us(last_us(timer.windows[0]), self._lateness_us)
                if timer.clear_bit or at_us >= expiry:
                    self._groups[number].drop(TIMER, b"", timer_id)
                else:
                    fire = timer.fire_timestamp.micros
                    event, real = (expiry, fire) if domain == REAL_TIME else (min(fire, expiry), NEVER_US)
                    times = TIMES.pack(timer.hold_timestamp.micros, event, real)
                    self._groups[number].put(TIMER, b"", timer_id, times + coder.encode_nested(timer))
                    yield number, timer_id

    def fire_due(self, watermark_us: int, old_watermarks_us: Mapping[int, int], now_us: int) -> None:
        """Fires all due timers, also those that firings set; processing-time timers first, at the old watermark.

        That is by key group.
        """
        heap: list[tuple[int, int, int, bytes, bytes]] = []

        def push(number: int, timer_id: bytes) -> None:
            value = self._groups[number].get(TIMER, b"", timer_id)
            if value is None:
                return
            _, event, real = TIMES.unpack_from(value)
            if event <= watermark_us or real <= now_us:
                at = old_watermarks_us[number] if real <= now_us else event
                heapq.heappush(heap, (at, next(self._order), number, timer_id, value))

        for _ in self.take_new(MIN_US):
            pass
        for number, group in sorted(self._groups.items()):
            times = group.times(TIMER)
            for _, timer_id in times.reals.take_due(now_us) + times.events.take_due(watermark_us):
                push(number, timer_id)
        while heap:
            at, _, number, timer_id, value = heapq.heappop(heap)
            group = self._groups[number]
            if group.get(TIMER, b"", timer_id) is not value:
                continue  # cleared or set anew by an earlier firing
            group.drop(TIMER, b"", timer_id)
            named = TimerId.decode(timer_id)
            beam = self._processor.processor
            info = beam.timers_info[named.transform, named.family]
            beam.ops[named.transform].process_timer(
                named.family, info.timer_coder_impl.decode_nested(value[TIMES.size :])
            )
            for set_number, set_id in self.take_new(at):
                push(set_number, set_id)
