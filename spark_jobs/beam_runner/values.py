"""The values of one key: encoded until somebody iterates over them."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

from apache_beam.coders import coder_impl
from apache_beam.coders.coders import ListCoder

_COUNT = struct.Struct(">i")
LAZY_BYTES = 1 << 20  # encoded; below this a list is made at once
SPILL_BYTES = 64 << 20  # encoded values of one key that stay in memory; the rest goes to a temporary file


class Part(NamedTuple):
    """Some of the values, concatenated."""

    count: int
    data: bytes


class ValueDecoder:
    """Encoded values of one coder -> what user code gets."""

    def __init__(self, coder: Any) -> None:
        self._decode_list = ListCoder(coder).get_impl().decode

    def decode(self, part: Part) -> list[Any]:
        # Beam's list coder loops in compiled code.
        values: list[Any] = self._decode_list(_COUNT.pack(part.count) + part.data)
        return values

    def values(self, parts: list[Part]) -> Sequence[Any]:
        """A list if it is small, else a sequence that decodes anew at each iteration."""
        if sum(len(part.data) for part in parts) >= LAZY_BYTES:
            return EncodedValues(self, parts)
        if len(parts) == 1:
            return self.decode(parts[0])
        return self.decode(Part(sum(p.count for p in parts), b"".join(p.data for p in parts)))


class EncodedValues(Sequence[Any]):
    """May be iterated any number of times; holds one decoded part at a time. Pickles, and compares, as a list."""

    def __init__(self, decoder: ValueDecoder, parts: Iterable[Part]) -> None:
        self._decoder = decoder
        self._parts: list[Part | tuple[int, int, int]] = []  # in memory, or (count, offset, length) in the file
        self._file: Any = None
        self._length = held = 0
        for part in parts:
            self._length += part.count
            held += len(part.data)
            self._parts.append(part if held <= SPILL_BYTES else self._spill(part))

    def _spill(self, part: Part) -> tuple[int, int, int]:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="beam-values-")  # noqa: SIM115  it lives as long as the values
        offset = self._file.seek(0, 2)
        self._file.write(part.data)
        return part.count, offset, len(part.data)

    def __iter__(self) -> Iterator[Any]:
        for part in self._parts:
            if not isinstance(part, Part):
                count, offset, length = part
                self._file.seek(offset)
                part = Part(count, self._file.read(length))
            yield from self._decoder.decode(part)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return list(self)[index]

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
