"""A changed pipeline on the checkpoint of an old one: what each step finds there, and what a start makes of it.

Pure functions of a manifest and a plan: `plan` shows what the start does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from spark_jobs.beam_runner.checkpoint.manifest import Manifest
from spark_jobs.beam_runner.errors import CheckpointError
from spark_jobs.beam_runner.planning.plan import Plan
from spark_jobs.beam_runner.planning.state_format import differences

UNCHANGED, NEW, GONE, INCOMPATIBLE = "unchanged", "new", "gone", "incompatible"


@dataclass(frozen=True)
class Change:
    """What a start means for one step. An `incompatible` one refuses the start.

    `loss`: what a start that accepts it drops ("" if it cannot be accepted).
    """

    step: str
    kind: str
    why: str
    loss: str = ""


def compare(manifest: Manifest, plan: Plan) -> list[Change]:
    """-> a change for each step of the plan, by level and name, then for what only the manifest knows, by name."""
    return [*_of_plan(manifest, plan), *_of_manifest(manifest, plan)]


def refused(changes: Collection[Change], accepted: Collection[str] = ()) -> list[Change]:
    """The changes for which a start is refused. `accepted`: steps whose loss the user accepts."""
    return [c for c in changes if c.kind == INCOMPATIBLE and not (c.loss and c.step in accepted)]


def carry_over(manifest: Manifest, plan: Plan, where: str, accepted: Collection[str] = ()) -> Manifest:
    """The manifest as the plan goes on from it: what steps that are gone have left is out.

    Raises CheckpointError, with all steps and reasons, if the start is refused.
    """
    changes = compare(manifest, plan)
    if problems := refused(changes, accepted):
        raise _refusal(manifest, plan, problems, where)
    lost = {c.step for c in changes if c.kind == INCOMPATIBLE}
    steps = {stage.id for stage in plan.stages}
    transforms = {transform for stage in plan.stages for transform in stage.transforms}
    sides = {side.label for stage in plan.stages for side in stage.sides}
    return replace(
        manifest,
        fingerprint={s: f for s, f in manifest.fingerprint.items() if s in steps and s not in lost},
        groups={s: metas for s, metas in manifest.groups.items() if s in steps and s not in lost},
        input_us={s: at for s, at in manifest.input_us.items() if s in steps},
        output_us={s: at for s, at in manifest.output_us.items() if s in steps},  # or the job would never be done
        residuals=tuple(r for r in manifest.residuals if r.transform in transforms),
        sides={label: parts for label, parts in manifest.sides.items() if label in sides},
        waiting=tuple(w for w in manifest.waiting if w.stage in steps),
        staged={label: items for label, items in manifest.staged.items() if label in plan.publishers},
    )


def _of_plan(manifest: Manifest, plan: Plan) -> Iterator[Change]:
    for stage in sorted(plan.stages, key=lambda stage: (stage.level, stage.id)):
        groups = len(manifest.groups.get(stage.id, ()))
        if stage.id not in manifest.output_us:
            if stage.from_impulse:
                yield Change(stage.id, INCOMPATIBLE, "a new source would never run: sources start in the first epoch")
            else:
                yield Change(stage.id, NEW, "starts with nothing, at what comes from now on")
        elif not groups:
            yield Change(stage.id, UNCHANGED, "")
        elif reasons := list(differences(manifest.fingerprint.get(stage.id, ""), stage.state_format)):
            yield Change(stage.id, INCOMPATIBLE, "; ".join(reasons), f"state of {groups} key groups")
        else:
            yield Change(stage.id, UNCHANGED, f"finds state of {groups} key groups")


def _of_manifest(manifest: Manifest, plan: Plan) -> Iterator[Change]:
    steps = {stage.id for stage in plan.stages}
    for step in sorted(manifest.output_us.keys() - steps):
        if groups := len(manifest.groups.get(step, ())):
            yield Change(step, INCOMPATIBLE, "the step is gone and has state", f"state of {groups} key groups")
        else:
            yield Change(step, GONE, "had no state")
    known = {transform for stage in plan.stages for transform in stage.transforms}
    for transform, parts in sorted(Counter(r.transform for r in manifest.residuals).items()):
        if transform not in known:
            yield Change(transform, INCOMPATIBLE, "the source is gone and not read to its end", f"{parts} open parts")
    for step, files in sorted(Counter(w.stage for w in manifest.waiting).items()):
        if step not in steps:
            why = "the step is gone and elements wait in it for a side input"
            yield Change(step, INCOMPATIBLE, why, f"{files} files of elements")
    # What the last epoch staged may not be published yet: without its sink it would be lost.
    for label, items in sorted(manifest.staged.items()):
        if items and label not in plan.publishers:
            why = f"the sink is gone and epoch {manifest.epoch} may not be published"
            yield Change(label, INCOMPATIBLE, why, f"{len(items)} staged descriptors")


def _refusal(manifest: Manifest, plan: Plan, problems: list[Change], where: str) -> CheckpointError:
    if not manifest.output_us.keys() & {stage.id for stage in plan.stages}:
        steps = ", ".join(sorted({c.step for c in problems} & manifest.output_us.keys()) or sorted(manifest.output_us))
        message = f"{where} is the checkpoint of another pipeline: none of its steps is in this one, such as {steps}"
    else:
        message = f"{where} does not fit this pipeline"
    reasons = "; ".join(f"{c.step}: {c.why}" + (f" ({c.loss})" if c.loss else "") for c in problems)
    hint = "run the old pipeline, or start this one on a new --checkpoint"
    if all(c.loss for c in problems):
        hint += ", or drop it: " + " ".join(f"--drop_incompatible='{c.step}'" for c in problems)
    return CheckpointError(f"{message}. {reasons}.", hint=hint)
