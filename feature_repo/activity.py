"""What users do: sessions of views and reactions, as compact columns, before anything goes wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, auto

import numpy as np
import numpy.typing as npt

from feature_repo.catalogue import Videos
from feature_repo.draws import I64, uniform, zipf

EVENT_TYPES = ("view", "like", "comment", "share", "follow")
_VIEW = 0
# Shares of the types among the events of a session; the first event of each is a view.
_TYPE_SHARES = (0.74, 0.14, 0.05, 0.04, 0.03)

_EVENTS_PER_SESSION = 9
_GAP_MS = 20_000
# A few users and far fewer videos make up most of the traffic.
_USER_EXPONENT, _VIDEO_EXPONENT = 0.6, 1.05


class _Stream(IntEnum):
    LENGTH = 100
    START = auto()
    USER = auto()
    GAP = auto()
    TYPE = auto()
    VIDEO = auto()
    WATCHED = auto()


@dataclass(frozen=True)
class Activity:
    """n events in the order in which they happened. All columns have n entries.

    time_ms: since the epoch. user, video, session: numbers of entities. type: index into EVENT_TYPES.
    watch_ms: 0..duration of the video for a view, -1 (none) for the rest.
    """

    time_ms: I64
    user: npt.NDArray[np.int32]
    session: npt.NDArray[np.int32]
    video: npt.NDArray[np.int32]
    type: npt.NDArray[np.int8]
    watch_ms: npt.NDArray[np.int32]


def simulate(seed: int, events: int, users: int, videos: Videos, start_ms: int, span_ms: int) -> Activity:
    """Sessions that begin within [start_ms, start_ms + span_ms), `events` events in all."""
    base = seed << 16  # streams of different seeds must not meet
    numbers = np.arange(events)
    lengths = np.ceil(np.log1p(-uniform(base + _Stream.LENGTH, numbers)) / np.log(1 - 1 / _EVENTS_PER_SESSION))
    lengths = np.maximum(lengths, 1).astype(np.int64)
    session = np.repeat(numbers, lengths)[:events]  # at least one event each: there are sessions enough
    first = np.flatnonzero(np.diff(session, prepend=-1))
    sessions = np.arange(len(first))

    user = zipf(base + _Stream.USER, sessions, users, _USER_EXPONENT)
    begin = start_ms + (uniform(base + _Stream.START, sessions) * span_ms).astype(np.int64)
    gaps = (-np.log1p(-uniform(base + _Stream.GAP, numbers)) * _GAP_MS).astype(np.int64)
    elapsed = np.cumsum(gaps)
    time_ms = begin[session] + elapsed - elapsed[first][session]

    type_ = np.searchsorted(np.cumsum(_TYPE_SHARES)[:-1], uniform(base + _Stream.TYPE, numbers), side="right")
    type_[first] = _VIEW
    # One reacts to the video seen last.
    viewed = np.maximum.accumulate(np.where(type_ == _VIEW, numbers, 0))
    video = zipf(base + _Stream.VIDEO, numbers, videos.count, _VIDEO_EXPONENT)[viewed]
    # A third watches to the end.
    watched = np.minimum(uniform(base + _Stream.WATCHED, numbers) * 1.5, 1.0)
    watch_ms = np.where(type_ == _VIEW, (videos.duration_ms[video] * watched).astype(np.int64), -1)

    order = np.argsort(time_ms, kind="stable")
    return Activity(
        time_ms=time_ms[order],
        user=user[session][order].astype(np.int32),
        session=session[order].astype(np.int32),
        video=video[order].astype(np.int32),
        type=type_[order].astype(np.int8),
        watch_ms=watch_ms[order].astype(np.int32),
    )
