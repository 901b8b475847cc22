"""The private parts of Apache Beam that the runner stands on, in one place.

Beam has no public API to run a fused stage in the current process or to call the optimiser's phases one by one.
Every name below is private or undocumented in Beam 2.77; pyproject.toml pins that minor version, and an upgrade
starts by reading this file. Nothing else in `spark_jobs/` may import from `apache_beam.runners`.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import cache
from typing import Any

from apache_beam import coders
from apache_beam.coders.coders import GlobalWindowCoder, WindowedValueCoder
from apache_beam.internal import pickler
from apache_beam.metrics import monitoring_infos
from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions, TypeOptions
from apache_beam.pipeline import Pipeline, PipelineVisitor
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_fn_api_pb2, beam_runner_api_pb2
from apache_beam.runners import common as runners_common
from apache_beam.runners.pipeline_context import PipelineContext
from apache_beam.runners.pipeline_utils import (
    group_by_key_input_visitor,
    merge_common_environments,
    merge_superset_dep_environments,
    validate_pipeline_graph,
)
from apache_beam.runners.portability.fn_api_runner import translations
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.fn_runner import RunnerResult as FnApiRunnerResult
from apache_beam.runners.portability.fn_api_runner.translations import Stage, TransformContext
from apache_beam.runners.runner import PipelineRunner, PipelineState
from apache_beam.runners.worker import bundle_processor, operation_specs, operations, statesampler
from apache_beam.runners.worker.data_plane import ClosableOutputStream
from apache_beam.runners.worker.sdk_worker import CachingStateHandler
from apache_beam.transforms import trigger
from apache_beam.transforms.core import CallableWrapperCombineFn, CombineFn, DoFn, ParDo, Windowing
from apache_beam.transforms.sideinputs import SIDE_INPUT_PREFIX
from apache_beam.transforms.window import GlobalWindows, IntervalWindow
from apache_beam.typehints import row_type
from apache_beam.typehints.schema_registry import SCHEMA_REGISTRY
from apache_beam.utils import proto_utils
from apache_beam.utils.windowed_value import WindowedValue

__all__ = [
    "CAPABILITIES",
    "ENCODED_IMPULSE",
    "BundleProcessor",
    "CachingStateHandler",
    "ClosableOutputStream",
    "DataInputOperation",
    "DataOutputOperation",
    "ExecutionContext",
    "FnApiRunnerResult",
    "Operation",
    "PipelineContext",
    "PipelineRunner",
    "PipelineState",
    "Stage",
    "StateContext",
    "TransformContext",
    "TriggerDriver",
    "bundle_processor",
    "combine_fn",
    "common_urns",
    "current_step",
    "has_teardown",
    "is_singleton",
    "last_us",
    "load_main_classes",
    "load_row_types",
    "main_classes",
    "monitoring_infos",
    "operation_urns",
    "prepare_proto",
    "proto_utils",
    "register_element_operation",
    "register_operation",
    "restriction_provider",
    "row_types",
    "start_us",
    "taken_timers",
    "timer_domains",
    "timer_window",
    "translations",
    "use_state_context",
    "window_fn",
    "wrapped_callable",
]

BundleProcessor = bundle_processor.BundleProcessor
DataInputOperation = bundle_processor.DataInputOperation
DataOutputOperation = bundle_processor.DataOutputOperation
ExecutionContext = bundle_processor.ExecutionContext
StateContext = bundle_processor.FnApiUserStateContext
Operation = operations.Operation

CAPABILITIES = frozenset([common_urns.runner_protocols.MULTIMAP_KEYS_VALUES_SIDE_INPUT.urn])

# The second: a processor serves many bundles, and side inputs in the global window change between them.
EXPERIMENTS = ("beam_fn_api", "disable_global_windowed_args_caching")

ENCODED_IMPULSE: bytes = (
    WindowedValueCoder(coders.BytesCoder(), GlobalWindowCoder())
    .get_impl()
    .encode_nested(GlobalWindows.windowed_value(b""))
)


_get_key_and_window_coder = ParDo._get_key_and_window_coder


def _of_main_input(self: ParDo, named_inputs: Any) -> Any:
    """Coders of a stateful ParDo's timers. Beam takes any of its inputs, by the hash seed, also a side input."""
    main = {tag: pcoll for tag, pcoll in (named_inputs or {}).items() if not tag.startswith(SIDE_INPUT_PREFIX)}
    return _get_key_and_window_coder(self, main or None)


ParDo._get_key_and_window_coder = _of_main_input


