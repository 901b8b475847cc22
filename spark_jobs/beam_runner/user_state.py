"""Beam's state API on key groups: what a stateful DoFn or a side input reads and writes during a bundle.

Value, combining and bag state, nearly all there is, have states of our own: Beam's build a protobuf key per key,
window and state, and keep all of them until the bundle ends. Ours are kept while their key is at hand: the elements
of a key come one after the other. The other kinds are Beam's, over the state handler.
"""

from __future__ import annotations

import contextlib
import copy
import struct
from collections.abc import Iterator
from typing import Any

from apache_beam.coders import coder_impl
from apache_beam.transforms import userstate

from spark_jobs.beam_runner import beam_internals as beam_parts
from spark_jobs.beam_runner.exchange import key_group
from spark_jobs.beam_runner.state import USER, KeyGroup

_LENGTHS = struct.Struct("<HH")


class StateHandler(beam_parts.CachingStateHandler):
    """State of one stage processor. The task sets `groups` and `sides` before a bundle."""

    def __init__(self) -> None:
        # CachingStateHandler's own set-up opens a cache and a channel to a runner; there is neither here.
        self.groups: dict[int, KeyGroup] = {}
        self.key_groups = 1
        self.key_impl: Any = None  # of the stage's keyed input
        self.contexts: dict[str, Any] = {}
        self.sides: dict[bytes, bytes] = {}
        self._decoded_sides: dict[bytes, list[Any]] = {}

    def begin(self, groups: dict[int, KeyGroup], key_groups: int, key_impl: Any) -> None:
        self.groups, self.key_groups, self.key_impl = groups, key_groups, key_impl

    def use_sides(self, sides: dict[bytes, bytes]) -> None:
        self.sides = sides
        self._decoded_sides.clear()

    @contextlib.contextmanager
    def process_instruction_id(self, bundle_id: str, cache_tokens: Any) -> Iterator[None]:  # noqa: ARG002
        yield

    def done(self) -> None:
        """Nothing to close: there is no channel."""

    def group_of(self, key: Any) -> KeyGroup:
        """The group of a user's key. The SDK's key coder may differ from that of the rows (length prefix)."""
        return self.groups[key_group(self.key_impl.encode_nested(key), self.key_groups)]

    def blocking_get(self, state_key: Any, coder: Any) -> list[Any]:
        if state_key.WhichOneof("type").endswith("user_state"):
            group, window, key = self._slot(state_key)
            return list(coder.decode_all(group.get(USER, window, key) or b""))
        key = state_key.SerializeToString(deterministic=True)
        values = self._decoded_sides.get(key)
        if values is None:
            values = self._decoded_sides[key] = list(coder.decode_all(self.sides.get(key, b"")))
        return values

    def extend(self, state_key: Any, coder: Any, elements: list[Any]) -> Any:
        group, window, key = self._slot(state_key)
        stream = coder_impl.create_OutputStream()
        for element in elements:
            coder.encode_to_stream(element, stream, True)
        group.append(USER, window, key, stream.get())
        return beam_parts.completed_future()

    def clear(self, state_key: Any) -> Any:
        group, window, key = self._slot(state_key)
        group.drop(USER, window, key)
        return beam_parts.completed_future()

    def _slot(self, state_key: Any) -> tuple[KeyGroup, bytes, bytes]:
        named = getattr(state_key, state_key.WhichOneof("type"))
        key = self.contexts[named.transform_id].decode_key(named.key)
        return self.group_of(key), named.window, state_key.SerializeToString(deterministic=True)


class _Cell:
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


_NO_KEY: Any = object()
_UNCHANGED: Any = object()
_NOTHING: Any = object()  # cleared, or never written: None is a value that a coder may know


class _ValueState(userstate.ReadModifyWriteRuntimeState):
    """What was written is kept as it is until `commit`; what was only read is decoded anew at each read."""

    def __init__(self, cell: _Cell, impl: Any) -> None:
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


