"""The epoch loop: hands out work, commits manifests, publishes. All of a job's exactly-once rests on its order:

    run the levels -> commit the manifest (the commit point) -> publish what the epoch staged -> next commit

Publishing epoch n overlaps with running epoch n+1, and ends before n+1 is committed. A restart publishes the last
manifest again, which publishers take as done if it was.
"""

from __future__ import annotations

import pickle
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from apache_beam.portability.api import metrics_pb2

from common.publish import Epoch
from spark_jobs.beam_runner.beam_internals import consolidate_metrics
from spark_jobs.beam_runner.checkpoint import SIDE, Checkpoint
from spark_jobs.beam_runner.clock import MAX_US, MIN_US, NEVER_US, now_us
from spark_jobs.beam_runner.exchange import EdgeId, Parcel, Row
from spark_jobs.beam_runner.manifest import KeyGroupMeta, Manifest, Residual
from spark_jobs.beam_runner.plan import IMPULSE, Plan
from spark_jobs.beam_runner.progress import files_to_roll_back, newest_manifest, sum_counters
from spark_jobs.beam_runner.task import EpochOrder, Report, encode_chunks
from spark_jobs.beam_runner.transport import Transport
from spark_jobs.beam_runner.upgrade import carry_over

_LONGEST_SLEEP_S = 0.2  # a stop request is seen within this time
_GARBAGE_EVERY_EPOCHS = 16

Counters = dict[str, int]


@dataclass(frozen=True)
class EpochInfo:
    """Progress, after each commit."""

    epoch: int
    seconds: float
    counters: Counters  # 'namespace/name' -> sum since the start of the checkpoint


