"""Beam's state API on key groups: what a stateful DoFn or a side input reads and writes during a bundle."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import Any

from apache_beam.coders import coder_impl

from spark_jobs.beam_runner import beam_internals as beam_parts
from spark_jobs.beam_runner.exchange import key_group
from spark_jobs.beam_runner.side_inputs import SideTable
from spark_jobs.beam_runner.state import USER, KeyGroup

_WINDOW_LENGTH = struct.Struct("<I")


def entry_key(window: bytes, state_key: bytes) -> bytes:
    """Key of a user-state entry: the window comes first, so that an expired window's entries can be told apart."""
    return _WINDOW_LENGTH.pack(len(window)) + window + state_key


def window_of(entry: bytes) -> bytes:
    """The encoded window of a user-state entry's key."""
    (length,) = _WINDOW_LENGTH.unpack_from(entry)
    return entry[_WINDOW_LENGTH.size : _WINDOW_LENGTH.size + length]


class StateHandler(beam_parts.CachingStateHandler):
    """State of one stage processor. The task sets `groups` and `sides` before a bundle."""

    def __init__(self) -> None:
        # CachingStateHandler's own set-up opens a cache and a channel to a runner; there is neither here.
        self.groups: dict[int, KeyGroup] = {}
        self.key_groups = 1
        self.key_impl: Any = None  # of the stage's keyed input
        self.contexts: dict[str, Any] = {}
        self.sides: dict[tuple[str, str], SideTable] = {}  # by transform and tag
        self._decoded_sides: dict[bytes, list[Any]] = {}
        self._group_of: dict[tuple[str, bytes], int] = {}

    def begin(self, groups: dict[int, KeyGroup], key_groups: int, key_impl: Any) -> None:
        self.groups, self.key_groups, self.key_impl = groups, key_groups, key_impl
        self._group_of.clear()

    def use_sides(self, sides: dict[tuple[str, str], SideTable]) -> None:
        self.sides = sides
        self._decoded_sides.clear()

    @contextlib.contextmanager
    def process_instruction_id(self, bundle_id: str, cache_tokens: Any) -> Iterator[None]:  # noqa: ARG002
        yield

    def done(self) -> None:
        """Nothing to close: there is no channel."""

    def blocking_get(self, state_key: Any, coder: Any) -> list[Any]:
        kind = state_key.WhichOneof("type")
        if kind.endswith("user_state"):
            group, key = self._slot(state_key)
            return list(coder.decode_all(group.entries[USER].get(key, b"")))
        key = state_key.SerializeToString(deterministic=True)
        values = self._decoded_sides.get(key)
        if values is None:
            request = getattr(state_key, kind)
            answer = self.sides[request.transform_id, request.side_input_id].answer(kind, request)
            values = self._decoded_sides[key] = list(coder.decode_all(answer))
        return values

    def extend(self, state_key: Any, coder: Any, elements: list[Any]) -> Any:
        group, key = self._slot(state_key)
        stream = coder_impl.create_OutputStream()
        for element in elements:
            coder.encode_to_stream(element, stream, True)
        group.put(USER, key, group.entries[USER].get(key, b"") + stream.get())
        return beam_parts.completed_future()

    def clear(self, state_key: Any) -> Any:
        group, key = self._slot(state_key)
        group.drop(USER, key)
        return beam_parts.completed_future()

    def _slot(self, state_key: Any) -> tuple[KeyGroup, bytes]:
        named = getattr(state_key, state_key.WhichOneof("type"))
        known = self._group_of.get((named.transform_id, named.key))
        if known is None:
            # The SDK's key coder may differ from the data channel's (length prefix): go through the key itself.
            key = self.contexts[named.transform_id]._key_coder.get_impl().decode_nested(named.key)
            known = key_group(self.key_impl.encode_nested(key), self.key_groups)
            self._group_of[named.transform_id, named.key] = known
        return self.groups[known], entry_key(named.window, state_key.SerializeToString(deterministic=True))


class _StateContext(beam_parts.StateContext):
    """Tells our handler the key coder of each stateful transform."""

    def __init__(self, state_handler: Any, transform_id: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(state_handler, transform_id, *args, **kwargs)
        if isinstance(state_handler, StateHandler):
            state_handler.contexts[transform_id] = self


beam_parts.use_state_context(_StateContext)
