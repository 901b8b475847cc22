"""Quality rules over decoded batches: which rows break which rule first."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from common.domain import Domain
from common.records import millis

MISSING_REQUIRED = "missing_required"
UNKNOWN_EVENT_TYPE = "unknown_event_type"
NOT_ONE_OF = "not_one_of"
OUT_OF_RANGE = "out_of_range"
EVENT_TIME_IN_FUTURE = "event_time_in_future"


class Rule(NamedTuple):
    """`broken` gives bool[n] for a batch of n rows. `field` is the path it looks at; a value is never told."""

    reason: str
    field: str
    broken: Callable[[pa.RecordBatch], pa.BooleanArray]


class Verdict(NamedTuple):
    """The rows that break a rule, ascending, and the first rule that each breaks."""

    bad: npt.NDArray[np.intp]
    rules: list[Rule]


def rules_of(domain: Domain) -> tuple[Rule, ...]:
    """A domain's rules in the order in which they are tried."""
    quality, event = domain.quality, domain.event
    return (
        *(Rule(MISSING_REQUIRED, path, _missing(path)) for path in quality.required),
        Rule(UNKNOWN_EVENT_TYPE, event.type, _not_one_of(event.type, event.types)),
        *(Rule(NOT_ONE_OF, path, _not_one_of(path, values)) for path, values in quality.one_of.items()),
        *(Rule(OUT_OF_RANGE, path, _out_of_range(path, *bounds)) for path, bounds in quality.range.items()),
        # Beam's clock and int64 arithmetic end near the year -290,000; no event is older than Unix.
        Rule(OUT_OF_RANGE, event.time, _before_1970(event.time)),
        Rule(EVENT_TIME_IN_FUTURE, event.time, _in_future(event.time, domain.lateness.max_future_ms)),
    )


def judge(rules: tuple[Rule, ...], batch: pa.RecordBatch) -> Verdict:
    """Applies the rules to decoded rows. A row that breaks several is told by the first."""
    first = np.full(batch.num_rows, len(rules), np.int32)
    for number, rule in enumerate(rules):
        broken = pc.fill_null(rule.broken(batch), False)
        if broken.true_count:
            mask = broken.to_numpy(zero_copy_only=False)
            first[mask] = np.minimum(first[mask], number)
    bad = np.flatnonzero(first < len(rules))
    return Verdict(bad, [rules[number] for number in first[bad]])


def column_at(batch: pa.RecordBatch, path: str) -> pa.Array:
    """The column at a path such as `device.os`."""
    name, *inner = path.split(".")
    column = batch.column(name)
    for field in inner:
        column = pc.struct_field(column, field)
    return column


def _missing(path: str) -> Callable[[pa.RecordBatch], pa.BooleanArray]:
    def broken(batch: pa.RecordBatch) -> pa.BooleanArray:
        column = column_at(batch, path)
        if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
            return pc.fill_null(pc.equal(pc.binary_length(column), 0), True)
        return column.is_null()

    return broken


def _not_one_of(path: str, values: tuple[str, ...]) -> Callable[[pa.RecordBatch], pa.BooleanArray]:
    def broken(batch: pa.RecordBatch) -> pa.BooleanArray:
        column = column_at(batch, path)
        return pc.and_(column.is_valid(), pc.invert(pc.is_in(column, value_set=pa.array(values, column.type))))

    return broken


def _out_of_range(path: str, least: int, greatest: int) -> Callable[[pa.RecordBatch], pa.BooleanArray]:
    def broken(batch: pa.RecordBatch) -> pa.BooleanArray:
        column = column_at(batch, path)
        return pc.or_(pc.less(column, least), pc.greater(column, greatest))

    return broken


def _before_1970(time_column: str) -> Callable[[pa.RecordBatch], pa.BooleanArray]:
    def broken(batch: pa.RecordBatch) -> pa.BooleanArray:
        return pa.array(millis(batch.column(time_column).fill_null(0)) < 0)

    return broken


def _in_future(time_column: str, max_future_ms: int) -> Callable[[pa.RecordBatch], pa.BooleanArray]:
    def broken(batch: pa.RecordBatch) -> pa.BooleanArray:
        time_ms = millis(batch.column(time_column).fill_null(0))
        return pa.array(time_ms > millis(batch.column("_kafka_ts_ms")) + max_future_ms)

    return broken
