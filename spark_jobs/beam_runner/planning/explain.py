"""A plan as people and programs read it: text, JSON, a mermaid diagram; and beside it, what an upgrade means."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from typing import Any

from apache_beam.portability.api import beam_fn_api_pb2

from spark_jobs.beam_runner.bundles.operations import INPUT_URN, OUTPUT_URN
from spark_jobs.beam_runner.planning.plan import FORWARD, GROUP, KEYED, SHUFFLE, Plan, StagePlan
from spark_jobs.beam_runner.planning.state_format import state_words
from spark_jobs.beam_runner.planning.upgrade import Change, refused

_ARROWS = {FORWARD: "-->", SHUFFLE: "-->|shuffle|", GROUP: "==>|group by key|", KEYED: "==>|by key|"}


def to_text(plan: Plan) -> str:
    """By level; under each stage the steps that it runs beside the first, what it reads, keeps and publishes."""
    lines: list[str] = []
    for level in range(plan.levels):
        lines.append(f"level {level}")
        for stage in _of_level(plan, level):
            lines.append(f"  {stage.id}")
            lines += [f"    {line}" for line in _facts(stage)]
    return "\n".join(lines)


def _facts(stage: StagePlan) -> list[str]:
    others = other_steps(stage)
    lines = [f"runs {', '.join(others)}"] if others else []
    lines += [f"{i.kind} <- {', '.join(i.producers)}" if i.producers else i.kind for i in stage.inputs]
    lines += [f"side input <- {side.label}, for {side.transform}" for side in stage.sides]
    lines += [f"source {label}" for label in stage.sources]
    if stage.keeps_state:
        words = state_words(stage.state_format)
        lines += ["keeps state, which depends on", *(f"  {name}: {value}" for name, value in words.items())]
    return lines + [f"publishes {label}" for label in stage.publishes]


def other_steps(stage: StagePlan) -> list[str]:
    """Those that are fused with the one that the stage is named after."""
    transforms = beam_fn_api_pb2.ProcessBundleDescriptor.FromString(stage.descriptor).transforms
    return sorted(
        name for name, t in transforms.items() if t.spec.urn not in (INPUT_URN, OUTPUT_URN) and name != stage.id
    )


def to_document(plan: Plan) -> dict[str, Any]:
    """What `to_json` writes, as values."""
    return {
        "levels": plan.levels,
        "stages": [
            {
                "id": stage.id,
                "level": stage.level,
                "transforms": sorted(stage.transforms),
                "inputs": [{"kind": i.kind, "from": list(i.producers)} for i in stage.inputs],
                "side_inputs": [{"of": s.transform, "label": s.label, "from": list(s.producers)} for s in stage.sides],
                "sources": list(stage.sources),
                "state": state_words(stage.state_format) if stage.keeps_state else None,
                "publishes": list(stage.publishes),
            }
            for stage in _in_order(plan)
        ],
        "publishers": sorted(plan.publishers),
    }


def to_json(plan: Plan) -> str:
    """One object."""
    return json.dumps(to_document(plan), indent=2)


def to_mermaid(plan: Plan) -> str:
    """A flowchart: a box per level, cylinders keep state, dotted edges are side inputs."""
    nodes = {stage.id: f"s{number}" for number, stage in enumerate(_in_order(plan))}
    sinks = {label: f"p{number}" for number, label in enumerate(sorted(plan.publishers))}
    lines = ["flowchart TD"]
    for level in range(plan.levels):
        lines.append(f'  subgraph level{level}["level {level}"]')
        for stage in _of_level(plan, level):
            name = _quoted(stage.id)
            lines.append(f"    {nodes[stage.id]}" + (f"[({name})]" if stage.keeps_state else f"[{name}]"))
        lines.append("  end")
    lines += [f"  {node}[/{_quoted(label)}/]" for label, node in sinks.items()]
    for stage in _in_order(plan):
        here = nodes[stage.id]
        lines += [f"  {nodes[p]} {_ARROWS[i.kind]} {here}" for i in stage.inputs for p in i.producers]
        lines += [f"  {nodes[p]} -.->|side input| {here}" for side in stage.sides for p in side.producers]
        lines += [f"  {here} --> {sinks[label]}" for label in stage.publishes]
    return "\n".join(lines)


def _in_order(plan: Plan) -> list[StagePlan]:
    """By level, producers first, then by name: the plan's own order changes with Python's hash seed."""
    levels = {stage.id: stage.level for stage in plan.stages}
    depth: dict[str, int] = {}
    for stage in plan.stages:
        above = [depth[p] for p in stage.producers if levels[p] == stage.level]
        depth[stage.id] = 1 + max(above, default=0)
    return sorted(plan.stages, key=lambda stage: (stage.level, depth[stage.id], stage.id))


def _of_level(plan: Plan, level: int) -> list[StagePlan]:
    return [stage for stage in _in_order(plan) if stage.level == level]


def _quoted(label: str) -> str:
    return '"' + label.replace('"', "#quot;") + '"'


FORMS: Mapping[str, Callable[[Plan], str]] = {"text": to_text, "json": to_json, "mermaid": to_mermaid}


def with_changes(
    plan: Plan, changes: Collection[Change], form: str, accepted: Collection[str] = (), note: str = ""
) -> str:
    """The plan and, for each step, what a start on a checkpoint means: in `text` below, in `mermaid` as comments.

    `note`: a line that `text` has before the steps.
    """
    if form == "json":
        problems = refused(changes, accepted)
        document = {**to_document(plan), "changes": [asdict(c) for c in changes], "refused": bool(problems)}
        return json.dumps(document, indent=2)
    if form == "mermaid":
        return "\n".join([to_mermaid(plan), *(f"%% {line}" for line in change_lines(changes))])
    lines = [*([note] if note else []), *change_lines(changes)]
    return "\n".join([to_text(plan), "", "on this checkpoint", *(f"  {line}" for line in lines)])


def change_lines(changes: Collection[Change]) -> list[str]:
    """One line a step."""
    return [f"{c.kind:<13} {c.step}" + (f": {c.why}" if c.why else "") for c in changes]