class EpochLoop:
    """Runs a plan on a transport until its sources end, go idle (`until_idle`), or a stop is requested."""

    def __init__(
        self,
        plan: Plan,
        transport: Transport,
        checkpoint: Checkpoint,
        *,
        key_groups: int,
        until_idle: bool = False,
        interval_ms: int = 0,
        drop_incompatible: Collection[str] = (),
        on_epoch: Callable[[EpochInfo], None] | None = None,
    ) -> None:
        self._plan, self._transport, self._checkpoint = plan, transport, checkpoint
        self._until_idle, self._interval_s, self._on_epoch = until_idle, interval_ms / 1000, on_epoch
        self._stop = threading.Event()
        self._publisher = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._publishing: Future[None] | None = None
        self.published: Counter[str] = Counter()
        checkpoint.prepare()
        self.manifest = self._resume(key_groups, drop_incompatible)

    # ---- control
    def request_stop(self) -> None:
        """Ends the loop after the epoch under way; its results are committed and published."""
        self._stop.set()

    def run(self) -> None:
        """Blocks until the job is done, idle or stopped. Raises what a task, a publisher or the commit raised."""
        try:
            self._publish(self.manifest)
            while not self.manifest.done and not self._stop.is_set():
                started = time.monotonic()
                self._raise_if_publishing_failed()
                if self.manifest.epoch >= 0 and not self._anything_due():
                    if not self._anything_coming():
                        break  # an upgrade dropped the sources: what is left waits for ever
                    self._sleep()
                    continue
                if not self._run_epoch(started) and self._until_idle and self._all_idle():
                    break
                self._stop.wait(max(0.0, self._interval_s - (time.monotonic() - started)))
        finally:
            try:
                self._finish_publishing()
            finally:
                self._publisher.shutdown()
                self._transport.close()

    # ---- start
    def _resume(self, key_groups: int, accepted: Collection[str]) -> Manifest:
        manifest = newest_manifest(self._checkpoint)
        if manifest is None:
            return Manifest(job=uuid.uuid4().hex, key_groups=key_groups)
        return carry_over(manifest, self._plan, self._checkpoint.url, accepted)

    # ---- what is due
    def _anything_due(self) -> bool:
        now = now_us()
        return any(r.due_us <= now for r in self.manifest.residuals) or any(
            meta.next_real_us <= now for meta in self._metas()
        )

    def _anything_coming(self) -> bool:
        return bool(self.manifest.residuals) or any(meta.next_real_us < NEVER_US for meta in self._metas())

    def _all_idle(self) -> bool:
        """Every source asked to be left alone for a while, and no processing-time timer is set."""
        return all(r.due_us > 0 for r in self.manifest.residuals) and all(
            meta.next_real_us == NEVER_US for meta in self._metas()
        )

    def _metas(self) -> list[KeyGroupMeta]:
        return [meta for metas in self.manifest.groups.values() for meta in metas.values()]

    def _sleep(self) -> None:
        wake_us = min(
            [r.due_us for r in self.manifest.residuals] + [meta.next_real_us for meta in self._metas()], default=0
        )
        self._stop.wait(min(_LONGEST_SLEEP_S, max(0.001, (wake_us - now_us()) / 1e6)))

    # ---- one epoch
    def _run_epoch(self, started: float) -> bool:
        """-> False if nothing moved: then nothing was committed either."""
        last, now = self.manifest, now_us()
        due = [r for r in last.residuals if r.due_us <= now]
        rest = [r for r in last.residuals if r.due_us > now]
        order = self._order(rest)
        first_level, parcels = self._first_parcels(due, order)
        reports = self._transport.run(self._plan, order, first_level, parcels)
        manifest = self._next_manifest(rest, reports)
        if last.epoch >= 0 and _same_position(last, manifest):
            self.manifest = replace(last, residuals=manifest.residuals)  # only the times to look again are new
            return False
        self._finish_publishing()
        self._checkpoint.commit_manifest(manifest.epoch, manifest.to_json())
        self.manifest = manifest
        self._publish(manifest)
        if manifest.epoch % _GARBAGE_EVERY_EPOCHS == 0:
            live = manifest.live_files() | files_to_roll_back(self._checkpoint)
            self._checkpoint.collect_garbage(manifest.epoch, live)
        if self._on_epoch is not None:
            self._on_epoch(EpochInfo(manifest.epoch, time.monotonic() - started, self.counters()))
        return True

    def _order(self, rest: list[Residual]) -> EpochOrder:
        last = self.manifest
        waiting: dict[str, int] = {}
        for residual in rest:
            stage = self._plan.stage_with(residual.transform)
            waiting[stage.id] = min(residual.watermark_us, waiting.get(stage.id, MAX_US))
        return EpochOrder(
            epoch=last.epoch + 1,
            partitions=self._transport.partitions,
            key_groups=last.key_groups,
            checkpoint=self._checkpoint,
            now_us=now_us(),
            groups=last.groups,
            input_us=last.input_us,
            output_us=last.output_us,
            waiting_us=waiting,
            side_files=last.side_files,
        )

    def _first_parcels(self, due: list[Residual], order: EpochOrder) -> tuple[int, dict[int, Parcel]]:
        """Impulses of the first epoch, or residuals; and the lowest level that has anything to do."""
        partitions = order.partitions
        rows: dict[int, dict[EdgeId, list[Row]]] = {p: defaultdict(list) for p in range(partitions)}
        levels = {stage.id: stage.level for stage in self._plan.stages}
        busy: set[int] = set()
        if self.manifest.epoch < 0:
            busy.add(0)
            for stage in self._plan.stages:
                for index, plan in enumerate(stage.inputs):
                    if plan.kind == IMPULSE:
                        rows[0][stage.id, index].append((0, b"", b""))
        for residual in due:
            stage = self._plan.stage_with(residual.transform)
            busy.add(stage.level)
            rows[residual.part % partitions][stage.id, 0].append((residual.part, b"", residual.element))
        for stage_id, metas in self.manifest.groups.items():
            if any(m.next_real_us <= order.now_us for m in metas.values()):
                busy.add(levels[stage_id])
        first = min(busy, default=0)
        skipped = {s.id: self.manifest.output_us.get(s.id, MIN_US) for s in self._plan.stages if s.level < first}
        return first, {p: Parcel(p, dict(rows[p]), skipped, {}) for p in range(partitions)}

    def _next_manifest(self, rest: list[Residual], reports: list[Report]) -> Manifest:
        last = self.manifest
        output_us: dict[str, int] = {}
        input_us: dict[str, int] = {}
        groups = {stage: dict(metas) for stage, metas in last.groups.items()}
        metrics = self.monitoring_infos()  # since the start of the checkpoint; this epoch's are added
        staged: dict[str, list[bytes]] = defaultdict(list)
        sides: dict[str, list[bytes]] = defaultdict(list)
        residuals = list(rest)
        for report in reports:
            for stage, watermark in report.output_us.items():
                output_us[stage] = min(watermark, output_us.get(stage, watermark))
            for stage, watermark in report.input_us.items():
                input_us[stage] = min(watermark, input_us.get(stage, watermark))
            for (stage, number), meta in report.groups.items():
                groups.setdefault(stage, {})[number] = meta
            for label, items in report.staged.items():
                staged[label] += items
            for label, chunks in report.sides.items():
                sides[label] += chunks
            for stage, infos in report.metrics.items():
                metrics.setdefault(stage, []).extend(map(metrics_pb2.MonitoringInfo.FromString, infos))
            residuals += report.residuals
        side_files = dict(last.side_files)
        epoch = last.epoch + 1
        for label, chunks in sides.items():
            name = self._checkpoint.write(SIDE, epoch, "rows", encode_chunks(chunks))
            side_files[label] = (*side_files.get(label, ()), name)
        output_us = {**last.output_us, **output_us}
        idle_group = KeyGroupMeta()
        return Manifest(
            epoch=epoch,
            job=last.next_job or last.job,
            committed_us=now_us(),
            key_groups=last.key_groups,
            fingerprint={s.id: s.state_format for s in self._plan.stages if s.keeps_state},
            input_us={**last.input_us, **input_us},
            output_us=output_us,
            groups={s: {n: m for n, m in metas.items() if m != idle_group} for s, metas in groups.items()},
            residuals=tuple(residuals),
            side_files=side_files,
            staged={label: tuple(items) for label, items in staged.items()},
            metrics={
                stage: tuple(info.SerializeToString() for info in consolidate_metrics(infos))
                for stage, infos in metrics.items()
            },
            done=not residuals and all(w >= MAX_US for w in output_us.values()),
        )

    # ---- publishing
    def _publish(self, manifest: Manifest) -> None:
        staged = {label: items for label, items in manifest.staged.items() if items}
        if manifest.epoch == 0:  # publishers may have something to prepare, such as tables that stay empty
            staged = {**dict.fromkeys(self._plan.publishers, ()), **staged}
        if staged:
            self._publishing = self._publisher.submit(self._publish_now, Epoch(manifest.job, manifest.epoch), staged)

    def _publish_now(self, epoch: Epoch, staged: Mapping[str, tuple[bytes, ...]]) -> None:
        self._checkpoint.require_newest(epoch.number)  # a driver that slept must not put old panes over new ones
        for label, items in sorted(staged.items()):
            self.published.update(pickle.loads(self._plan.publishers[label]).publish(epoch, items))

    def _raise_if_publishing_failed(self) -> None:
        """An idle stream has no next commit that would notice."""
        if self._publishing is not None and self._publishing.done():
            self._finish_publishing()

    def _finish_publishing(self) -> None:
        if self._publishing is not None:
            pending, self._publishing = self._publishing, None
            pending.result()

    # ---- results
    def monitoring_infos(self) -> dict[str, list[metrics_pb2.MonitoringInfo]]:
        return {
            stage: [metrics_pb2.MonitoringInfo.FromString(info) for info in infos]
            for stage, infos in self.manifest.metrics.items()
        }

    def counters(self) -> Counters:
        """User counters, summed over steps."""
        return sum_counters(self.manifest.metrics)


def _same_position(last: Manifest, new: Manifest) -> bool:
    """Nothing but the clock moved: the same restrictions are left, and no state, output or watermark changed."""
    left = [sorted((r.transform, r.element, r.watermark_us) for r in m.residuals) for m in (last, new)]
    return (
        left[0] == left[1]
        and not any(new.staged.values())
        and last.groups == new.groups
        and last.output_us == new.output_us
        and last.input_us == new.input_us
        and last.side_files == new.side_files
    )