def prepare_proto(pipeline: Pipeline, options: PipelineOptions) -> Any:
    """Pipeline -> validated portable proto whose Python transforms share one embedded environment.

    Raises what Beam's own in-memory runner raises for an invalid graph or undeclared requirements.
    """
    debug = options.view_as(DebugOptions)
    debug.experiments = list(dict.fromkeys([*(debug.experiments or []), *EXPERIMENTS]))
    deterministic_keys = not options.view_as(TypeOptions).allow_non_deterministic_key_coders
    pipeline.visit(group_by_key_input_visitor(deterministic_keys))
    host = FnApiRunner()
    proto = pipeline.to_runner_api(default_environment=host._default_environment)
    validate_pipeline_graph(proto)
    host._validate_requirements(proto)
    unmet = sorted(set(proto.requirements) - set(host.supported_requirements()))
    if unmet:
        raise ValueError(f"SparkRunner does not meet the pipeline's requirements: {', '.join(unmet)}")
    return merge_common_environments(host.resolve_any_environments(merge_superset_dep_environments(proto)))


def has_teardown(pipeline: Pipeline) -> bool:
    """Whether any DoFn or CombineFn of the pipeline defines `teardown`."""
    fns: list[Any] = []

    class Visitor(PipelineVisitor):
        def visit_transform(self, transform_node: Any) -> None:
            fns.append(getattr(transform_node.transform, "fn", None))

        enter_composite_transform = visit_transform

    pipeline.visit(Visitor())
    return any(
        isinstance(fn, base) and type(fn).teardown is not base.teardown for fn in fns for base in (DoFn, CombineFn)
    )


def row_types(components: bytes) -> bytes:
    """The user's classes that stand for schemas in a serialised pipeline, for `load_row_types` in another process.

    Their coders name them by a schema's id, a UUID, and decode to a class made up on the spot where none is known.
    """
    known = SCHEMA_REGISTRY.get_registered_typings().items()
    used = {i: cls for i, cls in known if i.encode() in components and not row_type._user_type_is_generated(cls)}
    pickled: bytes = pickler.dumps(used)
    return pickled


def load_row_types(pickled: bytes) -> None:
    SCHEMA_REGISTRY.load_registered_typings(pickler.loads(pickled))


def main_classes() -> dict[str, bytes]:
    """The classes of the script that this process runs, by name, for `load_main_classes` in another process.

    Elements name their class, and pickle looks for it there. Each is pickled for itself: not every one can be.
    """
    pickled: dict[str, bytes] = {}
    for name, value in list(vars(sys.modules["__main__"]).items()):
        if isinstance(value, type) and value.__module__ == "__main__":
            with suppress(Exception):
                pickled[name] = pickler.dumps(value)
    return pickled


def load_main_classes(pickled: dict[str, bytes]) -> None:
    """Makes them attributes of this process's `__main__`; Beam's pickler gives the same class to DoFns and elements.

    Loaded when asked for: what only the driver needs may not be importable here.
    """
    main = vars(sys.modules["__main__"])
    if pickled.keys() <= main.keys():
        return  # the driver's own process, or there is nothing to load

    @cache
    def load(name: str) -> Any:
        if name not in pickled:
            raise AttributeError(f"module '__main__' has no attribute {name!r}")
        return pickler.loads(pickled[name])

    main["__getattr__"] = load


def current_step() -> str | None:
    """Label of the transform that this thread runs, if it runs one."""
    tracker = statesampler.get_current_tracker()
    state = tracker.current_state() if tracker is not None else None
    return (state.name_context.step_name or None) if state is not None and state.name_context is not None else None


def register_operation(urn: str, build: Any) -> None:
    """Makes Beam's transform factory call `build(payload, factory, **operation_kwargs)` for transforms with `urn`."""

    def create(factory: Any, transform_id: str, proto: Any, payload: bytes, consumers: Any) -> Any:
        return build(
            payload,
            factory,
            operation_name=runners_common.NameContext(proto.unique_name, transform_id),
            step_name=proto.unique_name,
            consumers=consumers,
            counter_factory=factory.counter_factory,
            state_sampler=factory.state_sampler,
            transform_id=transform_id,
            data_channel_factory=None,
        )

    bundle_processor.BeamTransformFactory.register_urn(urn, bytes)(create)


def register_element_operation(urn: str, build: Any) -> None:
    """The same for transforms between a stage's ends: `build(payload, factory, **operation_kwargs)`."""

    def create(factory: Any, transform_id: str, proto: Any, payload: bytes, consumers: Any) -> Any:
        operation = build(
            payload,
            factory,
            name_context=runners_common.NameContext(proto.unique_name, transform_id),
            spec=operation_specs.WorkerFlatten(None, [factory.get_only_output_coder(proto)]),
            counter_factory=factory.counter_factory,
            state_sampler=factory.state_sampler,
        )
        return factory.augment_oldstyle_op(operation, proto.unique_name, consumers)

    bundle_processor.BeamTransformFactory.register_urn(urn, bytes)(create)


def window_fn(strategy: beam_runner_api_pb2.WindowingStrategy, context: PipelineContext) -> Any:
    return Windowing.from_runner_api(strategy, context).windowfn


