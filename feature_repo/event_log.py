"""The plan of a generated log: which message carries which event, when it arrives, and what is wrong with it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import ConfigError
from common.event_source import GenerateOptions
from feature_repo.activity import Activity
from feature_repo.draws import I64, integers, mix, uniform
from feature_repo.faults import INVALID_REASONS, MALFORMED

START_MS = int(dt.datetime(2026, 1, 5, tzinfo=dt.UTC).timestamp() * 1000)

# Delivery takes a second or two; one event in twenty is out of order, but none outside the grace of the watermark.
_USUAL_DELAY_MS = 1_500
_OUT_OF_ORDER_SHARE = 0.05
# Kept free between the longest harmless delay and the grace.
_GRACE_MARGIN_MS = 10_000
_LATEST_MS = 3 * 3_600_000
_TOO_LATE_MS = 12 * 3_600_000
_SHORTEST_REPEAT_MS, _LONGEST_REPEAT_MS = 1_000, 2 * 3_600_000
_FURTHEST_FUTURE_MS = 3_600_000
_PARTITION_STREAM = 7


class Role(IntEnum):
    """What a message is meant to be."""

    NORMAL = 0
    LATE = auto()
    TOO_LATE = auto()
    INVALID = auto()
    MALFORMED = auto()
    DUPLICATE = auto()


class _Stream(IntEnum):
    ROLE = 200
    DELAY = auto()
    SLOW = auto()
    REPEAT = auto()
    LATENESS = auto()


@dataclass(frozen=True)
class Log:
    """The planned messages in the order they are sent; all columns have one entry per message.

    event: number of the event that the message carries; a duplicate carries its original's. role: Role; fault: which
    kind of INVALID or MALFORMED, by position in `INVALID_REASONS` or `MALFORMED`, else 0. arrival_ms: Kafka timestamp.
    event_time_ms: final, with lateness. partition: by user, so that a duplicate follows its original.
    """

    event: I64
    role: npt.NDArray[np.int8]
    fault: npt.NDArray[np.int8]
    arrival_ms: I64
    event_time_ms: I64
    partition: npt.NDArray[np.int32]


def plan_log(activity: Activity, options: GenerateOptions, faults: Mapping[str, int], streams: int) -> Log:
    """Gives every event its place in the log and exactly `faults` their faults; `streams` is the seed's base.

    Raises:
        ConfigError: there are not enough sound events to be late.
    """
    events = len(activity.time_ms)
    numbers = np.arange(events)
    # Faults go to random events: the first so many of a shuffle are invalid, the next malformed, and so on.
    lottery = np.argsort(mix(streams + _Stream.ROLE, numbers), kind="stable")
    invalid, malformed, originals, rest = np.split(
        lottery, np.cumsum([faults["invalid"], faults["malformed"], faults["duplicates"]])
    )
    role, fault = np.zeros(events, np.int8), np.zeros(events, np.int8)
    role[invalid], fault[invalid] = Role.INVALID, np.arange(len(invalid)) % len(INVALID_REASONS)
    role[malformed], fault[malformed] = Role.MALFORMED, np.arange(len(malformed)) % len(MALFORMED)

    arrival = activity.time_ms + _delays(numbers, options.grace_ms, streams)
    longest = int(np.clip((arrival.max() - START_MS) // 4, 2 * _SHORTEST_REPEAT_MS, _LONGEST_REPEAT_MS))
    repeats = arrival[originals] + integers(streams + _Stream.REPEAT, originals, _SHORTEST_REPEAT_MS, longest)
    order = np.argsort(np.concatenate([arrival, repeats]), kind="stable")
    event, arrival = np.concatenate([numbers, originals])[order], np.concatenate([arrival, repeats])[order]
    role = np.concatenate([role, np.full(len(originals), Role.DUPLICATE, np.int8)])[order]
    fault = np.concatenate([fault, np.zeros(len(originals), np.int8)])[order]
    partition = partition_of(activity.user[event], options.partitions)

    time_ms = activity.time_ms[event]
    watermark = _watermarks(arrival, partition, options.grace_ms)
    message = np.empty(len(order), np.int64)  # where in the log the i-th of (events, repeats) went
    message[order] = np.arange(len(order))
    candidates = message[rest]
    # The first message of a partition meets no watermark that it could be behind.
    candidates = candidates[watermark[candidates] > 0]
    late, too_late, _ = np.split(candidates, np.cumsum([faults["late"], faults["too_late"]]))
    if len(late) + len(too_late) < faults["late"] + faults["too_late"]:
        raise ConfigError("too few events to be late", code="too_many_faults", hint="ask for more --events")
    lateness = streams + _Stream.LATENESS
    role[late], role[too_late] = Role.LATE, Role.TOO_LATE
    time_ms[late] = watermark[late] - integers(lateness, late, 1, min(_LATEST_MS, options.allowed_lateness_ms))
    behind = options.allowed_lateness_ms + integers(lateness, too_late, 1, _TOO_LATE_MS)
    time_ms[too_late] = watermark[too_late] - behind
    future = message[invalid]
    future = future[fault_is(fault[future], "future_event_time")]
    time_ms[future] = arrival[future] + options.max_future_ms + integers(lateness, future, 1, _FURTHEST_FUTURE_MS)
    return Log(event, role, fault, arrival, time_ms, partition)


def partition_of(user: npt.NDArray[np.integer[Any]], partitions: int) -> npt.NDArray[np.int32]:
    """The partition of a user's events, the same in every log."""
    return (mix(_PARTITION_STREAM, user) % np.uint64(partitions)).astype(np.int32)


def fault_is(fault: npt.NDArray[np.int8], kind: str) -> npt.NDArray[np.bool_]:
    """Which of the INVALID messages' faults are of this kind."""
    is_kind: npt.NDArray[np.bool_] = fault == list(INVALID_REASONS).index(kind)
    return is_kind


def _delays(numbers: I64, grace_ms: int, streams: int) -> I64:
    """From an event to its arrival, in ms: below the grace, so that none of these events is late."""
    bound = max(grace_ms - _GRACE_MARGIN_MS, 0)
    draw = uniform(streams + _Stream.DELAY, numbers)
    slow = uniform(streams + _Stream.SLOW, numbers) < _OUT_OF_ORDER_SHARE
    return np.minimum(np.where(slow, draw * bound, -np.log1p(-draw) * _USUAL_DELAY_MS), bound).astype(np.int64)


def _watermarks(arrival_ms: I64, partition: npt.NDArray[np.int32], grace_ms: int) -> I64:
    """The watermark that each message meets: the arrival before it in its partition, less the grace; 0 if none."""
    order = np.argsort(partition, kind="stable")
    same_partition = np.diff(partition[order]) == 0
    watermark = np.zeros(len(order), np.int64)
    watermark[order[1:]] = np.where(same_partition, arrival_ms[order[:-1]] - grace_ms, 0)
    return watermark
