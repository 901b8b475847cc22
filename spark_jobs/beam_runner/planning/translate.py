"""Portable pipeline proto -> Plan: optimised stages, then levels, inputs and outputs per stage."""

from __future__ import annotations

import graphlib
import logging
import pickle
import uuid
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.portability.api import beam_fn_api_pb2, beam_runner_api_pb2
from apache_beam.pvalue import SideInputData

from common.publish import PUBLISH_URN
from spark_jobs.beam_runner.beam_internals import (
    PipelineContext,
    Stage,
    TransformContext,
    bundle_processor,
    common_urns,
    is_singleton,
    main_classes,
    proto_utils,
    row_types,
    translations,
)
from spark_jobs.beam_runner.bundles import assign_windows
from spark_jobs.beam_runner.bundles.operations import INPUT_URN, OUTPUT_URN, InputSpec, OutputSpec, Target
from spark_jobs.beam_runner.errors import UnsupportedPipelineError
from spark_jobs.beam_runner.keyed import grouped
from spark_jobs.beam_runner.planning import phases
from spark_jobs.beam_runner.planning.plan import (
    ALL_PANES,
    FORWARD,
    GROUP,
    IMPULSE,
    KEYED,
    LAST_OF_KEY,
    LATEST_PANE,
    PUBLISH,
    SCRIPT,
    SHUFFLE,
    SIDE,
    InputPlan,
    Plan,
    SidePlan,
    StagePlan,
)
from spark_jobs.beam_runner.planning.refusals import keeps_state, refuse_unsupported
from spark_jobs.beam_runner.planning.script import Script, read_script
from spark_jobs.beam_runner.planning.state_format import state_format, stored_format

_log = logging.getLogger(__name__)

_READ, _WRITE = bundle_processor.DATA_INPUT_URN, bundle_processor.DATA_OUTPUT_URN
_MERGE = common_urns.combine_components.COMBINE_PER_KEY_MERGE_ACCUMULATORS.urn
_RAISES_LEVEL = frozenset([GROUP, KEYED, SHUFFLE])


def make_plan(proto: Any, options: PipelineOptions, *, is_drain: bool = False) -> Plan:
    """Raises UnsupportedPipelineError, with every gap by name, before anything runs."""
    refuse_unsupported(proto)
    publishers = {
        t.unique_name: t.spec.payload for t in proto.components.transforms.values() if t.spec.urn == PUBLISH_URN
    }
    scripts = [t for t in proto.components.transforms.values() if t.spec.urn == phases.TEST_STREAM_URN]
    streaming = bool(options.view_as(StandardOptions).streaming)
    if not streaming and (sources := _unbounded_sources(proto.components)):
        _log.warning(
            "Without --streaming, a batch reads the unbounded source%s %s: it ends when they do, if ever.",
            "s" * (len(sources) > 1),
            ", ".join(sources),
        )
    context, stages = phases.optimise(proto, streaming=streaming, is_drain=is_drain)
    return _Translation(context, stages, options, publishers).plan(scripts[0] if scripts else None)


def _unbounded_sources(components: Any) -> list[str]:
    """Leaves that make an unbounded collection out of bounded ones. A script has an end."""
    return sorted(
        leaf.unique_name
        for leaf in components.transforms.values()
        if not leaf.subtransforms
        and leaf.spec.urn != phases.TEST_STREAM_URN
        and any(phases.is_unbounded(components, pcoll) for pcoll in leaf.outputs.values())
        and not any(phases.is_unbounded(components, pcoll) for pcoll in leaf.inputs.values())
    )


