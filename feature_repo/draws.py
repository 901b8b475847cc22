"""Random draws by number instead of by turn: draw k of a stream is a pure function of (stream, k).

So any slice of a log can be made without the part before it, and a larger catalogue starts with the smaller one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def mix(stream: int, numbers: npt.NDArray[Any]) -> U64:
    """64 random bits per number: SplitMix64 (Steele, Lea, Flood 2014) at position `number` of the stream."""
    seed = np.uint64((stream * _GOLDEN * 31 + 0x632BE59BD9B4E019) & _MASK)
    bits = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN) ^ seed
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return bits ^ (bits >> np.uint64(31))


def uniform(stream: int, numbers: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Floats in [0, 1)."""
    return (mix(stream, numbers) >> np.uint64(11)).astype(np.float64) / 2**53


def integers(stream: int, numbers: npt.NDArray[Any], least: int, greatest: int) -> I64:
    """Whole numbers in [least, greatest]."""
    return (mix(stream, numbers) % np.uint64(greatest - least + 1)).astype(np.int64) + least


def choose(stream: int, numbers: npt.NDArray[Any], pool: Sequence[str | None]) -> pa.StringArray:
    """One of the pool's texts per number."""
    return pa.array(pool, pa.string()).take(pa.array(integers(stream, numbers, 0, len(pool) - 1)))


def zipf(stream: int, numbers: npt.NDArray[Any], size: int, exponent: float) -> I64:
    """Ranks in [0, size): rank r has weight 1 / (r + 1) ** exponent."""
    cumulative = np.cumsum(1.0 / np.arange(1, size + 1) ** exponent)
    ranks: I64 = np.searchsorted(cumulative, uniform(stream, numbers) * cumulative[-1], side="right").astype(np.int64)
    return ranks


def hex_ids(stream: int, numbers: npt.NDArray[Any], prefix: str, digits: int) -> pa.StringArray:
    """Ids of `digits` (<= 16) random hexadecimal digits after a prefix."""
    shifts = np.arange(4 * (digits - 1), -4, -4).astype(np.uint64)
    nibbles = (mix(stream, numbers)[:, None] >> shifts) & np.uint64(15)
    return _fixed_width(prefix, _HEX[nibbles])


def decimal_ids(numbers: npt.NDArray[Any], prefix: str, digits: int) -> pa.StringArray:
    """The numbers themselves, zero-padded after a prefix: u000042."""
    powers = 10 ** np.arange(digits - 1, -1, -1)
    return _fixed_width(prefix, (numbers[:, None] // powers % 10 + ord("0")).astype(np.uint8))


def _fixed_width(prefix: str, characters: npt.NDArray[np.uint8]) -> pa.StringArray:
    """Texts of equal width from an uint8[n, digits] matrix of ASCII characters."""
    count, width = len(characters), len(prefix) + characters.shape[1]
    texts = np.empty((count, width), np.uint8)
    texts[:, : len(prefix)] = np.frombuffer(prefix.encode(), np.uint8)
    texts[:, len(prefix) :] = characters
    offsets = np.arange(0, (count + 1) * width, width, dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(offsets), pa.py_buffer(texts)])