class _CombiningState(userstate.CombiningValueRuntimeState):
    def __init__(self, cell: _Cell, impl: Any, combine_fn: Any) -> None:
        self._accumulator, self._fn = _ValueState(cell, impl), combine_fn

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


class _BagState(userstate.BagRuntimeState):
    def __init__(self, cell: _Cell, impl: Any) -> None:
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


class _StateContext(beam_parts.StateContext):
    """The user state of one stateful DoFn. States are written back when another key comes, and when the bundle ends."""

    def __init__(self, state_handler: Any, transform_id: str, key_coder: Any, window_coder: Any) -> None:
        super().__init__(state_handler, transform_id, key_coder, window_coder)
        self._handler = state_handler
        self._key_impl, self._window_impl = key_coder.get_impl(), window_coder.get_impl()
        self._label = transform_id.encode()
        self._key: Any = _NO_KEY  # the user's key that `_encoded_key` and `_group` belong to
        self._window: Any = _NO_KEY
        self._encoded_key = self._encoded_window = b""
        self._group = KeyGroup()
        self._ours: dict[tuple[str, bytes], Any] = {}
        self._specs: dict[str, tuple[bytes, Any, Any]] = {}  # state -> (prefix of its keys, coder, combine function)
        self._combine_fns: list[Any] = []
        self._is_ours = isinstance(state_handler, StateHandler)  # else another runner's, in the same process
        if self._is_ours:
            state_handler.contexts[transform_id] = self

    def decode_key(self, data: bytes) -> Any:
        return self._key_impl.decode_nested(data)

    def get_state(self, spec: Any, key: Any, window: Any) -> Any:
        if not (self._is_ours and isinstance(spec, _OURS)):
            return super().get_state(spec, key, window)
        if key is not self._key:
            self._turn_to(key)
        if window is not self._window:
            self._window, self._encoded_window = window, self._window_impl.encode_nested(window)
        state = self._ours.get((spec.name, self._encoded_window))
        if state is None:
            state = self._ours[spec.name, self._encoded_window] = self._state(spec)
        return state

    def _turn_to(self, key: Any) -> None:
        encoded = self._key_impl.encode_nested(key)
        if self._key is _NO_KEY or encoded != self._encoded_key:
            self._write_back()
            self._ours.clear()
            self._encoded_key, self._group = encoded, self._handler.group_of(key)
        self._key = key

    def _state(self, spec: Any) -> Any:
        known = self._specs.get(spec.name)
        if known is None:
            known = self._specs[spec.name] = self._describe(spec)
        prefix, impl, combine_fn = known
        cell = _Cell(self._group, self._encoded_window, prefix + self._encoded_key)
        if combine_fn is not None:
            return _CombiningState(cell, impl, combine_fn)
        return (_BagState if isinstance(spec, userstate.BagStateSpec) else _ValueState)(cell, impl)

    def _describe(self, spec: Any) -> tuple[bytes, Any, Any]:
        name = spec.name.encode()
        combine_fn = None
        if isinstance(spec, userstate.CombiningValueStateSpec):
            combine_fn = copy.deepcopy(spec.combine_fn)
            combine_fn.setup()
            self._combine_fns.append(combine_fn)
        return _LENGTHS.pack(len(self._label), len(name)) + self._label + name, spec.coder.get_impl(), combine_fn

    def _write_back(self) -> None:
        for state in self._ours.values():
            state.commit()

    def commit(self) -> None:
        self._write_back()
        super().commit()

    def reset(self) -> None:
        self._ours.clear()
        self._key = self._window = _NO_KEY
        self._group = KeyGroup()
        for combine_fn in self._combine_fns:
            combine_fn.teardown()
        self._combine_fns.clear()
        self._specs.clear()
        super().reset()


_OURS = (userstate.ReadModifyWriteStateSpec, userstate.BagStateSpec, userstate.CombiningValueStateSpec)

beam_parts.use_state_context(_StateContext)
