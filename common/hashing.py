"""A 64-bit hash of keys that is the same in every process, library version and architecture.

State hangs on bucket numbers for years, so neither Python's `hash` (salted) nor the hash of a dataframe library
(changes between versions) will do. Vectorised over the Arrow buffers: 10M short strings per second and core.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

U64 = npt.NDArray[np.uint64]

WORD_BYTES = 8
# A bucket needs balance, not identity: beyond this prefix only the length counts, so that one absurdly long key does
# not cost a pass over the batch per eight of its bytes.
MAX_HASHED_BYTES = 256

_SEED = np.uint64(0x9E3779B97F4A7C15)
# MurmurHash3's finaliser.
_MULTIPLIERS = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))
_SHIFT = np.uint64(33)


def stable_hash(keys: pa.Array) -> U64:
    """uint64[n] for string, binary or integer keys[n]. Null hashes as empty, an integer as its decimal text.

    h = seed ^ length; for each little-endian 8-byte word w of the key, zero-padded: h = mix(h ^ w); then MurmurHash3's
    finaliser, where mix is its first half.

    >>> stable_hash(pa.array(["a", "b", None])).tolist()
    [710949192515109467, 2983823577637993840, 11286133854226296554]
    """
    starts, lengths, data = _utf8(keys)
    state: U64 = _SEED ^ lengths.astype(np.uint64)
    hashed = np.minimum(lengths, MAX_HASHED_BYTES)
    # Unaligned words at any byte: a view with a stride of one byte.
    words = np.ndarray((len(data) - WORD_BYTES + 1,), "<u8", data, strides=(1,))
    active = np.arange(len(state))
    for at in range(0, int(hashed.max(initial=0)), WORD_BYTES):
        active = active[hashed[active] > at]
        left = np.minimum(hashed[active] - at, WORD_BYTES)
        word = words[starts[active] + at] & _LOW_BYTES[left]
        state[active] = _mix(state[active] ^ word, _MULTIPLIERS[0])
    for multiplier in _MULTIPLIERS:
        state = _mix(state, multiplier)
    return state ^ (state >> _SHIFT)


def bucket_of(keys: pa.Array, buckets: int) -> npt.NDArray[np.uint16]:
    """The bucket of each key, 0 <= bucket < buckets <= 65536."""
    return (stable_hash(keys) % np.uint64(buckets)).astype(np.uint16)


def _mix(state: U64, multiplier: np.uint64) -> U64:
    return (state ^ (state >> _SHIFT)) * multiplier


_LOW_BYTES = np.array([(1 << 8 * count) - 1 for count in range(WORD_BYTES + 1)], np.uint64)


def _utf8(keys: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Start and length of each key in one byte buffer with a word of padding at its end."""
    if pa.types.is_integer(keys.type):
        keys = keys.cast(pa.string())
    if not (pa.types.is_string(keys.type) or pa.types.is_binary(keys.type)):
        raise TypeError(f"keys of type {keys.type} have no stable hash")
    if keys.null_count:
        keys = keys.fill_null("")
    if len(keys) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(WORD_BYTES, np.uint8)
    _, offset_buffer, data_buffer = keys.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[keys.offset : keys.offset + len(keys) + 1].astype(np.int64)
    data = np.zeros(offsets[-1] - offsets[0] + WORD_BYTES, np.uint8)
    if data_buffer is not None:
        data[:-WORD_BYTES] = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]]
    return offsets[:-1] - offsets[0], np.diff(offsets), data
