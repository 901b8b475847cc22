"""A changed pipeline on the checkpoint of an old one: what each step finds there, and what a start makes of it.

Pure functions of a manifest and a plan: `plan` shows what the start does. Bytes are found again by the label of a step
or of a side input, and read only if both pipelines agree on what they depend on (state_format.py).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from spark_jobs.beam_runner.checkpoint.manifest import Manifest
from spark_jobs.beam_runner.checkpoint.overview import instant
from spark_jobs.beam_runner.clock import MAX_US, MIN_US
from spark_jobs.beam_runner.errors import CheckpointError
from spark_jobs.beam_runner.planning.plan import ALL_PANES, IMPULSE, Plan, SidePlan, StagePlan
from spark_jobs.beam_runner.planning.state_format import INPUT, differences, how_it_reads, kind_of, views

UNCHANGED, NEW, GONE, INCOMPATIBLE = "unchanged", "new", "gone", "incompatible"


@dataclass(frozen=True)
class Change:
    """What a start means for one step or side input. An `incompatible` one refuses the start.

    `loss`: what a start that accepts it drops ("" if it cannot be accepted).
    """

    step: str
    kind: str
    why: str
    loss: str = ""


def compare(manifest: Manifest, plan: Plan) -> list[Change]:
    """-> a change for each step of the plan, by level and name; for side inputs; for what only the manifest knows."""
    return [*_of_stages(manifest, plan), *_of_sides(manifest, plan), *_of_what_is_gone(manifest, plan)]


def refused(changes: Collection[Change], accepted: Collection[str] = ()) -> list[Change]:
    """The changes for which a start is refused. `accepted`: steps whose loss the user accepts."""
    return [c for c in changes if c.kind == INCOMPATIBLE and not (c.loss and c.step in accepted)]


def carry_over(manifest: Manifest, plan: Plan, where: str, accepted: Collection[str] = ()) -> Manifest:
    """The manifest as the plan goes on from it: without what steps that are gone have left, and what does not fit.

    Raises CheckpointError, with all steps and reasons, if the start is refused.
    """
    changes = compare(manifest, plan)
    if problems := refused(changes, accepted):
        raise _refusal(manifest, plan, problems, where)
    steps = {stage.id for stage in plan.stages}
    transforms = {transform for stage in plan.stages for transform in stage.transforms}
    lost = {stage.id: {part.kind for part in _left(manifest, stage) if part.reasons} for stage in plan.stages}
    sides = {side.label: side for stage in plan.stages for side in stage.sides}
    anew = {label for label, side in sides.items() if _begins_anew(manifest, side, lost)}
    partial = anew | {label for label, side in sides.items() if not _is_whole(manifest, side)}
    return replace(
        manifest,
        groups={s: metas for s, metas in manifest.groups.items() if s in steps and _STATE not in lost[s]},
        input_us={s: at for s, at in manifest.input_us.items() if s in steps},
        output_us={s: at for s, at in manifest.output_us.items() if s in steps},  # or the job would never be done
        residuals=tuple(r for r in manifest.residuals if r.transform in transforms),
        sides={label: parts for label, parts in manifest.sides.items() if label in sides and label not in anew},
        dropped_us={s: at for s, at in manifest.dropped_us.items() if s in sides} | dict.fromkeys(partial, MAX_US),
        thinned=tuple(label for label in manifest.thinned if label in sides),
        waiting=tuple(w for w in manifest.waiting if w.stage in steps and _WAITING not in lost[w.stage]),
        staged={label: items for label, items in manifest.staged.items() if label in plan.publishers},
    )


def fixed_key_groups(manifest: Manifest, asked: int | None) -> str:
    """What holds instead of the number of key groups that a start asks for; "" if it asks for none, or for these."""
    if asked in (None, manifest.key_groups):
        return ""
    return f"--key_groups={asked} changes nothing: it has {manifest.key_groups}, fixed at the first start"


# ---- steps
_STATE, _WAITING, _UNREAD = "state", "waiting", "unread"


@dataclass(frozen=True)
class _Left:
    """Bytes that a stage finds in the checkpoint. `reasons`: why it cannot read them."""

    kind: str
    what: str
    reasons: tuple[str, ...]


def _left(manifest: Manifest, stage: StagePlan) -> Iterator[_Left]:
    if groups := len(manifest.groups.get(stage.id, ())):
        gone = () if stage.keeps_state else ("it keeps no state any more",)
        yield _Left(_STATE, f"state of {groups} key groups", gone or _reasons(manifest, stage.id, stage.state_format))
    if files := sum(waiting.stage == stage.id for waiting in manifest.waiting):
        gone = () if stage.sides else ("it reads no side input any more",)
        yield _Left(_WAITING, _waiting(files), gone or _reasons(manifest, stage.id, stage.state_format, INPUT))
    if parts := sum(residual.transform in stage.sources for residual in manifest.residuals):
        yield _Left(_UNREAD, _unread(parts), _reasons(manifest, stage.id, stage.state_format, INPUT))


def _waiting(files: int) -> str:
    return f"{files} files of elements that wait for a side input"


def _unread(parts: int) -> str:
    return f"{parts} open parts"


def _reasons(manifest: Manifest, name: str, new: str, only: Collection[str] = ()) -> tuple[str, ...]:
    """Why bytes of a step or side input cannot be read; none if nothing was noted of it."""
    old = manifest.fingerprint.get(name, "")
    return tuple(differences(old, new, only)) if old else ()


def _of_stages(manifest: Manifest, plan: Plan) -> Iterator[Change]:
    for stage in sorted(plan.stages, key=lambda stage: (stage.level, stage.id)):
        left = list(_left(manifest, stage))
        unreadable = [part for part in left if part.reasons]
        if stage.id not in manifest.output_us and stage.from_impulse and (why := _why_no_new_source(manifest)):
            yield Change(stage.id, INCOMPATIBLE, why)
        elif stage.id not in manifest.output_us:
            yield Change(stage.id, NEW, "starts with nothing, at what comes from now on")
        elif unreadable:
            reasons = dict.fromkeys(reason for part in unreadable for reason in part.reasons)
            # Without what is left of its restrictions a source would be silent for ever.
            loss = "" if any(part.kind == _UNREAD for part in unreadable) else _and(part.what for part in unreadable)
            yield Change(stage.id, INCOMPATIBLE, "; ".join(reasons), loss)
        else:
            yield Change(stage.id, UNCHANGED, f"finds {_and(part.what for part in left)}" if left else "")


def _why_no_new_source(manifest: Manifest) -> str:
    """Empty if sources may be added: their first epoch is the first one after the start."""
    if manifest.done or manifest.draining:
        return "a new source would never run: the stream was drained, or has ended"
    return ""


# ---- side inputs
def _of_sides(manifest: Manifest, plan: Plan) -> Iterator[Change]:
    readers: dict[str, list[tuple[StagePlan, SidePlan]]] = defaultdict(list)
    for stage in plan.stages:
        for side in stage.sides:
            readers[side.label].append((stage, side))
    reached_us = _reached_us(manifest, plan)
    for label, reading in sorted(readers.items()):
        parts = len(manifest.sides.get(label, ()))
        unreadable = _reasons(manifest, label, reading[0][1].format) if parts else ()
        missing = [why for stage, side in reading if (why := _misses(manifest, stage, side, reached_us[stage.id]))]
        if unreadable or missing:
            loss = _and([f"{parts} parts"] * bool(unreadable) + ["what came before"] * bool(missing))
            yield Change(label, INCOMPATIBLE, "; ".join(dict.fromkeys([*unreadable, *missing])), loss)
        elif parts:
            yield Change(label, UNCHANGED, f"finds {parts} parts")


def _misses(manifest: Manifest, stage: StagePlan, side: SidePlan, reached_us: int) -> str:
    """Why a step would not find all that it may ask for; "" if it does, or did so before."""
    if not _has_begun(manifest, side):
        return ""
    formats = (manifest.fingerprint.get(stage.id, ""), stage.state_format)
    was, now = (how_it_reads(text, side.transform, side.label) for text in formats)
    if was == now:
        return ""
    if side.label not in manifest.fingerprint:
        return f"{side.transform} reads it, and nothing was kept of it before this start"
    # As the driver drops them: elements of an open restriction stay in their windows, however far its output is.
    is_open = any(residual.transform in stage.transforms for residual in manifest.residuals)
    asks_from_us = MIN_US if is_open else reached_us - side.lateness_us
    dropped_us = manifest.dropped_us.get(side.label)
    if dropped_us is None or dropped_us < asks_from_us:
        was_seen = views(manifest.fingerprint.values(), side.label)
        if side.label in manifest.thinned and not was_seen & {side.view, ALL_PANES}:
            return f"{side.transform} reads {side.view} of it, and no more than {_and(sorted(was_seen))} was kept"
        return ""
    if dropped_us >= MAX_US:
        return f"{side.transform} reads it, and not all of it was kept"
    return f"{side.transform} may look at windows that nobody needed and that were dropped, up to {instant(dropped_us)}"


def _reached_us(manifest: Manifest, plan: Plan) -> dict[str, int]:
    """The output watermark that each stage has, or begins with: no element that is not late is older."""
    reached: dict[str, int] = {}
    for stage in plan.stages:
        begins_us = min((reached[producer] for producer in stage.producers), default=MIN_US)
        reached[stage.id] = manifest.output_us.get(stage.id, begins_us)
    return reached


def _has_begun(manifest: Manifest, side: SidePlan) -> bool:
    return any(producer in manifest.output_us for producer in side.producers)


def _is_whole(manifest: Manifest, side: SidePlan) -> bool:
    """Whether all that was dropped of a side input was noted: since it began."""
    return side.label in manifest.fingerprint or not _has_begun(manifest, side)


def _begins_anew(manifest: Manifest, side: SidePlan, lost: dict[str, set[str]]) -> bool:
    """Whether the parts that are kept cannot be used.

    Panes count from 0 again if the state of their grouping is dropped: those that are kept would hide them.
    """
    fires_anew = side.triggered and any(_STATE in lost[producer] for producer in side.producers)
    return side.label in manifest.sides and (fires_anew or bool(_reasons(manifest, side.label, side.format)))


# ---- what is not in the plan
def _of_what_is_gone(manifest: Manifest, plan: Plan) -> Iterator[Change]:
    steps = {stage.id for stage in plan.stages}
    known = {transform for stage in plan.stages for transform in stage.transforms}
    problems: dict[str, list[tuple[str, str]]] = {step: [] for step in manifest.output_us if step not in steps}
    for step in manifest.output_us.keys() - steps:
        if groups := len(manifest.groups.get(step, ())):
            problems[step].append(("the step is gone and has state", f"state of {groups} key groups"))
    for transform, parts in Counter(r.transform for r in manifest.residuals).items():
        if transform not in known:
            problems.setdefault(transform, []).append(("the source is gone and not read to its end", _unread(parts)))
    for step, files in Counter(w.stage for w in manifest.waiting).items():
        if step not in steps:
            problems.setdefault(step, []).append(("the step is gone and elements wait in it", _waiting(files)))
    # What the last epoch staged may not be published yet: without its sink it would be lost.
    for label, items in manifest.staged.items():
        if items and label not in plan.publishers:
            why = f"the sink is gone and epoch {manifest.epoch} may not be published"
            problems.setdefault(label, []).append((why, f"{len(items)} staged descriptors"))
    # Sources have no other name than their label: one that is renamed would be read again from its beginning.
    new = [stage.id for stage in plan.stages if stage.from_impulse and stage.id not in manifest.output_us]
    for step in manifest.output_us.keys() - steps if new else ():
        if kind_of(manifest.fingerprint.get(step, "")) == IMPULSE:
            why = f"the source is gone while {_and(new)} is new: if that is its new name, it would be read again"
            problems[step].append((why, "the note that it was read"))
    for step, found in sorted(problems.items()):
        if found:
            yield Change(step, INCOMPATIBLE, "; ".join(why for why, _ in found), _and(loss for _, loss in found))
        else:
            yield Change(step, GONE, "had no state")


def _and(items: Iterable[str]) -> str:
    return " and ".join(items)


def _refusal(manifest: Manifest, plan: Plan, problems: list[Change], where: str) -> CheckpointError:
    is_another = not manifest.output_us.keys() & {stage.id for stage in plan.stages}
    if is_another:
        steps = ", ".join(sorted({c.step for c in problems} & manifest.output_us.keys()) or sorted(manifest.output_us))
        message = f"{where} is the checkpoint of another pipeline: none of its steps is in this one, such as {steps}"
    else:
        message = f"{where} does not fit this pipeline"
    reasons = "; ".join(f"{c.step}: {c.why}" + (f" ({c.loss})" if c.loss else "") for c in problems)
    hint = "run the old pipeline, or start this one on a new --checkpoint"
    if all(c.loss for c in problems) and not is_another:
        hint += ", or drop it: " + " ".join(f"--drop_incompatible='{c.step}'" for c in problems)
    return CheckpointError(f"{message}. {reasons}.", hint=hint)