class _Translation:
    """One pass over the optimised stages; a class because each stage looks at what the others read and write."""

    def __init__(
        self, context: TransformContext, stages: list[Stage], options: PipelineOptions, publishers: dict[str, bytes]
    ) -> None:
        self.context, self.components, self.stages = context, context.components, stages
        self.options, self.publishers = options, publishers
        self.ids: dict[int, str] = {}
        for index, stage in enumerate(stages):
            name = self._stage_name(stage)
            self.ids[index] = name if name not in self.ids.values() else f"{name}#{index}"
        self.writers: dict[bytes, list[int]] = defaultdict(list)
        self.readers: dict[bytes, list[tuple[int, int, str]]] = defaultdict(list)  # buffer -> (stage, input, kind)
        self.side_readers: set[bytes] = set()
        self.producer_label: dict[str, str] = {}
        for index, stage in enumerate(stages):
            inputs = 0
            for transform in stage.transforms:
                for tag, pcoll in transform.outputs.items():
                    if transform.spec.payload != translations.create_buffer_id(pcoll):  # else it reads it again
                        self.producer_label[pcoll] = f"{transform.unique_name}.{tag}"
                if transform.spec.urn == _WRITE:
                    self.writers[transform.spec.payload].append(index)
                elif transform.spec.urn == _READ:
                    self.readers[transform.spec.payload].append((index, inputs, self._input_kind(stage, transform)))
                    inputs += 1
                for pcoll in translations.side_inputs(transform).values():
                    self.side_readers.add(translations.create_buffer_id(pcoll))

    def plan(self, test_stream: Any | None) -> Plan:
        planned: list[StagePlan] = []
        levels: dict[str, int] = {}
        for index in self._producers_first():
            plan = self._stage_plan(index, self.stages[index], levels)
            levels[plan.id] = plan.level
            planned.append(plan)
        options = {k: v for k, v in self.options.get_all_options().items() if _is_plain(v)}
        components = self.components.SerializeToString(deterministic=True)
        return Plan(
            tuple(planned),
            components,
            options,
            self.publishers,
            row_types(components),
            main_classes(),
            None if test_stream is None else self._script(test_stream),
        )

    def _producers_first(self) -> Iterable[int]:
        """Beam's own order takes whatever reads a collection from its buffer for the producer of a side input."""
        buffers = [
            [t.spec.payload for t in stage.transforms if t.spec.urn == _READ]
            + [translations.create_buffer_id(p) for t in stage.transforms for p in translations.side_inputs(t).values()]
            for stage in self.stages
        ]
        needs = {index: [w for buffer in read for w in self.writers[buffer]] for index, read in enumerate(buffers)}
        return graphlib.TopologicalSorter(needs).static_order()

    def _script(self, test_stream: Any) -> Script:
        payload = beam_runner_api_pb2.TestStreamPayload.FromString(test_stream.spec.payload)
        coders = PipelineContext(self.components).coders
        inputs = {
            tag: (f"{test_stream.unique_name}/{tag}", coders[self.context.data_channel_coders[f"{pcoll}_played"]])
            for tag, pcoll in sorted(test_stream.outputs.items())
        }
        return read_script(payload, inputs, coders[payload.coder_id])

    # ---- names and kinds
    def _stage_name(self, stage: Stage) -> str:
        """The label that the stage's state and metrics hang on: of its keyed step, else of its first step."""
        for transform in stage.transforms:
            if transform.spec.urn == _READ and transform.spec.payload != translations.IMPULSE_BUFFER:
                kind, name = translations.split_buffer_id(transform.spec.payload)
                if kind == "group":
                    return str(self.components.transforms[name].unique_name)
        for transform in stage.transforms:
            if keeps_state(transform):
                return str(transform.unique_name)
        read = {pcoll for t in stage.transforms if t.spec.urn == _READ for pcoll in t.outputs.values()}
        steps = [t for t in stage.transforms if t.spec.urn != _WRITE]  # writes are numbered, and numbers change
        first = [t.unique_name for t in steps if read & set(t.inputs.values())]
        return str(min(first or [t.unique_name for t in steps]))

    def _input_kind(self, stage: Stage, transform: Any) -> str:
        if transform.spec.payload == translations.IMPULSE_BUFFER:
            if stage.is_stateful():
                raise UnsupportedPipelineError([f"{self._stage_name(stage)}: state directly on an Impulse"])
            return IMPULSE
        kind, _ = translations.split_buffer_id(transform.spec.payload)
        if kind == phases.SCRIPT_BUFFER:
            return SCRIPT
        if kind == "group":
            return GROUP
        if stage.is_stateful():
            return KEYED
        return SHUFFLE if kind == phases.RESHUFFLE_BUFFER else FORWARD

    # ---- one stage
    def _stage_plan(self, index: int, stage: Stage, levels: dict[str, int]) -> StagePlan:
        inputs: list[InputPlan] = []
        sides: list[SidePlan] = []
        transforms: dict[str, Any] = {}
        sources: list[str] = []
        publishes: list[str] = []
        specs: list[InputSpec] = []
        least_level = [0]
        combining = self._combining(stage)
        for transform in stage.transforms:
            if transform in combining.values():
                continue  # its output does it
            copied = beam_runner_api_pb2.PTransform()
            copied.CopyFrom(transform)
            if transform.spec.urn == _READ:
                plan, spec = self._input(stage, transform)
                inputs.append(plan)
                least_level += [levels[p] + (plan.kind in _RAISES_LEVEL) for p in plan.producers]
                specs.append(spec)
                copied.spec.urn, copied.spec.payload = INPUT_URN, pickle.dumps(spec)
            elif transform.spec.urn == _WRITE:
                output = self._output(transform)
                publishes += output.labels(PUBLISH)
                if (step := combining.get(translations.only_element(transform.inputs.values()))) is not None:
                    output = replace(output, combine_fn=step.spec.payload)
                    copied.CopyFrom(step)
                    copied.outputs.clear()
                copied.spec.urn, copied.spec.payload = OUTPUT_URN, pickle.dumps(output)
            elif transform.spec.urn == common_urns.primitives.ASSIGN_WINDOWS.urn:
                if assign_windows.is_numeric(transform.spec.payload):
                    copied.spec.urn = assign_windows.ASSIGN_URN
            elif transform.spec.urn in translations.PAR_DO_URNS:
                if transform.spec.urn == common_urns.sdf_components.PROCESS_SIZED_ELEMENTS_AND_RESTRICTIONS.urn:
                    sources.append(transform.unique_name)
                for side in self._sides(transform):
                    sides.append(side)
                    least_level += [levels[p] + 1 for p in side.producers]
            transforms[copied.unique_name] = copied
        components = self.components
        descriptor = beam_fn_api_pb2.ProcessBundleDescriptor(
            id=uuid.uuid5(uuid.NAMESPACE_OID, self.ids[index]).hex,
            transforms=transforms,
            pcollections=dict(components.pcollections.items()),
            coders=dict(components.coders.items()),
            windowing_strategies=dict(components.windowing_strategies.items()),
            environments=dict(components.environments.items()),
        )
        return StagePlan(
            id=self.ids[index],
            level=max(least_level),
            transforms=tuple(transforms),
            inputs=tuple(inputs),
            sides=tuple(sides),
            descriptor=descriptor.SerializeToString(deterministic=True),
            state_format=self._state_format(stage, specs[0], sides),
            sources=tuple(sources),
            publishes=tuple(publishes),
        )

    def _input(self, stage: Stage, transform: Any) -> tuple[InputPlan, InputSpec]:
        pcoll = translations.only_element(transform.outputs.values())
        kind = self._input_kind(stage, transform)
        producers = tuple(sorted({self.ids[w] for w in self.writers.get(transform.spec.payload, ())}))
        windowing = self.components.pcollections[pcoll].windowing_strategy_id
        grouped_coder, layout = None, grouped.WINDOWED
        if kind == GROUP:
            source = self._grouped_collection(transform.spec.payload)
            grouped_coder = self.context.data_channel_coders[source]
            windowing = self.components.pcollections[source].windowing_strategy_id
            layout = self._layout(source)
        spec = InputSpec(kind, self.context.data_channel_coders[pcoll], windowing, grouped_coder, layout)
        return InputPlan(transform.unique_name, kind, producers), spec

    def _grouped_collection(self, buffer: bytes) -> str:
        _, name = translations.split_buffer_id(buffer)
        return str(translations.only_element(self.components.transforms[name].inputs.values()))

    def _layout(self, pcoll: str) -> grouped.Layout:
        windowing = phases.windowing_of(self.components, pcoll)
        return grouped.fast_path(windowing, self.components) or grouped.WINDOWED

    def _output(self, transform: Any) -> OutputSpec:
        pcoll = translations.only_element(transform.inputs.values())
        buffer = transform.spec.payload
        layout = grouped.WINDOWED
        if any(kind == GROUP for _, _, kind in self.readers.get(buffer, ())):
            layout = self._layout(self._grouped_collection(buffer))
        targets = [
            Target(kind, edge=(self.ids[stage], i), layout=layout) for stage, i, kind in self.readers.get(buffer, ())
        ]
        if buffer in self.side_readers:
            targets.append(Target(SIDE, label=self.producer_label.get(pcoll, pcoll)))
        kind, name = translations.split_buffer_id(buffer)
        if kind == phases.PUBLISH_BUFFER:
            targets.append(Target(PUBLISH, label=name))
        return OutputSpec(self.context.data_channel_coders[pcoll], tuple(targets))

    def _combining(self, stage: Stage) -> dict[str, Any]:
        """Output -> the lifted part of a CombinePerKey, where what groups it can do it by the way."""
        steps = {}
        for transform in stage.transforms:
            if transform.spec.urn == common_urns.combine_components.COMBINE_PER_KEY_PRECOMBINE.urn:
                output = translations.only_element(transform.outputs.values())
                if self._layout(output) == grouped.Layout(by_window=True):
                    steps[output] = transform
        return steps

    def _sides(self, transform: Any) -> list[SidePlan]:
        payload = proto_utils.parse_Bytes(transform.spec.payload, beam_runner_api_pb2.ParDoPayload)
        plans = []
        main = next(pcoll for tag, pcoll in transform.inputs.items() if tag not in payload.side_inputs)
        for tag, side in sorted(payload.side_inputs.items()):
            pcoll = transform.inputs[tag]
            writers = self.writers.get(translations.create_buffer_id(pcoll), [])
            unbounded = phases.is_unbounded(self.components, pcoll)
            trigger = phases.windowing_of(self.components, pcoll).trigger.WhichOneof("trigger")
            plans.append(
                SidePlan(
                    transform=transform.unique_name,
                    tag=tag,
                    label=self.producer_label.get(pcoll, pcoll),
                    spec=side.SerializeToString(deterministic=True),
                    view=_view(side, PipelineContext(self.components), unbounded=unbounded),
                    coder=self.context.safe_coders[self.context.data_channel_coders[pcoll]],
                    producers=tuple(sorted({self.ids[w] for w in writers})),
                    unbounded=unbounded,
                    waits=unbounded and transform.spec.urn in phases.WAITS_FOR_SIDES,
                    triggered=unbounded and trigger != "default",
                    lateness_us=1000 * phases.windowing_of(self.components, main).allowed_lateness,
                    format=stored_format(
                        self.components,
                        self.context.data_channel_coders[pcoll],
                        self.components.pcollections[pcoll].windowing_strategy_id,
                    ),
                )
            )
        return plans

    # ---- what is left in a checkpoint depends on
    def _state_format(self, stage: Stage, spec: InputSpec, sides: list[SidePlan]) -> str:
        dofns = [
            proto_utils.parse_Bytes(transform.spec.payload, beam_runner_api_pb2.ParDoPayload)
            for transform in stage.transforms
            if transform.spec.urn in translations.PAR_DO_URNS
        ]
        merges = (t.spec.payload for t in stage.transforms if t.spec.urn == _MERGE)
        combines = [beam_runner_api_pb2.CombinePayload.FromString(payload).combine_fn for payload in merges]
        return state_format(
            self.components,
            spec.kind,
            spec.grouped_coder or spec.coder,
            spec.windowing,
            is_triggered=spec.kind == GROUP,
            combine=combines[0] if combines else None,
            cells=[cell for dofn in dofns for cell in dofn.state_specs.items()],
            timers=[timer for dofn in dofns for timer in dofn.timer_family_specs.items()],
            reads={(side.transform, side.label): (side.view, side.lateness_us) for side in sides},
        )


def _view(side: Any, context: PipelineContext, *, unbounded: bool) -> str:
    view_fn = SideInputData.from_runner_api(side, context).view_fn
    if view_fn is dict:
        return LAST_OF_KEY
    return LATEST_PANE if unbounded and is_singleton(view_fn) else ALL_PANES


def _is_plain(value: object) -> bool:
    """Options go to the workers; runner objects and open handles do not."""
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True
