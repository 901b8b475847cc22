"""Bytes of Feast's Redis layout, against protobuf and against literals taken from Feast's own serializer."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from common.domain import Aggregate, FeatureView
from common.errors import PipelineError
from common.online.feast_encoding import (
    decode_timestamps_us,
    encode_entity_keys,
    encode_timestamps,
    encode_values,
    feature_field,
    require_online_types,
    timestamp_field,
)

# 0001-01-01 to 9999-12-31, what protobuf's Timestamp allows.
times = st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31), timezones=st.just(UTC))


def column(values: list[object], dtype: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, dtype)])


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        (pa.string(), "a", b"\x12\x01a"),
        (pa.string(), "é" * 100, b"\x12\xc8\x01" + "é".encode() * 100),
        (pa.int32(), -1, b"\x18" + b"\xff" * 9 + b"\x01"),
        (pa.int64(), 0, b"\x20\x00"),
        (pa.int64(), 300, b"\x20\xac\x02"),
        (pa.int64(), -(2**63), b"\x20" + b"\x80" * 9 + b"\x01"),
        (pa.float64(), 1.5, b"\x29\x00\x00\x00\x00\x00\x00\xf8\x3f"),
        (pa.float32(), 1.5, b"\x35\x00\x00\xc0\x3f"),
        (pa.bool_(), False, b"\x38\x00"),
        (pa.int64(), None, b""),
    ],
)
def test_values(dtype: pa.DataType, value: object, expected: bytes) -> None:
    assert encode_values(column([value, value], dtype)) == [expected] * 2


def test_values_keep_their_rows() -> None:
    assert encode_values(column([2, None, 1, 2], pa.int64())) == [b"\x20\x02", b"", b"\x20\x01", b"\x20\x02"]


@settings(deadline=None)
@given(st.lists(times, min_size=1, max_size=20))
def test_timestamps_are_protobuf(stamps: list[datetime]) -> None:
    expected = []
    for stamp in stamps:
        message = Timestamp()
        message.FromDatetime(stamp)
        expected.append(message.SerializeToString())
    array = column(list(stamps), pa.timestamp("us", "UTC"))
    assert encode_timestamps(array) == expected
    np.testing.assert_array_equal(decode_timestamps_us(expected), array.cast(pa.int64()).to_numpy())


def test_a_missing_timestamp_is_older_than_any() -> None:
    assert decode_timestamps_us([None]).tolist() == [-(2**63)]


def test_entity_keys() -> None:
    head = b"\x01\x00\x00\x00\x02\x00\x00\x00\x07\x00\x00\x00user_id"
    assert encode_entity_keys(column(["ab"], pa.string()), "user_id", "proj") == [
        head + b"\x02\x00\x00\x00\x02\x00\x00\x00abproj"
    ]
    assert encode_entity_keys(column([-2], pa.int64()), "user_id", "proj") == [
        head + b"\x04\x00\x00\x00\x08\x00\x00\x00\xfe" + b"\xff" * 7 + b"proj"
    ]


def test_hash_fields() -> None:
    assert timestamp_field("v") == b"_ts:v"
    assert feature_field("hello", "world") == b"\x9e\xdbM\xa7"  # murmur3_32 of "hello:world", little-endian


def test_types_that_cannot_be_served_are_refused_together() -> None:
    stamp = Aggregate("last_seen", "max", "event_time", {}, pa.timestamp("ms", "UTC"))
    count = Aggregate("views", "count", None, {}, pa.int64())
    require_online_types(FeatureView("v", "user", "user_id", pa.string(), 1, (count,)))
    with pytest.raises(PipelineError, match=r"last_seen \(timestamp\[ms, tz=UTC\]\), ratio \(double\)") as caught:
        require_online_types(FeatureView("v", "user", "ratio", pa.float64(), 1, (count, stamp)))
    assert caught.value.code == "online_bad_type"
