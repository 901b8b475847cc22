"""What a pipeline asks for that the runner does not have. All gaps are found at once, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from apache_beam.portability.api import beam_runner_api_pb2

from spark_jobs.beam_runner.beam_internals import (
    PipelineContext,
    common_urns,
    operation_urns,
    proto_utils,
    translations,
)
from spark_jobs.beam_runner.errors import UnsupportedPipelineError
from spark_jobs.beam_runner.planning import phases
from spark_jobs.beam_runner.planning.state_format import coder_words, window_words


def refuse_unsupported(proto: Any) -> None:
    """`proto`: beam_runner_api_pb2.Pipeline. Raises UnsupportedPipelineError with every gap by its step's name."""
    gaps = [
        *_scripts(proto.components),
        *_states_that_merge(proto.components),
        *_mixed_windows(proto.components),
        *_unknown_transforms(proto),
    ]
    if gaps:
        raise UnsupportedPipelineError(gaps)


def keeps_state(transform: Any) -> bool:
    """Whether it is a ParDo with state or timers of its own."""
    if transform.spec.urn not in translations.PAR_DO_URNS:
        return False
    payload = proto_utils.parse_Bytes(transform.spec.payload, beam_runner_api_pb2.ParDoPayload)
    return bool(payload.state_specs or payload.timer_family_specs)


def _scripts(components: Any) -> Iterator[str]:
    scripts = [t for t in components.transforms.values() if t.spec.urn == phases.TEST_STREAM_URN]
    for script in scripts:
        if beam_runner_api_pb2.TestStreamPayload.FromString(script.spec.payload).endpoint.url:
            yield f"{script.unique_name}: a TestStream whose events come from a service"
    if len(scripts) > 1:
        yield f"{', '.join(sorted(s.unique_name for s in scripts))}: more than one TestStream"


def _states_that_merge(components: Any) -> Iterator[str]:
    for transform in components.transforms.values():
        if keeps_state(transform) and any(
            phases.windowing_of(components, pcoll).merge_status == beam_runner_api_pb2.MergeStatus.NEEDS_MERGE
            for pcoll in transform.inputs.values()
        ):
            yield f"{transform.unique_name}: state or timers in windows that merge"


def _mixed_windows(components: Any) -> Iterator[str]:
    """The elements of such a Flatten would be written with one kind's coder and read with another's.

    Beam gives the output the windowing of the first input, and only warns.
    """
    context = PipelineContext(components)
    makers = {
        pcoll: transform.unique_name
        for transform in components.transforms.values()
        if not transform.subtransforms
        for pcoll in transform.outputs.values()
    }
    for transform in components.transforms.values():
        if transform.spec.urn != common_urns.primitives.FLATTEN.urn:
            continue
        of_kind: dict[str, str] = {}  # kind of window -> a step whose output is in such windows
        for pcoll in transform.inputs.values():
            windowing = phases.windowing_of(components, pcoll)
            kind = coder_words(components, context, windowing.window_coder_id)
            of_kind.setdefault(kind, f"of '{makers[pcoll]}' in {window_words(windowing.window_fn, context)}")
        if len(of_kind) > 1:
            yield (
                f"{transform.unique_name}: a Flatten of collections in different kinds of windows, "
                f"{' and '.join(sorted(of_kind.values()))}; WindowInto brings them into the same"
            )


def _unknown_transforms(proto: Any) -> Iterator[str]:
    composites = phases.KNOWN_URNS | translations.KNOWN_COMPOSITES
    known = composites | operation_urns() | {common_urns.primitives.IMPULSE.urn}
    stages = translations.leaf_transform_stages(proto.root_transform_ids, proto.components, known_composites=composites)
    for leaf in (stage.transforms[0] for stage in stages):
        if leaf.spec.urn not in known:
            yield f"{leaf.unique_name}: a transform of the unknown kind {leaf.spec.urn or '(none)'}"
