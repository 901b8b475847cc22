"""The work of one task: all stages of one level for one partition in one epoch. The same code on every transport."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Iterable

from apache_beam.options.value_provider import RuntimeValueProvider
from apache_beam.utils.windowed_value import WindowedValue

from spark_jobs.beam_runner.bundles.bundle import BundleResult, StageProcessor
from spark_jobs.beam_runner.bundles.compaction import fold
from spark_jobs.beam_runner.bundles.exchange import EdgeId, Inbox, Outbox, Parcel, Row, SideChunks, held, key_group
from spark_jobs.beam_runner.bundles.order import EpochOrder, Report
from spark_jobs.beam_runner.bundles.side_inputs import INLINE_BYTES, SideTable, decode_chunks, encode_chunks
from spark_jobs.beam_runner.bundles.splitting import Splitter, in_one_window_each
from spark_jobs.beam_runner.bundles.spool import Spool
from spark_jobs.beam_runner.bundles.waiting import Side, decode_rows, encode_rows, may_be_ready, portions, sort
from spark_jobs.beam_runner.bundles.worker import Unfinalized, Worker
from spark_jobs.beam_runner.checkpoint.checkpoint import SIDE
from spark_jobs.beam_runner.checkpoint.manifest import KeyGroupMeta, Residual, SidePart, Waiting
from spark_jobs.beam_runner.clock import MAX_US, MIN_US
from spark_jobs.beam_runner.keyed.keyed_stage import (
    Panes,
    late_elements,
    load_groups,
    pane_driver,
    run_grouping,
    run_stateful,
)
from spark_jobs.beam_runner.keyed.state_files import StateWriter
from spark_jobs.beam_runner.planning.plan import GROUP, Plan, StagePlan


def run_level(
    worker: Worker, plan: Plan, order: EpochOrder, level: int, part: int, inbox: Inbox
) -> tuple[dict[int, Parcel], Report]:
    """Runs the level's stages in plan order. -> (parcels for the next level by partition, report)."""
    began = time.perf_counter()
    parcels, report = _LevelRun(worker, plan, order, level, part, inbox).run()
    report.seconds = time.perf_counter() - began
    return parcels, report


