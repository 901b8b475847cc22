"""Copying many spans of one buffer into an Arrow array, in C."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def gather_spans(
    data: npt.NDArray[np.uint8], start: npt.NDArray[np.integer[Any]], end: npt.NDArray[np.integer[Any]]
) -> pa.BinaryArray:
    """binary[n] of data[start[i]:end[i]]. The spans must ascend and not overlap; offsets must be below 2**31.

    The offsets [s0, e0, s1, e1, ...] describe an array of values and of the gaps between them; taking the even ones
    leaves the values.
    """
    count = len(start)
    if count == 0:
        return pa.array([], pa.binary())
    offsets = np.empty(2 * count, np.int32)
    offsets[0::2], offsets[1::2] = start, end
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    interleaved = pa.Array.from_buffers(pa.binary(), 2 * count - 1, buffers)
    return interleaved.take(pa.array(np.arange(0, 2 * count, 2)))
