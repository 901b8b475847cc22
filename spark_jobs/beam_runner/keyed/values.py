"""The values of one key: encoded until somebody iterates over them."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

from apache_beam.coders import coder_impl
from apache_beam.coders.coders import BooleanCoder, FloatCoder, ListCoder, VarIntCoder

from spark_jobs.beam_runner.bundles.spool import Data

_COUNT = struct.Struct(">i")
LAZY_BYTES = 64 << 10  # encoded; below this a list is made at once
LARGE_BYTES = 256  # values of this mean size are decoded one by one; many small ones are faster in compiled code
_SMALL_VALUES = (BooleanCoder, FloatCoder, VarIntCoder)

Part = tuple[int, Data]  # how many values, and their concatenated encodings


def joined(parts: list[Part]) -> tuple[int, bytes]:
    return sum([count for count, _ in parts]), b"".join([bytes(data) for _, data in parts])


def packer(coder: Any) -> Callable[[list[Any]], Part] | None:
    """Encodes values together, for coders of values that are small and cannot change; None for others."""
    if type(coder) not in _SMALL_VALUES:
        return None
    encode_list = ListCoder(coder).get_impl().encode  # it loops in compiled code

    def pack(values: list[Any]) -> Part:
        return len(values), encode_list(values)[_COUNT.size :]

    return pack


class ValueDecoder:
    """Encoded values of one coder -> what user code gets."""

    def __init__(self, coder: Any) -> None:
        self._decode_list = ListCoder(coder).get_impl().decode
        self._decode_one = coder.get_impl().decode_from_stream

    def decode(self, count: int, data: Data) -> list[Any]:
        # Beam's list coder loops in compiled code.
        values: list[Any] = self._decode_list(_COUNT.pack(count) + bytes(data))
        return values

    def each(self, count: int, data: Data) -> Iterator[Any]:
        """The same without a list of them, if they are large."""
        if len(data) < LARGE_BYTES * count:
            yield from self.decode(count, data)
            return
        stream = coder_impl.create_InputStream(bytes(data))
        for _ in range(count):
            yield self._decode_one(stream, True)

    def values(self, parts: list[Part]) -> Sequence[Any]:
        """A list if it is small, else a sequence that decodes anew at each iteration."""
        if len(parts) == 1 and len(parts[0][1]) < LAZY_BYTES:
            return self.decode(*parts[0])
        if sum([len(data) for _, data in parts]) >= LAZY_BYTES:
            return EncodedValues(self, parts)
        return self.decode(*joined(parts))


class EncodedValues(Sequence[Any]):
    """May be iterated any number of times; holds one decoded part at a time, of large values one value.

    Pickles, and compares, as a list.
    """

    def __init__(self, decoder: ValueDecoder, parts: list[Part]) -> None:
        self._decoder, self._parts = decoder, parts
        self._length = sum(count for count, _ in parts)

    def __iter__(self) -> Iterator[Any]:
        for count, data in self._parts:
            yield from self._decoder.each(count, data)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return list(self)[index]

    def __reversed__(self) -> Iterator[Any]:
        return iter(list(self)[::-1])

    def index(self, value: Any, start: int = 0, stop: int = sys.maxsize) -> int:
        return list(self).index(value, start, stop)

    def count(self, value: Any) -> int:
        return list(self).count(value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return NotImplemented if not isinstance(other, Sequence) else False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)

    def __repr__(self) -> str:
        return f"<{self._length:,} encoded values>"


coder_impl.FastPrimitivesCoderImpl.register_iterable_like_type(EncodedValues)
