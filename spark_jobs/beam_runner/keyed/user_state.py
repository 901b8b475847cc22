"""Beam's state API on key groups: what a stateful DoFn or a side input reads and writes during a bundle.

States are our own (state_cells.py): Beam's build a protobuf key per key, window and state, and keep all of them until
the bundle ends. Ours are kept while their key is at hand: the elements of a key come one after the other.
"""

from __future__ import annotations

import contextlib
import copy
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from apache_beam.transforms import userstate

from spark_jobs.beam_runner import beam_internals as beam_parts
from spark_jobs.beam_runner.bundles.exchange import key_group
from spark_jobs.beam_runner.bundles.side_inputs import SideTable
from spark_jobs.beam_runner.keyed.state import KeyGroup
from spark_jobs.beam_runner.keyed.state_cells import (
    BagState,
    Cell,
    CombiningState,
    OrderedListState,
    SetState,
    ValueState,
    ordered_list_impl,
)

_LENGTHS = struct.Struct("<HH")


class StateHandler(beam_parts.CachingStateHandler):
    """State of one stage processor. The task sets `groups` and `sides` before a bundle."""

    def __init__(self) -> None:
        # CachingStateHandler's own set-up opens a cache and a channel to a runner; there is neither here.
        self.groups: dict[int, KeyGroup] = {}
        self.key_groups = 1
        self.key_impl: Any = None  # of the stage's keyed input
        self.sides: dict[tuple[str, str], SideTable] = {}  # by transform and tag
        self._decoded_sides: dict[bytes, list[Any]] = {}

    def begin(self, groups: dict[int, KeyGroup], key_groups: int, key_impl: Any) -> None:
        self.groups, self.key_groups, self.key_impl = groups, key_groups, key_impl

    def use_sides(self, sides: dict[tuple[str, str], SideTable]) -> None:
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
        """The values of a side input."""
        key = state_key.SerializeToString(deterministic=True)
        values = self._decoded_sides.get(key)
        if values is None:
            kind = state_key.WhichOneof("type")
            request = getattr(state_key, kind)
            answer = self.sides[request.transform_id, request.side_input_id].answer(kind, request)
            values = self._decoded_sides[key] = list(coder.decode_all(answer))
        return values

    def extend(self, state_key: Any, coder: Any, elements: list[Any]) -> Any:
        raise NotImplementedError("user state is written through its cells")

    def clear(self, state_key: Any) -> Any:
        raise NotImplementedError("user state is cleared through its cells")


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
        self._states: dict[tuple[str, bytes], Any] = {}
        self._specs: dict[str, tuple[bytes, Callable[[Cell], Any]]] = {}  # state -> prefix of its keys, what makes it
        self._combine_fns: list[Any] = []
        self._is_ours = isinstance(state_handler, StateHandler)  # else another runner's, in the same process

    def get_state(self, spec: Any, key: Any, window: Any) -> Any:
        if not self._is_ours:
            return super().get_state(spec, key, window)
        if key is not self._key:
            self._turn_to(key)
        if window is not self._window:
            self._window, self._encoded_window = window, self._window_impl.encode_nested(window)
        state = self._states.get((spec.name, self._encoded_window))
        if state is None:
            state = self._states[spec.name, self._encoded_window] = self._state(spec)
        return state

    def _turn_to(self, key: Any) -> None:
        encoded = self._key_impl.encode_nested(key)
        if self._key is _NO_KEY or encoded != self._encoded_key:
            self._write_back()
            self._states.clear()
            self._encoded_key, self._group = encoded, self._handler.group_of(key)
        self._key = key

    def _state(self, spec: Any) -> Any:
        known = self._specs.get(spec.name)
        if known is None:
            known = self._specs[spec.name] = (key_prefix(self._label, spec.name.encode()), self._maker(spec))
        prefix, make = known
        return make(Cell(self._group, self._encoded_window, prefix + self._encoded_key))

    def _maker(self, spec: Any) -> Callable[[Cell], Any]:
        if isinstance(spec, userstate.CombiningValueStateSpec):
            combine_fn = copy.deepcopy(spec.combine_fn)
            combine_fn.setup()
            self._combine_fns.append(combine_fn)
            return partial(CombiningState, impl=spec.coder.get_impl(), combine_fn=combine_fn)
        if isinstance(spec, userstate.OrderedListStateSpec):
            return partial(OrderedListState, impl=ordered_list_impl(spec.coder))
        if type(spec) in _STATES:
            return partial(_STATES[type(spec)], impl=spec.coder.get_impl())
        raise TypeError(f"state {spec.name!r} is of a kind that the runner does not know: {type(spec).__name__}")

    def _write_back(self) -> None:
        for state in self._states.values():
            state.commit()

    def commit(self) -> None:
        self._write_back()
        super().commit()

    def reset(self) -> None:
        self._states.clear()
        self._key = self._window = _NO_KEY
        self._group = KeyGroup()
        for combine_fn in self._combine_fns:
            combine_fn.teardown()
        self._combine_fns.clear()
        self._specs.clear()
        super().reset()


_NO_KEY: Any = object()
_STATES: dict[type, Any] = {
    userstate.ReadModifyWriteStateSpec: ValueState,
    userstate.BagStateSpec: BagState,
    userstate.SetStateSpec: SetState,
}

beam_parts.use_state_context(_StateContext)


def key_prefix(label: bytes, state: bytes) -> bytes:
    """What the keys of a state's entries begin with; the user's encoded key follows."""
    return _LENGTHS.pack(len(label), len(state)) + label + state


def user_key(entry: bytes) -> bytes:
    """The user's encoded key of an entry."""
    return entry[_LENGTHS.size + sum(_LENGTHS.unpack_from(entry)) :]
