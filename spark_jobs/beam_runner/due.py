"""What there is to do after an epoch, and what the first tasks of the next one get. Pure functions of the manifest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from spark_jobs.beam_runner.beam_internals import ENCODED_IMPULSE
from spark_jobs.beam_runner.bundles.exchange import EdgeId, Parcel, Row
from spark_jobs.beam_runner.bundles.order import EpochOrder
from spark_jobs.beam_runner.bundles.splitting import TRUNCATED
from spark_jobs.beam_runner.checkpoint.manifest import KeyGroupMeta, Manifest, Residual
from spark_jobs.beam_runner.clock import MIN_US, NEVER_US
from spark_jobs.beam_runner.planning.plan import IMPULSE, Plan, StagePlan
from spark_jobs.beam_runner.planning.script import ScriptEvent


def anything_due(plan: Plan, last: Manifest, now_us: int) -> bool:
    """Whether an epoch has anything to do at this processing time."""
    return (
        bool(_unmet_stages(plan, last))
        or any(residual.due_us <= now_us for residual in last.residuals)
        or any(meta.next_real_us <= now_us for meta in _metas(last))
    )


def anything_coming(last: Manifest) -> bool:
    """Whether there will be, some time."""
    return bool(last.residuals) or any(meta.next_real_us < NEVER_US for meta in _metas(last))


def next_us(last: Manifest) -> int:
    """The processing time at which something falls due, of what is known of now."""
    times = [residual.due_us for residual in last.residuals] + [meta.next_real_us for meta in _metas(last)]
    return min(times, default=0)


def all_idle(last: Manifest) -> bool:
    """Every source asked to be left alone for a while, and no processing-time timer is set."""
    return all(residual.due_us > 0 for residual in last.residuals) and all(
        meta.next_real_us == NEVER_US for meta in _metas(last)
    )


def first_parcels(
    plan: Plan, last: Manifest, ready: list[Residual], event: ScriptEvent | None, order: EpochOrder
) -> tuple[int, dict[int, Parcel]]:
    """Impulses of stages that are new, residuals, a script's event; and the lowest level with anything to do.

    A stage that is new is run even if it gets nothing: until it has a watermark, those behind it stand still.
    """
    rows: dict[int, dict[EdgeId, list[Row]]] = {p: defaultdict(list) for p in range(order.partitions)}
    levels = {stage.id: stage.level for stage in plan.stages}
    busy: set[int] = set()
    for stage in _unmet_stages(plan, last):
        busy.add(stage.level)
        for index, source in enumerate(stage.inputs):
            if source.kind == IMPULSE:
                rows[0][stage.id, index].append((0, b"", ENCODED_IMPULSE))
    if event is not None:
        busy.add(0)
        if event.chunk:
            rows[0][plan.stage_with(event.input).id, 0].append((0, b"", event.chunk))
    for residual in ready:
        stage = plan.stage_with(residual.transform)
        busy.add(stage.level)
        mark = TRUNCATED if residual.truncated else b""
        rows[residual.part % order.partitions][stage.id, 0].append((residual.part, mark, residual.element))
    for stage_id, metas in last.groups.items():
        if any(m.next_real_us <= order.now_us for m in metas.values()):
            busy.add(levels[stage_id])
    first = min(busy, default=0)
    skipped = {s.id: last.output_us.get(s.id, MIN_US) for s in plan.stages if s.level < first}
    return first, {p: Parcel(p, dict(rows[p]), skipped, {}) for p in range(order.partitions)}


def _unmet_stages(plan: Plan, last: Manifest) -> list[StagePlan]:
    """Stages of which no epoch was committed yet: all at first, those that are new after an upgrade."""
    return [stage for stage in plan.stages if stage.id not in last.output_us]


def _metas(last: Manifest) -> Iterator[KeyGroupMeta]:
    for metas in last.groups.values():
        yield from metas.values()
