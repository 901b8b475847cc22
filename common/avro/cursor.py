"""A cursor over many messages at once: every read takes the next value of each of them, in lock-step.

All messages lie in one byte buffer; `pos[i]` is where message i goes on and `end[i]` where it stops. A read is a
handful of numpy operations over all rows, so its cost per message is nanoseconds, not a Python call.

A message that breaks a rule gets a fault code and is *parked*: its position moves to its end, where every further read
fails again without effect (the first fault is kept). Two invariants make this safe: `pos <= end` before every read, and
`PADDING` spare bytes after the last message, so that no read leaves the buffer. Nothing is ever allocated by a length
or count that a message claims.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from common.avro.spans import gather_spans

I64: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

# A varint has at most 10 bytes and 8 are loaded at a time.
PADDING: Final = 16

# What can be wrong with a message. The names are stable: they end up in the dead-letter table.
FAULTS: Final = (
    "",
    "truncated",
    "trailing_bytes",
    "varint_too_long",
    "int_out_of_range",
    "negative_length",
    "bad_boolean",
    "bad_utf8",
    "bad_enum_index",
    "unknown_enum_symbol",
    "bad_union_branch",
    "unresolvable_union_branch",
    "bad_block_count",
    "too_many_items",
    "decimal_out_of_range",
)
_CODE: Final = {name: code for code, name in enumerate(FAULTS)}

# Items of all arrays and maps of one message, nested ones included. The loop over items runs once per ordinal, not per
# row, so one hostile message costs at most this many turns of ~50 us: 0.5 s.
MAX_ITEMS: Final = 10_000

_CONTINUATION: Final = np.uint64(0x8080808080808080)
_ONE: Final = np.uint64(1)


class Ledger:
    """Per message of the batch: its first fault (0 = none) and the collection items it has used up."""

    def __init__(self, rows: int) -> None:
        self.codes = np.zeros(rows, np.int8)
        self.items = np.zeros(rows, np.int64)


class Cursor:
    """Positions of n values in one buffer. `rows[i]` is the message that value i belongs to."""

    __slots__ = ("_words", "data", "end", "ledger", "pos", "rows")

    def __init__(self, data: npt.NDArray[np.uint8], pos: I64, end: I64, rows: I64, ledger: Ledger) -> None:
        self.data, self.pos, self.end, self.rows, self.ledger = data, pos, end, rows, ledger
        # Eight bytes from any position: an unaligned view, one word per byte of the buffer.
        self._words = np.lib.stride_tricks.as_strided(data[:8].view("<u8"), (len(data) - 7,), (1,), writeable=False)

    def __len__(self) -> int:
        return len(self.pos)

    def subset(self, index: I64) -> Cursor:
        """A cursor over some of the values; hand it to `rejoin` when it has read."""
        return Cursor(self.data, self.pos[index], self.end[index], self.rows[index], self.ledger)

    def rejoin(self, index: I64, part: Cursor) -> None:
        """Takes over the positions of `subset(index)`."""
        self.pos = self.pos.copy()
        self.pos[index] = part.pos

    def fail(self, bad: Mask, fault: str) -> None:
        """Marks and parks the values where `bad` holds."""
        rows = self.rows[bad]
        self.ledger.codes[rows] = np.where(self.ledger.codes[rows] == 0, _CODE[fault], self.ledger.codes[rows])
        self.pos = np.where(bad, self.end, self.pos)

    def healthy(self) -> Mask:
        """Which values belong to messages without a fault so far."""
        healthy: Mask = self.ledger.codes[self.rows] == 0
        return healthy

    def advance(self, width: int | I64) -> None:
        """Steps over `width` bytes; fails with 'truncated' where the message ends before."""
        self.pos = self.pos + width
        over = self.pos > self.end
        if over.any():
            self.fail(over, "truncated")

    def byte(self) -> npt.NDArray[np.uint8]:
        """The next byte, uint8[n]."""
        values = self.data.take(self.pos)
        self.advance(1)
        return values

    def word(self, width: int) -> npt.NDArray[np.uint64]:
        """The next 4 or 8 bytes as a little-endian uint64[n]; with 4, the upper half is not part of the value."""
        values = self._words[self.pos]
        self.advance(width)
        return values

    def varint(self) -> I64:
        """The next zig-zag varint, int64[n]. Fails with 'varint_too_long' past 10 bytes or 64 bits."""
        first = self.data.take(self.pos)
        if not len(first) or first.max() < 0x80:  # one byte each: lengths, branches, small counts
            self.advance(1)
            small = first >> 1
            return (small.view(np.int8) ^ -(first & 1).view(np.int8)).astype(np.int64)
        raw = first.astype(np.uint64)
        width = np.ones(len(first), np.int64)
        long = np.flatnonzero(first >= 0x80)
        raw[long], width[long] = self._long_varints(self.pos[long])
        too_long = width > 10
        if too_long.any():
            self.fail(too_long, "varint_too_long")
        self.advance(width)
        return (raw >> _ONE).view(np.int64) ^ -(raw & _ONE).view(np.int64)

    def length(self) -> I64:
        """A length prefix, int64[n], checked against what is left of each message; 0 where it fails."""
        length = self.varint()
        # As unsigned, a negative length is above every possible rest.
        bad = length.view(np.uint64) > (self.end - self.pos).view(np.uint64)
        if bad.any():
            self.fail(bad & (length < 0), "negative_length")
            self.fail(bad & (length >= 0), "truncated")
            length = np.where(bad, 0, length)
        return length

    def span(self) -> tuple[I64, I64]:
        """Start and end of a length-prefixed value, each int64[n]."""
        length = self.length()
        start = self.pos
        self.pos = start + length
        return start, self.pos

    def gather(self, start: I64, end: I64) -> pa.BinaryArray:
        """Copies the bytes of n spans, as `span` gives them, to an Arrow binary array."""
        return gather_spans(self.data, start, end)

    def _long_varints(self, pos: I64) -> tuple[npt.NDArray[np.uint64], I64]:
        """Raw value and width of varints of two bytes or more; a width of 11 stands for "too long"."""
        word = self._words[pos]
        stops = ~word & _CONTINUATION
        stop = stops & (~stops + _ONE)  # the stop bit of the last byte; 0 if it is not among these eight
        width = (np.bitwise_count(stop - _ONE).astype(np.int64) >> 3) + 1
        raw = _squeeze(word & (stop - _ONE))
        beyond = np.flatnonzero(stop == 0)
        if len(beyond):
            ninth, tenth = self.data[pos[beyond] + 8], self.data[pos[beyond] + 9]
            last = np.where(ninth < 0x80, 0, tenth)
            high = (ninth & 0x7F).astype(np.uint64) << np.uint64(56) | last.astype(np.uint64) << np.uint64(63)
            raw[beyond] |= high
            width[beyond] = np.where(ninth < 0x80, 9, np.where(tenth <= 1, 10, 11))
        return raw, width


def _squeeze(word: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Eight groups of 7 bits, one per byte, to one number of 56 bits; the top bit of each byte is dropped."""
    for low, high, shift in (
        (0x007F007F007F007F, 0x7F007F007F007F00, 1),
        (0x00003FFF00003FFF, 0x3FFF00003FFF0000, 2),
        (0x000000000FFFFFFF, 0x0FFFFFFF00000000, 4),
    ):
        word = (word & np.uint64(low)) | ((word & np.uint64(high)) >> np.uint64(shift))
    return word