class _LevelRun:
    def __init__(self, worker: Worker, plan: Plan, order: EpochOrder, level: int, part: int, inbox: Inbox) -> None:
        self.worker, self.plan, self.order, self.level, self.part = worker, plan, order, level, part
        self.level_of = {stage.id: stage.level for stage in plan.stages}
        self.here: dict[EdgeId, list[Row]] = defaultdict(list)
        self.outbox = Outbox(order.partitions, part, Spool(order.memory_bytes))
        self.spool = Spool(order.memory_bytes)  # of rows that stay in the task
        for edge, rows in inbox.rows.items():
            if self.level_of[edge[0]] == level:
                self.here[edge] += rows
            else:  # addressed to a later level: goes on in this partition
                self.outbox.blocks[part][edge] += rows
        self.watermarks = dict(inbox.watermarks)
        self.sides = inbox.sides
        self.id = uuid.uuid4().hex  # another attempt of the task has another
        self.report = Report(process=worker.name)
        self.state_writer = StateWriter(order.checkpoint, worker.cache, order.epoch)
        self.times: dict[tuple[str, int], tuple[int, int, int, int]] = {}
        self.unfinalized: list[Unfinalized] = []
        worker.begin(plan, order)

    def run(self) -> tuple[dict[int, Parcel], Report]:
        RuntimeValueProvider.set_runtime_options(dict(self.plan.options))
        for stage in self.plan.stages:
            if stage.level == self.level:
                self._run_stage(stage)
        for (stage_id, number), chain in self.state_writer.write().items():
            self.report.groups[stage_id, number] = KeyGroupMeta(chain, *self.times[stage_id, number])
        self.report.staged = dict(self.outbox.staged)
        self.report.sides = {label: [self._side_part(chunks)] for label, chunks in self.outbox.sides.items()}
        if self.level == self.plan.levels - 1:  # which every epoch runs
            self._fold_sides()
        parcels = {
            p: Parcel(self.part, dict(self.outbox.blocks.get(p, {})), self.watermarks, self._sides_for(p))
            for p in range(self.order.partitions)
        }
        if self.unfinalized:
            self.worker.finalize_after_commit(self.unfinalized)
            self.report.awaits_commit = self.id
        return parcels, self.report

    def _side_part(self, chunks: SideChunks) -> SidePart:
        """Small parts of a side input that ends with the epoch travel as they are; others by the checkpoint."""
        if not self.order.keep_sides and sum(map(len, chunks.chunks)) <= INLINE_BYTES:
            return SidePart(uuid.uuid4().hex, chunks.end_us, tuple(chunks.chunks))
        data = encode_chunks(chunks.chunks)
        name = self.order.checkpoint.write(SIDE, self.order.epoch, "rows", data)
        return SidePart(name, chunks.end_us, size_bytes=len(data))

    def _sides_for(self, partition: int) -> dict[str, list[SidePart]]:
        """Every task reads the whole of a side input: what was made here goes to all, what came in stays."""
        made = self.report.sides
        if partition != self.part:
            return dict(made)
        return {label: self.sides.get(label, []) + made.get(label, []) for label in {*self.sides, *made}}

    def _run_stage(self, stage: StagePlan) -> None:
        order = self.order
        input_us = min([self.watermarks.get(p, MAX_US) for p in stage.producers], default=MAX_US)
        rows = [self.here.pop((stage.id, index), []) for index in range(len(stage.inputs))]
        sides = self._sides_of(stage)
        aside_us = MAX_US
        if sides:
            rows, aside_us = self._wait_for_sides(stage, rows, sides)
        input_us = max(min(input_us, aside_us), order.previous_input_us(stage.id))  # never back, as a new producer is
        metas = {n: m for n, m in order.groups.get(stage.id, {}).items() if n % order.partitions == self.part}
        due = {n for n, m in metas.items() if self._is_due(m, input_us)}
        hold_us = min([m.hold_us for n, m in metas.items()], default=MAX_US)
        if any(rows) or due:
            hold_us = self._run_bundle(stage, rows, sides, metas, due, input_us)
        watermark = min(input_us, hold_us, aside_us, order.waiting_us.get(stage.id, MAX_US))
        watermark = max(watermark, order.output_us.get(stage.id, MIN_US))  # never back
        self.watermarks[stage.id] = self.report.output_us[stage.id] = watermark
        if stage.keeps_state:
            self.report.input_us[stage.id] = max(input_us, order.previous_input_us(stage.id))

    def _is_due(self, meta: KeyGroupMeta, input_us: int) -> bool:
        at_the_end = input_us == MAX_US and bool(meta.chain)
        return meta.next_event_us <= input_us or meta.next_real_us <= self.order.now_us or at_the_end

    def _run_bundle(
        self,
        stage: StagePlan,
        rows: list[list[Row]],
        sides: list[Side],
        metas: dict[int, KeyGroupMeta],
        due: set[int],
        input_us: int,
    ) -> int:
        """-> the stage's hold: the least time that its state and residuals keep its output watermark at."""
        processor = self.worker.pool.take(stage)
        for output in processor.outputs:
            output.send = self._send
            output.side = lambda label, data, end_us: self.outbox.sides[label].add(data, end_us)
            output.stage_item = lambda label, data: self.outbox.staged[label].append(data)
            output.part, output.partitions = self.part, self.order.partitions
            output.key_groups = self.order.key_groups
        processor.state.use_sides({(side.plan.transform, side.plan.tag): side.table for side in sides})
        try:
            if stage.keeps_state:
                result, hold_us = self._run_keyed(stage, processor, rows[0], metas, due, input_us)
            else:
                result, hold_us = self._run_unkeyed(stage, processor, rows), MAX_US
        except BaseException as error:
            processor.close()
            self.worker.drivers.pop(stage.id, None)  # half way through its keys
            order = self.order
            error.add_note(f"in epoch {order.epoch}, task {self.part} of {order.partitions}, bundle of {stage.id!r}")
            if isinstance(error.__context__, KeyboardInterrupt):  # which Beam takes for an error of the DoFn
                raise error.__context__ from None
            raise
        processor.let_go()
        hold_us = min(hold_us, self._keep_residuals(stage, result))
        self.report.metrics.setdefault(stage.id, []).extend(result.metrics)
        self.report.emitted |= result.emitted
        if result.wants_finalization:
            self.unfinalized.append(Unfinalized(self.id, self.order.attempt, stage, processor))
        else:
            self.worker.pool.give_back(stage, processor)
        return hold_us

    def _run_keyed(
        self,
        stage: StagePlan,
        processor: StageProcessor,
        rows: list[Row],
        metas: dict[int, KeyGroupMeta],
        due: set[int],
        input_us: int,
    ) -> tuple[BundleResult, int]:
        order = self.order
        touched = due | {row[0] for row in rows}
        groups = load_groups(self.worker.cache, order, stage.id, touched)
        # Where elements of other tasks wait for a side input, a group may have been run at a later watermark than that
        # of its stage. It does not go back: what it dropped as expired then, no late element may meet as empty.
        stage_us = order.previous_input_us(stage.id)
        old_us = {n: max(stage_us, metas[n].input_us if n in metas else MIN_US) for n in touched}
        if stage.inputs[0].kind == GROUP:
            driver = self._pane_driver(stage, processor)
            result, times = run_grouping(processor, driver, groups, rows, old_us, input_us, order.now_us)
        else:
            result, times = run_stateful(processor, groups, order.key_groups, rows, old_us, input_us, order.now_us)
        for number, group in groups.items():
            chain = order.groups.get(stage.id, {}).get(number, KeyGroupMeta()).chain
            self.state_writer.add(stage.id, number, chain, group)
            self.times[stage.id, number] = *times[number], max(old_us[number], input_us)
        untouched = [m.hold_us for n, m in metas.items() if n not in touched]
        return result, min([*untouched, *(t[0] for t in times.values())], default=MAX_US)

    def _run_unkeyed(self, stage: StagePlan, processor: StageProcessor, rows: list[list[Row]]) -> BundleResult:
        splitter = None
        if stage.splittable and self.order.draining:
            rows = [self.worker.truncation(stage).apply(processor.inputs[0], rows[0]), *rows[1:]]
        values: list[list[Iterable[WindowedValue]]] = [
            [operation.decode(chunk) for _, _, chunk in some]  # read and decoded as they are pushed
            for operation, some in zip(processor.inputs, rows, strict=True)
        ]
        if stage.splittable:  # restrictions are few: they are decoded at once, and counted
            decoded = [[value for each in some for value in in_one_window_each(each)] for some in values]
            values = [[each] for each in decoded]
            if self.order.split_after_s is not None:
                splitter = Splitter(processor.inputs[0], len(decoded[0]), self.order.split_after_s)
        return processor.run(lambda: self._feed(processor, values), splitter)

    def _feed(self, processor: StageProcessor, values: list[list[Iterable[WindowedValue]]]) -> None:
        for operation, some in zip(processor.inputs, values, strict=True):
            for each in some:
                operation.push(each)

    def _send(self, edge: EdgeId, partition: int, row: Row) -> None:
        if self.level_of[edge[0]] == self.level:
            self.here[edge] += held([row], self.spool)
        else:
            self.outbox.send(edge, partition, row)

    def _pane_driver(self, stage: StagePlan, processor: StageProcessor) -> Panes:
        drivers = self.worker.drivers
        if stage.id not in drivers:
            drivers[stage.id] = pane_driver(processor.inputs[0])
        return drivers[stage.id]

    # ---- side inputs
    def _sides_of(self, stage: StagePlan) -> list[Side]:
        sides = []
        for plan in stage.sides:
            table = self.worker.side_table(self.plan, stage, plan)
            added = self.sides.get(plan.label, [])
            parts = [*self.order.sides.get(plan.label, ()), *added]
            # What a restriction's outputs have left behind, its element may still look at. Bounded ones stay whole.
            forgets = plan.unbounded and not stage.splittable
            left_us = self.order.output_us.get(stage.id, MIN_US) - plan.lateness_us if forgets else MIN_US
            table.hold(parts, self._chunks, self.order.folded, left_us)
            watermark_us = min([self.watermarks.get(p, MAX_US) for p in plan.producers], default=MAX_US)
            sides.append(Side(plan, table, watermark_us, bool(added), left_us))
        return sides

    def _chunks(self, part: SidePart) -> Iterable[bytes]:
        if part.chunks is not None:
            return part.chunks
        return decode_chunks(self.order.checkpoint.read(SIDE, part.name))

    def _fold_sides(self) -> None:
        for label, parts in self.order.folds.items():
            if key_group(label.encode(), self.order.partitions) != self.part:
                continue
            readers = [
                SideTable(side, self.worker.context(self.plan))
                for stage in self.plan.stages
                for side in stage.sides
                if side.label == label
            ]
            seen = fold(readers, (chunk for part in parts for chunk in self._chunks(part)))
            self.report.folded[label] = self._side_part(SideChunks([seen], max(part.end_us for part in parts)))

    def _wait_for_sides(
        self, stage: StagePlan, rows: list[list[Row]], sides: list[Side]
    ) -> tuple[list[list[Row]], int]:
        """-> (rows to process now, the least time of those that have to wait)."""
        hold_us = MAX_US
        older: list[list[Row]] = [[] for _ in rows]
        for waiting in self.order.waiting:
            if waiting.stage != stage.id or not self._is_mine(stage, waiting):
                continue
            if waiting.partitions == self.order.partitions and not may_be_ready(waiting, sides):
                hold_us = min(hold_us, waiting.hold_us)
                continue
            self.report.released.append(waiting.file)
            stored = decode_rows(self.order.checkpoint.read(SIDE, waiting.file))
            if stage.keeps_state:
                stored = [[row for row in some if row[0] % self.order.partitions == self.part] for some in stored]
            for kept, read in zip(older, stored, strict=True):
                kept += held(read, self.spool)
        rows = [kept + newer for kept, newer in zip(older, rows, strict=True)]
        if not any(rows):
            return rows, hold_us
        processor = self.worker.pool.take(stage)
        outcome = sort(rows, processor.inputs, sides, self.order.output_us.get(stage.id, MIN_US), self.spool)
        self.worker.pool.give_back(stage, processor)
        self.report.metrics.setdefault(stage.id, []).extend(late_elements(outcome.dropped, processor.step))
        for some in portions(outcome.aside):
            order = self.order
            file = order.checkpoint.write(SIDE, order.epoch, "waiting", encode_rows(some))
            self.report.waiting.append(
                Waiting(stage.id, file, outcome.hold_us, outcome.ready_us, self.part, order.partitions)
            )
        return outcome.ready, min(hold_us, outcome.hold_us)

    def _is_mine(self, stage: StagePlan, waiting: Waiting) -> bool:
        """After a change of the number of tasks every task takes its own key groups out of each file."""
        is_split = stage.keeps_state and waiting.partitions != self.order.partitions
        return is_split or waiting.part % self.order.partitions == self.part

    def _keep_residuals(self, stage: StagePlan, result: BundleResult) -> int:
        hold_us = MAX_US
        for rest in result.deferred:
            watermark = rest.watermark_us if rest.watermark_us is not None else self._least_output(stage)
            self.report.residuals.append(
                Residual(rest.transform, rest.element, watermark, rest.delay_us, self.part, self.order.draining)
            )
            hold_us = min(hold_us, watermark)
        return hold_us

    def _least_output(self, stage: StagePlan) -> int:
        """Without an estimator a source promises nothing: its watermark stays where it was."""
        return self.order.output_us.get(stage.id, MIN_US)
