"""Schemas of the layers, and the columns that follow from an instant."""

from __future__ import annotations

import datetime as dt
import doctest

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import hashing, pii, records
from common.dead_letters import dead_letters
from common.records import DEAD_LETTER_SCHEMA, millis, partition_columns

UTC_MS = st.integers(0, 4_102_444_800_000)  # to the year 2100


@given(st.lists(UTC_MS))
def test_date_and_hour_are_those_of_utc(times_ms: list[int]) -> None:
    date, hour = partition_columns(np.array(times_ms, np.int64))
    instants = [dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC) for time_ms in times_ms]
    assert date.to_pylist() == [instant.strftime("%Y-%m-%d") for instant in instants]
    assert hour.to_pylist() == [instant.hour for instant in instants]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_millis_of_any_timestamp(unit: str) -> None:
    times = pa.array([0, 1_700_000_000_000]).cast(pa.timestamp("ms", "UTC")).cast(pa.timestamp(unit, "UTC"))
    assert millis(times).tolist() == [0, 1_700_000_000_000]


def test_a_dead_letter_without_its_bytes_says_where_they_are() -> None:
    rows = pa.record_batch(
        {"_topic": ["t"], "_partition": pa.array([3], pa.int32()), "_offset": [9], "_kafka_ts_ms": [7], "id": ["e"]}
    )
    letters = dead_letters("silver/lateness", rows, ["too_late"], ["event_time"], "id")
    assert letters.schema == DEAD_LETTER_SCHEMA
    assert letters.to_pylist() == [
        {
            "layer": "silver",
            "step": "silver/lateness",
            "reason": "too_late",
            "detail": "event_time",
            "topic": "t",
            "partition": 3,
            "offset": 9,
            "kafka_ts_ms": 7,
            "schema_id": None,
            "key": None,
            "value": None,
            "event_id": "e",
            "failed_at_ms": 7,
        }
    ]


@pytest.mark.parametrize("module", [hashing, pii, records])
def test_examples_in_docstrings_hold(module: object) -> None:
    failures, examples = doctest.testmod(module)  # type: ignore[arg-type]
    assert (failures, examples > 0) == (0, True)
