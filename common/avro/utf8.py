"""Which values of a binary array are not UTF-8, without decoding the good ones one by one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

# Below this many values a Python loop beats further halving.
_SMALL = 16


def invalid_utf8(values: pa.BinaryArray) -> npt.NDArray[np.bool_]:
    """bool[n]: True where a value is not UTF-8.

    Halves the array until the halves are good (checked in C) or small, so a few bad values in a large array cost
    a few dozen casts.
    """
    bad = np.zeros(len(values), np.bool_)
    pending = [(0, len(values))]
    while pending:
        start, stop = pending.pop()
        part = values.slice(start, stop - start)
        if stop - start <= _SMALL:
            bad[start:stop] = [not _is_utf8(value) for value in part.to_pylist()]
        elif not _all_utf8(part):
            middle = (start + stop) // 2
            pending += [(start, middle), (middle, stop)]
    return bad


def _all_utf8(values: pa.BinaryArray) -> bool:
    try:
        values.cast(pa.string())
    except pa.ArrowInvalid:
        return False
    return True


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
