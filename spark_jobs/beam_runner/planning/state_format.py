"""What a step's keyed state depends on, in words: two starts agree on them, or the state cannot be read.

A format is a JSON object of words. Pickled payloads are left out: they differ from run to run. So a custom coder is
known by its class, and a custom window function by its URN only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from apache_beam.portability.api import beam_runner_api_pb2, standard_window_fns_pb2
from google.protobuf import text_format

from spark_jobs.beam_runner.beam_internals import PipelineContext, common_urns

_CELLS = "state "  # state cells come and go; one that stays must keep its type
_PICKLED = "beam:coder:pickled_python:v1"
_WINDOWS: dict[str, tuple[Any, str]] = {
    common_urns.fixed_windows.urn: (standard_window_fns_pb2.FixedWindowsPayload, "fixed windows"),
    common_urns.sliding_windows.urn: (standard_window_fns_pb2.SlidingWindowsPayload, "sliding windows"),
    common_urns.session_windows.urn: (standard_window_fns_pb2.SessionWindowsPayload, "sessions"),
}


def state_format(
    components: beam_runner_api_pb2.Components,
    kind: str,
    coder: str,
    windowing: str,
    *,
    is_triggered: bool,
    cells: Iterable[tuple[str, beam_runner_api_pb2.StateSpec]] = (),
) -> str:
    """`kind` of the input, ids of its coder and windowing strategy; `cells`: the state that DoFns declare, by name."""
    context = PipelineContext(components)
    strategy = components.windowing_strategies[windowing]
    words = {
        "kind": kind,
        "coder": _coder_words(components, context, coder),
        "windows": _window_words(strategy.window_fn),
        "allowed lateness": f"{strategy.allowed_lateness / 1000:g} s",
    }
    if is_triggered:
        words["panes"] = beam_runner_api_pb2.AccumulationMode.Enum.Name(strategy.accumulation_mode).lower()
        words["trigger"] = text_format.MessageToString(strategy.trigger, as_one_line=True).strip()
        words["timestamp"] = beam_runner_api_pb2.OutputTime.Enum.Name(strategy.output_time).lower()
    for name, spec in cells:
        cell = spec.WhichOneof("spec")
        fields = getattr(spec, cell).ListFields()
        coders = [
            _coder_words(components, context, value) for field, value in fields if field.name.endswith("coder_id")
        ]
        words[_CELLS + name] = f"{cell.removesuffix('_spec')}({', '.join(coders)})"
    return json.dumps(words, sort_keys=True)


def differences(old: str, new: str) -> Iterator[str]:
    """What keeps state of format `old` from being read as `new`, in words. State cells may come and go."""
    if not new:
        yield "it keeps no state any more"
        return
    before, after = words_of(old), words_of(new)
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name) and not (
            name.startswith(_CELLS) and not (name in before and name in after)
        ):
            yield f"{name} was {before.get(name, 'none')}, is {after.get(name, 'none')}"


def words_of(text: str) -> dict[str, str]:
    """What a format depends on, by name."""
    return dict(json.loads(text)) if text else {}


def _coder_words(components: Any, context: PipelineContext, coder_id: str) -> str:
    coder = components.coders[coder_id]
    if coder.spec.urn == _PICKLED:
        return type(context.coders[coder_id]).__name__
    name = str(coder.spec.urn).removeprefix("beam:coder:").removesuffix(":v1")
    inner = ", ".join(_coder_words(components, context, c) for c in coder.component_coder_ids)
    return f"{name}({inner})" if inner else name


def _window_words(window_fn: Any) -> str:
    if window_fn.urn == common_urns.global_windows.urn:
        return "the global window"
    if window_fn.urn not in _WINDOWS:
        return str(window_fn.urn)
    payload_class, name = _WINDOWS[window_fn.urn]
    payload = payload_class.FromString(window_fn.payload)
    times = [(field.name, value.seconds + value.nanos / 1e9) for field, value in payload.ListFields()]
    return f"{name}: " + ", ".join(f"{label.replace('_', ' ')} {seconds:g} s" for label, seconds in times)
