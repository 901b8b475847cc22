"""The states that a stateful DoFn reads and writes, over encoded entries of a key group.

Each keeps what was written as objects until `commit`, which writes it back. What was only read is decoded anew at each
read: nothing that a DoFn does to a value it was given changes the state.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from typing import Any

from apache_beam.coders import TupleCoder, VarIntCoder, coder_impl
from apache_beam.coders.coders import LengthPrefixCoder
from apache_beam.transforms import userstate
from apache_beam.utils.timestamp import Timestamp

from spark_jobs.beam_runner.keyed.state import USER, KeyGroup


class Cell:
    """Where one state of the key at hand is kept."""

    __slots__ = ("_group", "_key", "_window")

    def __init__(self, group: KeyGroup, window: bytes, key: bytes) -> None:
        self._group, self._window, self._key = group, window, key

    def get(self) -> bytes | None:
        return self._group.get(USER, self._window, self._key)

    def put(self, value: bytes) -> None:
        self._group.put(USER, self._window, self._key, value)

    def append(self, more: bytes) -> None:
        self._group.append(USER, self._window, self._key, more)

    def drop(self) -> None:
        self._group.drop(USER, self._window, self._key)


_UNCHANGED: Any = object()
_NOTHING: Any = object()  # cleared, or never written: None is a value that a coder may know


class ValueState(userstate.ReadModifyWriteRuntimeState):
    """What was written is kept as it is until `commit`; what was only read is decoded anew at each read."""

    def __init__(self, cell: Cell, impl: Any) -> None:
        self._cell, self._impl = cell, impl
        self._written = _UNCHANGED

    def get(self) -> Any:
        if self._written is not _UNCHANGED:
            return self._written
        data = self._cell.get()
        return _NOTHING if data is None else self._impl.decode_nested(data)

    def read(self) -> Any:
        value = self.get()
        return None if value is _NOTHING else value

    def write(self, value: Any) -> None:
        self._written = value

    def clear(self) -> None:
        self._written = _NOTHING

    def commit(self) -> None:
        if self._written is _NOTHING:
            self._cell.drop()
        elif self._written is not _UNCHANGED:
            self._cell.put(self._impl.encode_nested(self._written))


class CombiningState(userstate.CombiningValueRuntimeState):
    def __init__(self, cell: Cell, impl: Any, combine_fn: Any) -> None:
        self._accumulator, self._fn = ValueState(cell, impl), combine_fn

    def _get(self) -> Any:
        accumulator = self._accumulator.get()
        return self._fn.create_accumulator() if accumulator is _NOTHING else accumulator

    def read(self) -> Any:
        return self._fn.extract_output(self._get())

    def add(self, value: Any) -> None:
        self._accumulator.write(self._fn.add_input(self._get(), value))

    def clear(self) -> None:
        self._accumulator.clear()

    def commit(self) -> None:
        self._accumulator.commit()


class BagState(userstate.BagRuntimeState):
    def __init__(self, cell: Cell, impl: Any) -> None:
        self._cell, self._impl = cell, impl
        self._added: list[Any] = []
        self._cleared = False

    def read(self) -> list[Any]:
        data = None if self._cleared else self._cell.get()
        return [*self._impl.decode_all(data), *self._added] if data else list(self._added)

    def add(self, value: Any) -> None:
        self._added.append(value)

    def clear(self) -> None:
        self._added, self._cleared = [], True

    def commit(self) -> None:
        if self._cleared:
            self._cell.drop()
        if self._added:
            stream = coder_impl.create_OutputStream()
            for value in self._added:
                self._impl.encode_to_stream(value, stream, True)
            self._cell.append(stream.get())
        self._added, self._cleared = [], False


class SetState(userstate.SetRuntimeState):
    """No element is kept twice: what is added is looked up first."""

    def __init__(self, cell: Cell, impl: Any) -> None:
        self._bag, self._impl = BagState(cell, impl), impl
        self._whole: set[Any] | None = None

    def read(self) -> set[Any]:
        if self._whole is None:
            self._whole = set(self._bag.read())
        return set(self._whole)

    def add(self, value: Any) -> None:
        if self._whole is None:
            self._whole = set(self._bag.read())
        if value not in self._whole:
            self._whole.add(value)
            self._bag.add(value)

    def clear(self) -> None:
        self._whole = set()
        self._bag.clear()

    def commit(self) -> None:
        self._bag.commit()
        self._whole = None


class OrderedListState(userstate.OrderedListRuntimeState):
    """Pairs of a time and a value, in the order of the times; at equal times, in the order in which they were added."""

    def __init__(self, cell: Cell, impl: Any) -> None:
        self._bag = BagState(cell, impl)

    def read(self) -> Iterator[tuple[Timestamp, Any]]:
        return ((Timestamp(micros=at), value) for at, value in self._sorted())

    def read_range(self, start: Timestamp, limit: Timestamp) -> Iterator[tuple[Timestamp, Any]]:
        return (pair for pair in self.read() if start <= pair[0] < limit)

    def add(self, value: tuple[Timestamp, Any]) -> None:
        self._bag.add((value[0].micros, value[1]))

    def clear_range(self, start: Timestamp, limit: Timestamp) -> None:
        kept = [pair for pair in self._sorted() if not start.micros <= pair[0] < limit.micros]
        self._bag.clear()
        for pair in kept:
            self._bag.add(pair)

    def clear(self) -> None:
        self._bag.clear()

    def commit(self) -> None:
        self._bag.commit()

    def _sorted(self) -> list[tuple[int, Any]]:
        return sorted(self._bag.read(), key=itemgetter(0))


def ordered_list_impl(coder: Any) -> Any:
    """Coder of an ordered list's pairs."""
    return TupleCoder([VarIntCoder(), LengthPrefixCoder(coder)]).get_impl()