def combine_fn(payload: bytes, context: PipelineContext) -> CombineFn:
    """The CombineFn of an encoded CombinePayload."""
    return CombineFn.from_runner_api(beam_runner_api_pb2.CombinePayload.FromString(payload).combine_fn, context)


def wrapped_callable(fn: Any) -> Any:
    """The callable that Beam made a CombineFn of, as `sum`; anything else as it is."""
    return fn._fn if isinstance(fn, CallableWrapperCombineFn) else fn


def operation_urns() -> frozenset[str]:
    """Kinds of transforms that a bundle can run."""
    return frozenset(bundle_processor.BeamTransformFactory._known_urns)


def last_us(window: Any) -> int:
    """`window.max_timestamp()` in microseconds, without the four Timestamps that Beam makes for an interval's."""
    if type(window) is IntervalWindow:
        return int(window._end_micros) - 1
    return int(window.max_timestamp().micros)


def start_us(window: Any) -> int:
    """`window.start` of an interval window in microseconds."""
    return int(window._start_micros)


def use_state_context(context_class: type) -> None:
    """Makes Beam build `context_class` for the user state of stateful DoFns."""
    bundle_processor.FnApiUserStateContext = context_class


def timer_domains(descriptor: beam_fn_api_pb2.ProcessBundleDescriptor) -> dict[tuple[str, str], int]:
    """(transform id, timer family) -> beam_runner_api_pb2.TimeDomain of each timer in the stage."""
    domains: dict[tuple[str, str], int] = {}
    for transform_id, transform in descriptor.transforms.items():
        if transform.spec.urn == common_urns.primitives.PAR_DO.urn:
            payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
            for family, spec in payload.timer_family_specs.items():
                domains[transform_id, family] = spec.time_domain
    return domains


def is_singleton(view_fn: Any) -> bool:
    """Whether a side input is looked at through AsSingleton, which Beam tells by nothing but its function."""
    closure = getattr(view_fn, "__closure__", None) or ()
    return any("AsSingleton" in getattr(cell.cell_contents, "__qualname__", "") for cell in closure)


def restriction_provider(descriptor: beam_fn_api_pb2.ProcessBundleDescriptor) -> Any:
    """The RestrictionProvider of the stage's splittable DoFn, with Beam's defaults for what it does not define."""
    for transform in descriptor.transforms.values():
        if transform.spec.urn == common_urns.sdf_components.PROCESS_SIZED_ELEMENTS_AND_RESTRICTIONS.urn:
            payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
            dofn = pickler.loads(payload.do_fn.payload)[0]
            return runners_common.DoFnSignature(dofn).get_restriction_provider()
    raise ValueError("the stage has no splittable DoFn")


class TriggerDriver(trigger.GeneralTriggerDriver):
    """Beam's, which also notes how many of a window's elements have been in a pane.

    It counts panes by a list of as many ones, which in the global window grows for ever. Here the list holds their sum.
    """

    INDEX = trigger._CombiningValueStateTag("index", sum)
    NONSPECULATIVE_INDEX = trigger._CombiningValueStateTag("nonspeculative_index", sum)
    FIRED = trigger._CombiningValueStateTag("fired", sum)

    def _output(self, window: Any, finished: bool, state: Any, *rest: Any) -> WindowedValue:
        pane = super()._output(window, finished, state, *rest)
        for tag, count in (
            (self.INDEX, pane.pane_info.index + 1),
            (self.NONSPECULATIVE_INDEX, pane.pane_info.nonspeculative_index + 1),
            (self.FIRED, len(state.get_state(window, self.ELEMENTS))),
        ):
            state.clear_state(window, tag)
            state.add_state(window, tag, count)
        return pane

    def pane(self, window: Any, finished: bool, state: Any, watermark: Any) -> WindowedValue:
        """Of what the window has, by a trigger that fires now."""
        return self._output(window, finished, state, watermark, False)

    def closing_pane(self, window: Any, state: Any) -> WindowedValue | None:
        """The last pane, of what came since the one before; None if nothing did or the trigger is finished.

        Beam's `ClosingBehavior.EMIT_IF_NONEMPTY`, which it gives all windowings of Python.
        """
        elements = state.get_state(window, self.ELEMENTS)  # a finished trigger has none
        if len(elements) <= state.get_state(window, self.FIRED):
            return None
        return self._output(window, True, state, window.end, True)


def taken_timers(info: Any) -> bytes:
    """What DoFns set since the last call, encoded. `info`: a bundle processor's, of a timer family."""
    data: bytes = info.output_stream.get()
    if data:
        info.output_stream._clear()
    return data


def timer_window(coder_impl: Any, timer: Any) -> bytes:
    """A timer's windows, as its family's coder writes them."""
    encoded: bytes = coder_impl._windows_coder_impl.encode_nested(timer.windows)
    return encoded
