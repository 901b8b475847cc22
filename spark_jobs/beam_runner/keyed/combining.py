"""The part of a lifted CombinePerKey before the shuffle, done where its pairs are gathered anyway.

Beam's own operation calls `add_input` for each element and emits (key, accumulator) elements, which would be gathered
again. Here numbers wait in the list of their key and go to `add_inputs` together; an accumulator is made and encoded
when it leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from apache_beam.transforms.core import CombineFn
from apache_beam.utils.windowed_value import WindowedValue

from spark_jobs.beam_runner.keyed.grouped import HELD_BYTES, KEY_BYTES, OWN_NAMES, PAIR_BYTES, GroupingWriter, Layout
from spark_jobs.beam_runner.keyed.values import Part

MOST_KEYS = 100_000  # with an accumulator, whose size is unknown; as in Beam

_NUMBERS = frozenset([int, float, bool, type(None)])  # values that may wait: they are small and never change


class _Accumulator:
    """The first of a key's values once there is one."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class CombiningWriter(GroupingWriter):
    """Takes pairs of keys and values, sends pairs of keys and accumulators.

    `scope`: user code is called in it, so that its metrics are those of its step.
    """

    def __init__(
        self,
        combine_fn: CombineFn,
        scope: AbstractContextManager[object],
        key_impl: Any,
        window_impl: Any,
        encode: Callable[[Any], bytes],
        send: Callable[[int, bytes], None],
    ) -> None:
        super().__init__(Layout(by_window=True), key_impl, window_impl, encode, send)
        self._scope = scope
        self._create, self._add_inputs = combine_fn.create_accumulator, combine_fn.add_inputs
        self._compact = combine_fn.compact
        self.add, self._pack = self._add_to_combine, self._pack_accumulator

    def _add_to_combine(self, value: WindowedValue) -> None:
        key, item = value.value
        name = key if type(key) in OWN_NAMES else self._encode_key(key)
        for window in value.windows:
            if window is not self._window:
                self._turn_to(window, self._encode_window(window))
            values = self._keys.get(name)
            if values is None:
                values = self._keys[name] = [item]
                self._room -= KEY_BYTES
            else:
                values.append(item)
            if type(item) not in _NUMBERS:
                with self._scope:
                    self._fold(values)
        self._room -= PAIR_BYTES
        if self._room < 0:
            self._make_room()

    def _combined(self, values: list[Any]) -> Any:
        """-> the accumulator of all values."""
        first = values[0]
        if type(first) is not _Accumulator:
            return self._add_inputs(self._create(), values)
        return self._add_inputs(first.value, values[1:]) if len(values) > 1 else first.value

    def _fold(self, values: list[Any]) -> None:
        values[:] = [_Accumulator(self._combined(values))]

    def _make_room(self) -> None:
        """Folds what waits; accumulators leave only if they are very many."""
        keys = sum(map(len, self._values.values()))
        if keys > MOST_KEYS:
            self.flush()
            return
        with self._scope:
            for table in self._values.values():
                for values in table.values():
                    self._fold(values)
        self._room = HELD_BYTES - keys * KEY_BYTES

    def _pack_accumulator(self, values: list[Any]) -> Part:
        return 1, self._encode(self._compact(self._combined(values)))

    def flush(self) -> None:
        with self._scope:
            super().flush()
