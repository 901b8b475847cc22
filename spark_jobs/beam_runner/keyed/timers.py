"""Timers of stateful DoFns: kept in key groups, fired in time order within the epoch in which they fall due.

No timer outlives its window: at the latest it fires when the window expires, and still sees the state that goes then.
So nothing that is buffered is lost, and a stream flushes what the batch does, where all windows expire at the end. A
firing at the expiry sets no more timers: a loop ends with its window. (Beam's Java `StatefulDoFnRunner` has no timers
of expired windows either, but refuses to set them, or ignores those of processing time.)

The global window has no later time for what is left in it: there, processing-time timers that firings set at the end of
the input fire as well, until none is left, as on Beam's Flink runner.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import struct
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.transforms.window import GlobalWindow

from spark_jobs.beam_runner.beam_internals import last_us, taken_timers, timer_window
from spark_jobs.beam_runner.bundles.bundle import StageProcessor
from spark_jobs.beam_runner.bundles.exchange import key_group
from spark_jobs.beam_runner.clock import MAX_US, MIN_US, NEVER_US, expiry_us
from spark_jobs.beam_runner.errors import RunnerError
from spark_jobs.beam_runner.keyed.state import TIMER, TIMES, KeyGroup

_log = logging.getLogger(__name__)

REAL_TIME = beam_runner_api_pb2.TimeDomain.PROCESSING_TIME
# At the end of time: how long a timer that a firing set is waited for, and how often one may be set again.
LONGEST_WAIT_S = 0.1
MOST_FIRINGS = 10_000
_WARN_AT_FIRING = 100
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
        self._ahead_s = 0.0  # of the clock, by waits that were cut short

    def take_new(self, at_us: int) -> Iterator[tuple[int, bytes]]:
        """Stores what was set or cleared at time `at_us`; yields (group, timer id) of each timer that was set."""
        beam = self._processor.processor
        for (transform, family), info in beam.timers_info.items():
            data = taken_timers(info)
            if not data:
                continue
            coder = info.timer_coder_impl
            domain = self._processor.timer_domains[transform, family]
            for timer in coder.decode_all(data):
                key = self._key_impl.encode_nested(timer.user_key)
                number = key_group(key, self._key_groups)
                window = timer_window(coder, timer)
                timer_id = TimerId(transform, family, timer.dynamic_timer_tag, window, key).encode()
                expiry = expiry_us(last_us(timer.windows[0]), self._lateness_us)
                goes_on = domain == REAL_TIME and isinstance(timer.windows[0], GlobalWindow)
                is_too_late = at_us >= expiry and not goes_on
                if is_too_late and not timer.clear_bit:
                    name = family.removeprefix("ts-")
                    warnings.warn(
                        f"{transform}: timer {name!r} was set when its window had expired: dropped", stacklevel=1
                    )
                if timer.clear_bit or is_too_late:
                    self._groups[number].drop(TIMER, b"", timer_id)
                else:
                    fire = timer.fire_timestamp.micros
                    event, real = (expiry, fire) if domain == REAL_TIME else (min(fire, expiry), NEVER_US)
                    event = event if at_us < expiry else NEVER_US
                    times = TIMES.pack(timer.hold_timestamp.micros, event, real)
                    self._groups[number].put(TIMER, b"", timer_id, times + coder.encode_nested(timer))
                    yield number, timer_id

    def fire_due(self, watermark_us: int, old_watermarks_us: Mapping[int, int], now_us: int) -> None:
        """Fires all due timers, also those that firings set; processing-time timers first, at the old watermark.

        That is by key group. Raises RunnerError for a timer that is set again without end at the end of time.
        """
        heap: list[tuple[int, int, int, bytes, bytes]] = []
        later: list[tuple[int, int, int, bytes, bytes]] = []  # set at the end of time
        firings: Counter[bytes] = Counter()

        def push(number: int, timer_id: bytes) -> None:
            value = self._groups[number].get(TIMER, b"", timer_id)
            if value is None:
                return
            _, event, real = TIMES.unpack_from(value)
            if event <= watermark_us or real <= now_us:
                at = old_watermarks_us[number] if real <= now_us else event
                heapq.heappush(heap, (at, next(self._order), number, timer_id, value))
            elif watermark_us >= MAX_US:
                heapq.heappush(later, (real, next(self._order), number, timer_id, value))

        for _ in self.take_new(MIN_US):
            pass
        for number, group in sorted(self._groups.items()):
            times = group.times(TIMER)
            for _, timer_id in times.reals.take_due(now_us) + times.events.take_due(watermark_us):
                push(number, timer_id)
        while heap or later:
            is_over = not heap
            at, _, number, timer_id, value = heapq.heappop(heap or later)
            group = self._groups[number]
            if group.get(TIMER, b"", timer_id) is not value:
                continue  # cleared or set anew by an earlier firing
            group.drop(TIMER, b"", timer_id)
            named = TimerId.decode(timer_id)
            if is_over:
                firings[timer_id] += 1
                _require_end(named, firings[timer_id])
                self._wait_until(at)
            beam = self._processor.processor
            info = beam.timers_info[named.transform, named.family]
            beam.ops[named.transform].process_timer(
                named.family, info.timer_coder_impl.decode_nested(value[TIMES.size :])
            )
            for set_number, set_id in self.take_new(MAX_US if is_over else at):
                push(set_number, set_id)

    def _wait_until(self, at_us: int) -> None:
        """Real time, also behind a script: work that a timer looks after (threads, requests) goes on meanwhile.

        A wait that is cut short moves the clock on for all that is waited for after it: many keys wait no longer than
        one.
        """
        wait_s = max(0.0, at_us / 1e6 - time.time() - self._ahead_s)
        self._ahead_s += max(0.0, wait_s - LONGEST_WAIT_S)
        time.sleep(min(LONGEST_WAIT_S, wait_s))


def _require_end(timer: TimerId, firing: int) -> None:
    """Raises RunnerError at a timer that is set again without end."""
    if firing == _WARN_AT_FIRING:
        _log.warning("Step %r still sets its timer %r after the end of its input.", timer.transform, timer.family)
    if firing > MOST_FIRINGS:
        raise RunnerError(
            f"{timer.transform}: timer {timer.family!r} was set again {MOST_FIRINGS} times after the end of the input.",
            hint="a processing-time timer that always sets itself again keeps its input from ending: set it only while "
            "there is something left to do",
        )
