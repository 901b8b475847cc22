"""The Confluent wire format: a zero byte, a 4-byte big-endian schema id, then the Avro body."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from common.avro.spans import gather_spans

MAGIC = 0
HEADER_BYTES = 5
NOT_FRAMED = -1


class Framed(NamedTuple):
    """Message values taken apart, row for row.

    schema_ids: int32[n]; `NOT_FRAMED` where the value is null, shorter than the header, without the magic byte, or
        with an id that no registry gives out (>= 2**31).
    bodies: binary[n]; what follows the header (empty where not framed).
    """

    schema_ids: npt.NDArray[np.int32]
    bodies: pa.BinaryArray


def unframe(values: pa.BinaryArray) -> Framed:
    """Splits framed message values into schema ids and Avro bodies, without a loop over rows.

    >>> framed = unframe(pa.array([b"\\x00\\x00\\x00\\x00\\x07body", b"{}", None], pa.binary()))
    >>> framed.schema_ids.tolist(), framed.bodies[0].as_py()
    ([7, -1, -1], b'body')
    """
    if len(values) == 0:
        return Framed(np.zeros(0, np.int32), values)
    _, offset_buffer, data_buffer = values.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[values.offset : values.offset + len(values) + 1]
    data = np.frombuffer(data_buffer or b"", np.uint8)
    candidates = offsets[1:] - offsets[:-1] >= HEADER_BYTES
    if values.null_count:
        candidates &= values.is_valid().to_numpy(zero_copy_only=False)
    starts = offsets[:-1][candidates].astype(np.int64)
    ids = np.zeros(len(starts), np.uint32)
    for byte in range(1, HEADER_BYTES):
        ids = ids << np.uint32(8) | data.take(starts + byte)
    schema_ids = np.full(len(values), NOT_FRAMED, np.int32)
    schema_ids[candidates] = np.where((data.take(starts) == MAGIC) & (ids < 2**31), ids.view(np.int32), NOT_FRAMED)
    # Not pc.binary_slice: it fails on values shorter than the slice's start (pyarrow 25: "Negative buffer resize").
    body_starts = np.where(schema_ids == NOT_FRAMED, offsets[1:], offsets[:-1] + HEADER_BYTES)
    return Framed(schema_ids, gather_spans(data, body_starts, offsets[1:]))


def frame(schema_id: int, bodies: pa.BinaryArray) -> pa.BinaryArray:
    """Puts the header of one schema id before each body."""
    return pc.binary_join_element_wise(header(schema_id), bodies, b"")


def header(schema_id: int) -> bytes:
    """The five bytes before a body."""
    return bytes([MAGIC]) + schema_id.to_bytes(HEADER_BYTES - 1, "big")
