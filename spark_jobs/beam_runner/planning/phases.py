"""Optimises a pipeline into stages: Beam's phases, and the runner's own for what Beam's do not cover.

Each maps stages to stages, as Beam's do.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from apache_beam.portability.api import beam_runner_api_pb2

from common.publish import PUBLISH_URN
from spark_jobs.beam_runner.beam_internals import Stage, TransformContext, bundle_processor, common_urns, translations

RESHUFFLE_URN = common_urns.composites.RESHUFFLE.urn
TEST_STREAM_URN = common_urns.primitives.TEST_STREAM.urn
RESHUFFLE_BUFFER, PUBLISH_BUFFER, SCRIPT_BUFFER = "reshuffle", "publish", "script"
# Transforms that the phases below take whole, or Beam's own do.
KNOWN_URNS = frozenset(
    [
        common_urns.primitives.FLATTEN.urn,
        common_urns.primitives.GROUP_BY_KEY.urn,
        RESHUFFLE_URN,
        TEST_STREAM_URN,
        PUBLISH_URN,
    ]
)
# Where an element meets a ParDo's side inputs first.
WAITS_FOR_SIDES = frozenset([common_urns.primitives.PAR_DO.urn, common_urns.sdf_components.PAIR_WITH_RESTRICTION.urn])


def optimise(proto: Any, *, streaming: bool, is_drain: bool) -> tuple[TransformContext, list[Stage]]:
    """Beam's phases in the order of its in-memory runner, with ours in between.

    A stream keeps each combiner as a step of its own, as Beam's other runners have it: packed ones would share their
    state under a name that changes with each of them.
    """
    t = translations
    context, stages = t.create_and_optimize_stages(
        copy.deepcopy(proto),
        phases=[
            t.annotate_downstream_side_inputs,
            t.annotate_stateful_dofns_as_roots,
            t.fix_side_input_pcoll_coders,
            *([] if streaming else [t.pack_combiners]),
            lift_combiners,
            t.expand_sdf,
            begin_stages_that_wait,
            expand_reshuffle,
            expand_publish,
            expand_test_stream,
            t.expand_gbk,
            t.sink_flattens,
            t.greedily_fuse,
            t.read_to_impulse,
            t.impulse_to_input,
            t.sort_stages,
            t.add_impulse_to_dangling_transforms,
            t.setup_timer_mapping,
            t.populate_data_channel_coders,
        ],
        known_runner_urns=KNOWN_URNS,
        use_state_iterables=False,
        is_drain=is_drain,
    )
    return context, stages


def _io_stage(name: str, urn: str, payload: bytes, follows: Iterable[Stage], like: Stage, **pcolls: Any) -> Stage:
    transform = beam_runner_api_pb2.PTransform(
        unique_name=name, spec=beam_runner_api_pb2.FunctionSpec(urn=urn, payload=payload), **pcolls
    )
    return Stage(
        name, [transform], like.downstream_side_inputs, translations.union(like.must_follow, frozenset(follows))
    )


def _write_stage(name: str, buffer: bytes, source: str, like: Stage) -> Stage:
    write = _io_stage(name, bundle_processor.DATA_OUTPUT_URN, buffer, (), like, inputs={"in": source})
    write.downstream_side_inputs = frozenset()
    return write


def _write_and_read(name: str, buffer: bytes, source: str, output: str, like: Stage) -> Iterator[Stage]:
    """Two stages with a buffer between them, where fusion stops."""
    write = _write_stage(name + "/Write", buffer, source, like)
    yield write
    yield _io_stage(name + "/Read", bundle_processor.DATA_INPUT_URN, buffer, (write,), like, outputs={"out": output})


def expand_reshuffle(stages: Iterable[Stage], context: TransformContext) -> Iterator[Stage]:
    """RESHUFFLE -> a write and a read of one buffer: fusion stops there and elements are spread over the tasks."""
    pcollections = context.components.pcollections
    for stage in stages:
        transform = stage.transforms[0]
        if transform.spec.urn != RESHUFFLE_URN:
            yield stage
            continue
        output = translations.only_element(transform.outputs.values())
        candidates = list(transform.inputs.values())
        if len(candidates) > 1:  # Beam's expand_sdf copies the side inputs to the reshuffle that it makes
            candidates = [c for c in candidates if pcollections[c].coder_id == pcollections[output].coder_id][:1]
        (source,) = candidates
        # Types may be known on one side only, as of a reshuffle of "any" before a GroupByKey, which needs a KV coder.
        kept = output if _is_kv(output, context) and not _is_kv(source, context) else source
        context.length_prefix_pcoll_coders(kept)
        pcollections[output].coder_id = pcollections[source].coder_id = pcollections[kept].coder_id
        name = transform.unique_name
        buffer = translations.create_buffer_id(name, kind=RESHUFFLE_BUFFER)
        yield from _write_and_read(name, buffer, source, output, stage)


def _is_kv(pcoll: str, context: TransformContext) -> bool:
    coder = context.components.coders[context.components.pcollections[pcoll].coder_id]
    return bool(coder.spec.urn == common_urns.coders.KV.urn)


def expand_publish(stages: Iterable[Stage], _context: TransformContext) -> Iterator[Stage]:
    """The Publish composite -> a write whose elements go to the epoch's manifest instead of its default expansion."""
    for stage in stages:
        transform = stage.transforms[0]
        if transform.spec.urn != PUBLISH_URN:
            yield stage
            continue
        source = translations.only_element(transform.inputs.values())
        name = transform.unique_name
        buffer = translations.create_buffer_id(name, kind=PUBLISH_BUFFER)
        yield _write_stage(name, buffer, source, stage)


