"""What an epoch comes to: the last manifest and the reports of all tasks, as the next manifest. Pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from apache_beam.portability.api import metrics_pb2

from spark_jobs.beam_runner.bundles.order import EpochOrder, Report
from spark_jobs.beam_runner.checkpoint.manifest import Manifest, Residual, SidePart, Waiting
from spark_jobs.beam_runner.clock import MAX_US, MIN_US, now_us
from spark_jobs.beam_runner.metrics import consolidate, user_metrics
from spark_jobs.beam_runner.planning.plan import Plan


def next_manifest(
    plan: Plan, last: Manifest, order: EpochOrder, rest: list[Residual], reports: list[Report], now: int
) -> Manifest:
    """`rest`: the restrictions that were not handed out. `now`: processing time, from which pauses are counted."""
    output_us: dict[str, int] = {}
    input_us: dict[str, int] = {}
    groups = {stage: dict(metas) for stage, metas in last.groups.items()}
    metrics = monitoring_infos(last)  # since the start of the checkpoint; this epoch's are added
    staged: dict[str, list[bytes]] = defaultdict(list)
    sides = {label: list(parts) for label, parts in last.sides.items()}
    thinned = set(last.thinned)
    released: set[str] = set()
    waiting: list[Waiting] = []
    residuals = list(rest)
    for label, part in ((label, part) for report in reports for label, part in report.folded.items()):
        run = order.folds[label]
        sides[label][-len(run) :] = [part]
        if not plan.is_seen_whole(label):
            thinned.add(label)
    for report in reports:
        for stage, watermark in report.output_us.items():
            output_us[stage] = min(watermark, output_us.get(stage, watermark))
        for stage, watermark in report.input_us.items():
            input_us[stage] = min(watermark, input_us.get(stage, watermark))
        for (stage, number), meta in report.groups.items():
            groups.setdefault(stage, {})[number] = meta
        for label, items in report.staged.items():
            staged[label] += items
        for label, parts in report.sides.items():
            sides.setdefault(label, []).extend(parts)
        released.update(report.released)
        waiting += report.waiting
        for stage, infos in report.metrics.items():
            metrics.setdefault(stage, []).extend(map(metrics_pb2.MonitoringInfo.FromString, infos))
        residuals += [replace(r, due_us=now + r.due_us) if r.due_us else r for r in report.residuals]
    output_us, input_us = {**last.output_us, **output_us}, {**last.input_us, **input_us}
    waiting[:0] = [w for w in last.waiting if w.file not in released]  # the oldest first
    done = not residuals and not waiting and all(w >= MAX_US for w in output_us.values())
    readable = {} if done else _readable_sides(plan, sides, output_us, residuals)
    return Manifest(
        epoch=last.epoch + 1,
        job=last.next_job or last.job,
        committed_us=now_us(),
        key_groups=last.key_groups,
        fingerprint=plan.fingerprint,
        input_us=input_us,
        output_us=output_us,
        groups={
            stage: {n: m for n, m in metas.items() if m.chain or m.input_us > input_us[stage]}
            for stage, metas in groups.items()
        },
        residuals=tuple(residuals),
        sides=readable,
        dropped_us=_dropped_us(last, sides, readable),
        thinned=tuple(sorted(thinned)),
        waiting=tuple(waiting),
        staged={label: tuple(items) for label, items in staged.items()},
        metrics={
            stage: tuple(info.SerializeToString() for info in consolidate(infos)) for stage, infos in metrics.items()
        },
        draining=order.draining,
        done=done,
    )


def _readable_sides(
    plan: Plan, sides: dict[str, list[SidePart]], output_us: dict[str, int], residuals: list[Residual]
) -> dict[str, tuple[SidePart, ...]]:
    """All parts that an element may still look at: not those of windows that all readers have left behind.

    A restriction's outputs move on while its element stays in its window: it keeps all parts. So does a bounded side
    input, which does not grow: no element is too late for it.
    """
    open_steps = {residual.transform for residual in residuals}
    seen_until: dict[str, int] = {}
    for stage in plan.stages:
        for side in stage.sides:
            is_open = not open_steps.isdisjoint(stage.transforms)
            left_us = MIN_US if is_open or not side.unbounded else output_us.get(stage.id, MIN_US) - side.lateness_us
            seen_until[side.label] = min(left_us, seen_until.get(side.label, left_us))
    kept = {
        label: tuple(part for part in parts if part.end_us >= seen_until.get(label, MIN_US))
        for label, parts in sides.items()
    }
    return {label: parts for label, parts in kept.items() if parts}


def _dropped_us(
    last: Manifest, sides: Mapping[str, list[SidePart]], readable: Mapping[str, tuple[SidePart, ...]]
) -> dict[str, int]:
    """Up to where each side input has no parts any more: a reader that is new may have to look there."""
    dropped_us = dict(last.dropped_us)
    for label, parts in sides.items():
        kept = {part.name for part in readable.get(label, ())}
        if gone := [part.end_us for part in parts if part.name not in kept]:
            dropped_us[label] = max(*gone, dropped_us.get(label, MIN_US))
    return dropped_us


def is_same(last: Manifest, new: Manifest) -> bool:
    """Nothing but the clock moved: the same restrictions are left, and no state, output, watermark or metric is new."""
    left = [sorted((r.transform, r.element, r.watermark_us) for r in m.residuals) for m in (last, new)]
    return (
        left[0] == left[1]
        and last.draining == new.draining
        and not any(new.staged.values())
        and last.groups == new.groups
        and last.output_us == new.output_us
        and last.input_us == new.input_us
        and last.sides == new.sides
        and last.waiting == new.waiting
        and last.fingerprint == new.fingerprint
        and user_metrics(last.metrics) == user_metrics(new.metrics)
    )


def monitoring_infos(manifest: Manifest) -> dict[str, list[metrics_pb2.MonitoringInfo]]:
    """Metrics since the start of the checkpoint, by stage."""
    return {
        stage: [metrics_pb2.MonitoringInfo.FromString(info) for info in infos]
        for stage, infos in manifest.metrics.items()
    }
