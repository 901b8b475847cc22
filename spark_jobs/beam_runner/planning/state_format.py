"""What the bytes in a checkpoint depend on, in words: two starts agree on them, or the bytes cannot be read.

A format is a JSON object of words, of a stage (its keyed state and its input) or of a side input. Pickled payloads are
left out: they differ from run to run. So a custom coder is known by its class, and of functions see fn_words.py.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from apache_beam import CombineFn
from apache_beam.portability.api import beam_runner_api_pb2, schema_pb2, standard_window_fns_pb2
from apache_beam.transforms.window import WindowFn
from google.protobuf import text_format

from spark_jobs.beam_runner.beam_internals import PipelineContext, common_urns
from spark_jobs.beam_runner.planning.fn_words import fn_words

INPUT = frozenset(["kind", "coder", "windows", "trigger", "timestamp"])  # what elements on their way depend on
_CELLS = "state "  # state cells come and go; one that stays must keep its type
_TIMERS = "timer "  # these only come: one that is set must find its callback
_READS = "side input "
_COMBINE = "combine"  # whose accumulators a grouping holds; earlier versions did not note it
_COMBINE_OF = "combine of "  # whose accumulators a state cell holds
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
    combine: Any = None,
    cells: Iterable[tuple[str, beam_runner_api_pb2.StateSpec]] = (),
    timers: Iterable[tuple[str, beam_runner_api_pb2.TimerFamilySpec]] = (),
    reads: Mapping[tuple[str, str], tuple[str, int]],
) -> str:
    """`kind` of the input, ids of its coder and windowing strategy; the state and timers that DoFns declare, by name.

    `combine`: beam_runner_api_pb2.FunctionSpec of the CombineFn whose accumulators the input is.
    `reads`: step and label of a side input that it looks at -> its view, and how late it may look, in microseconds.
    """
    context = PipelineContext(components)
    strategy = components.windowing_strategies[windowing]
    words = {
        "kind": kind,
        **_stored_words(components, context, coder, windowing),
        "allowed lateness": f"{strategy.allowed_lateness / 1000:g} s",
    }
    if is_triggered:
        words["panes"] = beam_runner_api_pb2.AccumulationMode.Enum.Name(strategy.accumulation_mode).lower()
        words["trigger"] = text_format.MessageToString(strategy.trigger, as_one_line=True).strip()
        words["timestamp"] = beam_runner_api_pb2.OutputTime.Enum.Name(strategy.output_time).lower()
    if combine is not None:
        words[_COMBINE] = fn_words(CombineFn.from_runner_api(combine, context))
    for name, spec in cells:
        cell = spec.WhichOneof("spec")
        fields = getattr(spec, cell).ListFields()
        coders = [coder_words(components, context, value) for field, value in fields if field.name.endswith("coder_id")]
        words[_CELLS + name] = f"{cell.removesuffix('_spec')}({', '.join(coders)})"
        if cell == "combining_spec":
            words[_COMBINE_OF + name] = fn_words(CombineFn.from_runner_api(spec.combining_spec.combine_fn, context))
    for name, timer in timers:
        domain = beam_runner_api_pb2.TimeDomain.Enum.Name(timer.time_domain).lower().replace("_", " ")
        payload = coder_words(components, context, timer.timer_family_coder_id)
        words[_TIMERS + name.removeprefix("ts-")] = f"{domain}, {payload}"
    for (step, label), (view, lateness_us) in reads.items():
        words[_reads(step, label)] = f"{view}, {lateness_us / 1e6:g} s late"
    return json.dumps(words, sort_keys=True)


def stored_format(components: beam_runner_api_pb2.Components, coder: str, windowing: str) -> str:
    """Of the elements of a side input; ids of their coder and windowing strategy."""
    return json.dumps(_stored_words(components, PipelineContext(components), coder, windowing), sort_keys=True)


def differences(old: str, new: str, only: Collection[str] = ()) -> Iterator[str]:
    """What keeps bytes of format `old` from being read as `new`, in words.

    State cells may come and go, timers and side inputs may come. `only`: names of what the bytes depend on; all, if
    empty.
    """
    before, after = _words_of(old), _words_of(new)
    if not only:
        yield from _renamed_cells(before, after)
    for name in sorted({*before, *after}):
        was, now = before.get(name), after.get(name)
        if was == now or (only and name not in only) or name.startswith(_READS):
            continue
        if name == "windows" and str(now).startswith(f"{was} "):
            continue  # a custom function was noted by its URN alone in earlier versions
        if None in (was, now) and name.startswith((_CELLS, _COMBINE_OF)):
            continue
        if was is None and name.startswith((_TIMERS, _COMBINE)):
            continue
        yield f"{name} was {was or 'none'}, is {now or 'none'}"


def _renamed_cells(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """A cell by another name would be empty, and what it had is read by nobody."""
    cells = [name for name in sorted({*before, *after}) if name.startswith(_CELLS)]
    for gone in (name for name in cells if name not in after):
        if come := [name for name in cells if name not in before and after[name] == before[gone]]:
            yield f"{gone} is gone while {' and '.join(come)} is new: if that is its new name, it would be empty"


def state_words(text: str) -> dict[str, str]:
    """What the keyed state of a stage of this format depends on, by name."""
    return {name: value for name, value in _words_of(text).items() if not name.startswith(_READS)}


def kind_of(text: str) -> str:
    """How a stage of this format gets its input; "" if that is not known."""
    return _words_of(text).get("kind", "")


def how_it_reads(text: str, step: str, label: str) -> str | None:
    """How a step in a stage of this format reads a side input; None if it does not, or that is not known."""
    return _words_of(text).get(_reads(step, label))


def views(formats: Iterable[str], label: str) -> set[str]:
    """How the steps in stages of these formats view a side input."""
    begin = _reads("", label)
    return {
        value.partition(",")[0] for text in formats for name, value in _words_of(text).items() if name.startswith(begin)
    }


def _reads(step: str, label: str) -> str:
    return f"{_READS}{label} of {step}"


def _words_of(text: str) -> dict[str, str]:
    return dict(json.loads(text)) if text else {}


def _stored_words(components: Any, context: PipelineContext, coder: str, windowing: str) -> dict[str, str]:
    return {
        "coder": coder_words(components, context, coder),
        "windows": window_words(components.windowing_strategies[windowing].window_fn, context),
    }


def coder_words(components: Any, context: PipelineContext, coder_id: str) -> str:
    """What two coders agree on if each reads what the other wrote."""
    coder = components.coders[coder_id]
    if coder.spec.urn == _PICKLED:
        custom = context.coders[coder_id]
        message = getattr(custom, "proto_message_type", None)
        return type(custom).__name__ + (f"{{{message.DESCRIPTOR.full_name}}}" if message is not None else "")
    name = str(coder.spec.urn).removeprefix("beam:coder:").removesuffix(":v1")
    if coder.spec.urn == common_urns.coders.ROW.urn:
        return _row_words(schema_pb2.Schema.FromString(coder.spec.payload))
    if coder.spec.payload:
        name += f"{{{zlib.crc32(coder.spec.payload):08x}}}"
    inner = ", ".join(coder_words(components, context, c) for c in coder.component_coder_ids)
    return f"{name}({inner})" if inner else name


def _row_words(schema: schema_pb2.Schema) -> str:
    """The fields in the order in which they are encoded. A schema's id differs from run to run."""
    fields = list(schema.fields)
    if schema.encoding_positions_set:
        fields.sort(key=lambda field: field.encoding_position)
    return "row{" + ", ".join(f"{field.name}: {_type_words(field.type)}" for field in fields) + "}"