def begin_stages_that_wait(stages: Iterable[Stage], context: TransformContext) -> Iterator[Stage]:
    """A ParDo with an unbounded side input begins a stage, so that its elements can be made to wait by window."""
    for stage in stages:
        for transform in stage.transforms:
            if transform.spec.urn in WAITS_FOR_SIDES and any(
                is_unbounded(context.components, pcoll) for pcoll in translations.side_inputs(transform).values()
            ):
                stage.forced_root = True
        yield stage


def is_unbounded(components: Any, pcoll: str) -> bool:
    return bool(components.pcollections[pcoll].is_bounded == beam_runner_api_pb2.IsBounded.UNBOUNDED)


def windowing_of(components: Any, pcoll: str) -> Any:
    """beam_runner_api_pb2.WindowingStrategy of a collection."""
    return components.windowing_strategies[components.pcollections[pcoll].windowing_strategy_id]


def expand_test_stream(stages: Iterable[Stage], context: TransformContext) -> Iterator[Stage]:
    """TestStream -> for each output a stage that the driver feeds by the script, and a read of what it wrote.

    A stage of its own, so that keyed consumers get their elements as they do from any other stage.
    """
    pcollections = context.components.pcollections
    for stage in stages:
        transform = stage.transforms[0]
        if transform.spec.urn != TEST_STREAM_URN:
            yield stage
            continue
        for tag, output in sorted(transform.outputs.items()):
            context.length_prefix_pcoll_coders(output)
            name = f"{transform.unique_name}/{tag}"
            played = f"{output}_played"
            pcollections[played].CopyFrom(pcollections[output])
            pcollections[played].unique_name = played
            script = translations.create_buffer_id(name, kind=SCRIPT_BUFFER)
            yield _io_stage(name, bundle_processor.DATA_INPUT_URN, script, (), stage, outputs={"out": played})
            yield from _write_and_read(name, translations.create_buffer_id(name), played, output, stage)


def lift_combiners(stages: Iterable[Stage], context: TransformContext) -> Iterator[Stage]:
    """Beam's combiner lifting, only where it keeps timestamps; the grouping has the same name if it is not lifted.

    Its state hangs on the name: a trigger that can no more be lifted over would look like a step that is gone.
    """
    for stage in stages:
        combine = stage.transforms[0]
        if combine.spec.urn != common_urns.composites.COMBINE_PER_KEY.urn:
            yield stage
            continue
        for part in _parts(stage, context):
            transform = part.transforms[0]
            if transform.spec.urn == common_urns.primitives.GROUP_BY_KEY.urn:
                part.name = transform.unique_name = f"{combine.unique_name}/Group"  # as Beam has it if lifted
            yield part


def _parts(combine: Stage, context: TransformContext) -> list[Stage]:
    """Of a CombinePerKey, lifted only if the output timestamp is the end of the window.

    Precombining gives a bundle's elements one timestamp. Under the other timestamp combiners a late element would
    then drag an on-time one behind the watermark.
    """
    source = translations.only_element(list(combine.transforms[0].inputs.values()))
    windowing = windowing_of(context.components, source)
    if windowing.output_time == beam_runner_api_pb2.OutputTime.END_OF_WINDOW:
        return list(translations.lift_combiners([combine], context))
    # A trigger that counts elements is the one thing that Beam refuses to lift over: show it one, then put it back.
    trigger = beam_runner_api_pb2.Trigger()
    trigger.CopyFrom(windowing.trigger)
    windowing.trigger.CopyFrom(
        beam_runner_api_pb2.Trigger(element_count=beam_runner_api_pb2.Trigger.ElementCount(element_count=2))
    )
    parts = list(translations.lift_combiners([combine], context))
    windowing.trigger.CopyFrom(trigger)
    return parts
