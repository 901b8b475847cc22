"""A seeded log of engagement events with exactly known faults, and the ground truth about it.

The log is planned as compact columns (~60 bytes per event) by numpy; texts are made and encoded batch by batch when
they are sent. The clock is simulated: it starts at a fixed instant, so that equal options give equal bytes, whenever
they run. Every number in the truth follows from how the plan was made; the pipeline has no part in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum, auto
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from common.avro.arrow_types import arrow_schema
from common.errors import ConfigError
from common.event_source import EventWriter, GenerateOptions, GroundTruth, MessageBatch
from feature_repo.activity import EVENT_TYPES, simulate
from feature_repo.catalogue import DEFAULT_USERS, DEFAULT_VIDEOS, Users, Videos
from feature_repo.draws import I64, choose, decimal_ids, hex_ids, integers, mix, uniform
from feature_repo.event_log import START_MS, Role, fault_is, plan_log
from feature_repo.faults import INVALID_REASONS, MALFORMED, MALFORMED_REASONS

# Simulated time: 100,000 events span four hours, so hourly tiles open and close.
EVENTS_PER_SECOND = 7

BATCH_ROWS = 20_000

# Shares of the log that are faulty when no numbers are given.
_DEFAULT_SHARES = {"duplicates": 0.02, "late": 0.01, "too_late": 0.001, "malformed": 0.002, "invalid": 0.002}
_DEFAULT_SIZES = {"users": DEFAULT_USERS, "videos": DEFAULT_VIDEOS}

# Old apps linger: a fifth of the events is written with the first schema.
_VERSION_SHARES = (0.2, 0.3, 0.5)

_REFERRERS = (None, "home", "search", " push ", "https://example.com/w?v=ü")
_FEEDS, _NETWORKS, _SOUNDS = ("for_you", "following"), ("wifi", "4g", "5g"), ("original", "Für Elise", "夜に駆ける")


class _Stream(IntEnum):
    VERSION = 300
    EVENT_ID = auto()
    EVENT_ID_TAIL = auto()
    SESSION_ID = auto()
    PROPERTIES = auto()
    REFERRER = auto()


def generate(schemas: Sequence[Mapping[str, Any]], options: GenerateOptions) -> Generator:
    """The domain's generator, as domain.yaml names it.

    Raises:
        ConfigError: an unknown size or fault, or more faults than the events can hold.
    """
    return Generator(schemas, options)


class Generator:
    """A planned log: an `EventSource`."""

    def __init__(self, schemas: Sequence[Mapping[str, Any]], options: GenerateOptions) -> None:
        sizes = _known(options.sizes, _DEFAULT_SIZES, "size")
        defaults = {name: int(options.events * share) for name, share in _DEFAULT_SHARES.items()}
        self._faults = _known(options.faults, defaults, "fault")
        if sum(self._faults.values()) + self._faults["duplicates"] > options.events * 0.9:
            raise ConfigError(
                f"{options.events} events cannot hold {sum(self._faults.values())} faults",
                code="too_many_faults",
                hint="ask for more --events: at least a tenth of them should be sound",
            )
        self._schema = arrow_schema(schemas[-1])
        self._writer = EventWriter(schemas)
        self._users, self._videos = Users(sizes["users"]), Videos(sizes["videos"])
        self._streams = options.seed << 16
        self._activity = simulate(
            options.seed,
            options.events - self._faults["duplicates"],
            self._users.count,
            self._videos,
            START_MS,
            options.events * 1000 // EVENTS_PER_SECOND,
        )
        self.log = plan_log(self._activity, options, self._faults, self._streams)

    @property
    def count(self) -> int:
        return len(self.log.event)

    def truth(self) -> GroundTruth:
        bronze_dlq: Counter[str] = Counter()
        for role, reasons in ((Role.MALFORMED, MALFORMED_REASONS), (Role.INVALID, INVALID_REASONS)):
            counts = np.bincount(self.log.fault[self.log.role == role], minlength=len(reasons))
            for reason, count in zip(reasons.values(), counts.tolist(), strict=True):
                bronze_dlq[reason] += count
        too_late = self._faults["too_late"]
        return GroundTruth(
            consumed=self.count,
            bronze_dlq={reason: count for reason, count in sorted(bronze_dlq.items()) if count},
            duplicates=self._faults["duplicates"],
            silver_dlq={"too_late": too_late} if too_late else {},
            late=self._faults["late"] + too_late,
        )

    def batches(self, schema_ids: Sequence[int], start: int, stop: int) -> Iterator[MessageBatch]:
        for first in range(start, stop, BATCH_ROWS):
            rows = np.arange(first, min(first + BATCH_ROWS, stop))
            values = self._writer.values(self._events(rows), self._versions(rows), schema_ids)
            yield MessageBatch(
                keys=self._users.id.take(pa.array(self._activity.user[self.log.event[rows]])).cast(pa.binary()),
                values=self._spoilt(rows, values),
                partitions=self.log.partition[rows],
                timestamps_ms=self.log.arrival_ms[rows],
            )

    def expected_events(self) -> pa.Table:
        """The events that must reach silver, in log order, as canonical columns before scrubbing and normalising."""
        rows = np.flatnonzero(np.isin(self.log.role, (Role.NORMAL, Role.LATE)))
        events = self._events(rows)
        device = events.column("device")
        versions = self._versions(rows)
        # A column that a version does not have is null in what was written with it.
        locale = pc.if_else(pa.array(versions >= 2), device.field("locale"), None)
        children = [locale if field.name == "locale" else device.field(field.name) for field in device.type]
        columns = dict(zip(events.schema.names, events.columns, strict=True)) | {
            "device": pa.StructArray.from_arrays(children, fields=list(device.type)),
            "country": pc.if_else(pa.array(versions >= 1), events.column("country"), None),
            "referrer": pc.if_else(pa.array(versions >= 2), events.column("referrer"), None),
        }
        return pa.table(columns, schema=self._schema)

    def write_reference(self, path: Path) -> bool:
        if self._videos.count == DEFAULT_VIDEOS:
            return False
        self._videos.write_csv(path)
        return True

    def _versions(self, rows: I64) -> npt.NDArray[np.int8]:
        draw = uniform(self._streams + _Stream.VERSION, self.log.event[rows])
        return np.searchsorted(np.cumsum(_VERSION_SHARES)[:-1], draw, side="right").astype(np.int8)

    def _events(self, rows: I64) -> pa.RecordBatch:
        """The canonical events that messages carry, as they are before encoding."""
        event = self.log.event[rows]
        user = pa.array(self._activity.user[event])
        video, watch_ms = self._activity.video[event], self._activity.watch_ms[event].astype(np.int64)
        is_view = watch_ms >= 0
        head = hex_ids(self._streams + _Stream.EVENT_ID, event, "", 16)
        tail = hex_ids(self._streams + _Stream.EVENT_ID_TAIL, event, "", 16)
        device = [values.take(user) for values in self._users.device.values()]
        columns = {
            "event_id": pc.binary_join_element_wise(head, tail, ""),
            "event_type": pa.array(EVENT_TYPES).take(pa.array(self._activity.type[event])),
            "event_time": pa.array(self.log.event_time_ms[rows]).cast(pa.timestamp("ms", "UTC")),
            "user_id": self._users.id.take(user),
            "email": self._users.email.take(user),
            "ip": self._users.ip.take(user),
            "device": pa.StructArray.from_arrays(device, fields=list(self._schema.field("device").type)),
            "session_id": hex_ids(self._streams + _Stream.SESSION_ID, self._activity.session[event], "s-", 16),
            "video_id": self._videos.id.take(pa.array(video)),
            "watch_ms": pa.array(watch_ms, mask=~is_view),
            "duration_ms": pa.array(self._videos.duration_ms[video], mask=~is_view),
            "properties": _properties(self._streams + _Stream.PROPERTIES, event, self._schema.field("properties").type),
            "country": self._users.country.take(user),
            "referrer": choose(self._streams + _Stream.REFERRER, event, _REFERRERS),
        }
        self._break_rules(columns, rows)
        return pa.record_batch(columns, schema=self._schema)

    def _break_rules(self, columns: dict[str, pa.Array], rows: I64) -> None:
        """Makes the INVALID events so; future ones have their time from the plan."""
        invalid = self.log.role[rows] == Role.INVALID
        for kind, column, value in (
            ("missing_user_id", "user_id", ""),
            ("missing_video_id", "video_id", ""),
            ("negative_watch_ms", "watch_ms", -1),
            ("unknown_event_type", "event_type", "teleport"),
        ):
            mask = invalid & fault_is(self.log.fault[rows], kind)
            columns[column] = pc.if_else(pa.array(mask), pa.scalar(value, columns[column].type), columns[column])

    def _spoilt(self, rows: I64, values: pa.BinaryArray) -> pa.BinaryArray:
        malformed = np.flatnonzero(self.log.role[rows] == Role.MALFORMED)
        if not len(malformed):
            return values
        spoil = list(MALFORMED.values())
        kinds = self.log.fault[rows[malformed]]
        broken = [spoil[kind](values[row].as_py()) for kind, row in zip(kinds, malformed, strict=True)]
        order = np.arange(len(rows))
        order[malformed] = len(rows) + np.arange(len(malformed))
        return pa.concat_arrays([values, pa.array(broken, pa.binary())]).take(pa.array(order))


def _properties(stream: int, event: I64, type_: pa.MapType) -> pa.MapArray:
    """Zero to four properties per event."""
    present = (mix(stream, event)[:, None] >> np.arange(4, dtype=np.uint64)) & np.uint64(1) == 1
    columns = {
        "feed": choose(stream + 1_000, event, _FEEDS),
        "network": choose(stream + 2_000, event, _NETWORKS),
        "sound": choose(stream + 3_000, event, _SOUNDS),
        "position": decimal_ids(integers(stream + 4_000, event, 0, 99), "", 2),
    }
    offsets = np.zeros(len(event) + 1, np.int32)
    np.cumsum(present.sum(axis=1), out=offsets[1:])
    # Position of (row, column) in the columns laid end to end.
    cell = (np.arange(len(columns)) * len(event) + np.arange(len(event))[:, None])[present]
    values = pa.concat_arrays(columns.values()).take(pa.array(cell))
    keys = pa.array(list(columns)).take(pa.array(cell // max(len(event), 1)))
    return pa.MapArray.from_arrays(pa.array(offsets), keys, values, type=type_)


def _known(asked: Mapping[str, int], defaults: Mapping[str, int], what: str) -> dict[str, int]:
    unknown = sorted(set(asked) - set(defaults))
    if unknown:
        raise ConfigError(
            f"the generator knows no {what} '{unknown[0]}'", code=f"unknown_{what}", hint=f"use {', '.join(defaults)}"
        )
    negative = [name for name, count in asked.items() if count < (what == "size")]
    if negative:
        raise ConfigError(f"{what} '{negative[0]}' is too small", code=f"bad_{what}")
    return {**defaults, **asked}