def _type_words(field: schema_pb2.FieldType) -> str:
    kind = field.WhichOneof("type_info")
    if kind is None:  # of a type hint that says nothing
        return "any"
    value: Any = getattr(field, kind)
    if kind == "atomic_type":
        words = str(schema_pb2.AtomicType.Name(value)).lower()
    elif kind == "row_type":
        words = _row_words(value.schema)
    elif kind == "map_type":
        words = f"map({_type_words(value.key_type)}, {_type_words(value.value_type)})"
    elif kind == "logical_type":
        words = f"{value.urn}({_type_words(value.representation)})"
    else:
        words = f"{kind.removesuffix('_type')}({_type_words(value.element_type)})"
    return words + ("?" if field.nullable else "")


def window_words(window_fn: Any, context: PipelineContext) -> str:
    """A window function with its parameters, as a person would say it; a custom one behind its URN."""
    if window_fn.urn == common_urns.global_windows.urn:
        return "the global window"
    if window_fn.urn not in _WINDOWS:
        return f"{window_fn.urn} {fn_words(WindowFn.from_runner_api(window_fn, context))}"
    payload_class, name = _WINDOWS[window_fn.urn]
    payload = payload_class.FromString(window_fn.payload)
    times = [(field.name, value.seconds + value.nanos / 1e9) for field, value in payload.ListFields()]
    return f"{name}: " + ", ".join(f"{label.replace('_', ' ')} {seconds:g} s" for label, seconds in times)
