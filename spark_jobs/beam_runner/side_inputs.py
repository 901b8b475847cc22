"""Side inputs: encoded elements -> what Beam's state API answers for each access pattern and window."""

from __future__ import annotations

import struct
from typing import Any

from apache_beam.portability.api import beam_fn_api_pb2, beam_runner_api_pb2

from spark_jobs.beam_runner.beam_internals import PipelineContext, WindowGroupingBuffer, common_urns
from spark_jobs.beam_runner.plan import StagePlan

_COUNT = struct.Struct(">i")


def state_of_sides(stage: StagePlan, context: PipelineContext, chunks: dict[str, list[bytes]]) -> dict[bytes, bytes]:
    """-> serialised StateKey -> encoded values, for all side inputs of a stage. `chunks` by the sides' labels."""
    answers: dict[bytes, list[bytes]] = {}

    def add(value: bytes, **key: Any) -> None:
        state_key = beam_fn_api_pb2.StateKey(**key).SerializeToString(deterministic=True)
        answers.setdefault(state_key, []).append(value)

    keys = beam_fn_api_pb2.StateKey
    for side in stage.sides:
        access = beam_runner_api_pb2.FunctionSpec.FromString(side.access_pattern)
        buffer = WindowGroupingBuffer(access, context.coders[side.coder])
        for chunk in chunks.get(side.label, ()):
            buffer.append(chunk)
        for key, window, values, count in buffer.encoded_items():
            where = {"transform_id": side.transform, "side_input_id": side.tag, "window": window}
            if access.urn == common_urns.side_inputs.ITERABLE.urn:
                add(values, iterable_side_input=keys.IterableSideInput(**where))
            else:
                add(values, multimap_side_input=keys.MultimapSideInput(key=key, **where))
                add(key, multimap_keys_side_input=keys.MultimapKeysSideInput(**where))
                add(
                    key + _COUNT.pack(count) + values,
                    multimap_keys_values_side_input=keys.MultimapKeysValuesSideInput(**where),
                )
    return {key: b"".join(values) for key, values in answers.items()}
