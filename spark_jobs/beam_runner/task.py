"""The work of one task: all stages of one level for one partition in one epoch. The same code on every transport."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from apache_beam.options.value_provider import RuntimeValueProvider
from apache_beam.portability.api import beam_runner_api_pb2

from spark_jobs.beam_runner.beam_internals import ENCODED_IMPULSE, PipelineContext
from spark_jobs.beam_runner.bundle import BundleResult, ProcessorPool, StageProcessor
from spark_jobs.beam_runner.checkpoint import SIDE, Checkpoint
from spark_jobs.beam_runner.clock import MAX_US, MIN_US
from spark_jobs.beam_runner.exchange import EdgeId, Inbox, Outbox, Parcel, Row
from spark_jobs.beam_runner.keyed_stage import Panes, load_groups, pane_driver, run_grouping, run_stateful
from spark_jobs.beam_runner.manifest import KeyGroupMeta, Residual
from spark_jobs.beam_runner.plan import GROUP, IMPULSE, KEYED, Plan, StagePlan
from spark_jobs.beam_runner.side_inputs import state_of_sides
from spark_jobs.beam_runner.state import StateCache, StateWriter


@dataclass(frozen=True)
class EpochOrder:
    """What the driver tells every task of an epoch."""

    epoch: int
    partitions: int
    key_groups: int
    checkpoint: Checkpoint
    now_us: int
    groups: dict[str, dict[int, KeyGroupMeta]]
    input_us: dict[str, int]  # input watermarks after the previous epoch, of stages with state
    output_us: dict[str, int]
    waiting_us: dict[str, int]  # stage -> least watermark of its residuals that are not due yet
    side_files: dict[str, tuple[str, ...]]

    def previous_input_us(self, stage: str) -> int:
        return self.input_us.get(stage, MIN_US)


@dataclass
class Report:
    """What a task tells the driver. Everything in it goes into the manifest."""

    output_us: dict[str, int] = field(default_factory=dict)
    input_us: dict[str, int] = field(default_factory=dict)
    groups: dict[tuple[str, int], KeyGroupMeta] = field(default_factory=dict)
    residuals: list[Residual] = field(default_factory=list)
    staged: dict[str, list[bytes]] = field(default_factory=dict)
    sides: dict[str, list[bytes]] = field(default_factory=dict)
    metrics: dict[str, list[bytes]] = field(default_factory=dict)


class Worker:
    """What a process keeps from epoch to epoch: live stages, key groups, decoded side inputs."""

    def __init__(self) -> None:
        self.pool = ProcessorPool()
        self.cache = StateCache()
        self.drivers: dict[tuple[str, str], Panes] = {}
        self._side_chunks: dict[str, list[bytes]] = {}
        self._contexts: dict[str, PipelineContext] = {}

    def context(self, plan: Plan) -> PipelineContext:
        if plan.id not in self._contexts:
            components = beam_runner_api_pb2.Components.FromString(plan.components)
            self._contexts = {plan.id: PipelineContext(components)}
        return self._contexts[plan.id]

    def forget_stale(self, plan: Plan, order: EpochOrder) -> None:
        """Keeps memory to what this plan and epoch can still use."""
        self.cache.forget_stale(order.checkpoint, order.groups)
        named = {name for names in order.side_files.values() for name in names}
        self._side_chunks = {name: chunks for name, chunks in self._side_chunks.items() if name in named}
        self.drivers = {key: driver for key, driver in self.drivers.items() if key[0] == plan.id}

    def side_file(self, checkpoint: Checkpoint, name: str) -> list[bytes]:
        if name not in self._side_chunks:
            self._side_chunks[name] = decode_chunks(checkpoint.read(SIDE, name))
        return self._side_chunks[name]


def encode_chunks(chunks: list[bytes]) -> bytes:
    return b"".join(len(c).to_bytes(8, "little") + c for c in chunks)


def decode_chunks(data: bytes) -> list[bytes]:
    chunks, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        chunks.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return chunks


def run_level(
    worker: Worker, plan: Plan, order: EpochOrder, level: int, part: int, inbox: Inbox
) -> tuple[dict[int, Parcel], Report]:
    """Runs the level's stages in plan order. -> (parcels for the next level by partition, report)."""
    return _LevelRun(worker, plan, order, level, part, inbox).run()


class _LevelRun:
    def __init__(self, worker: Worker, plan: Plan, order: EpochOrder, level: int, part: int, inbox: Inbox) -> None:
        self.worker, self.plan, self.order, self.level, self.part = worker, plan, order, level, part
        self.level_of = {stage.id: stage.level for stage in plan.stages}
        self.here: dict[EdgeId, list[Row]] = defaultdict(list)
        self.outbox = Outbox(order.partitions, part)
        for edge, rows in inbox.rows.items():
            if self.level_of[edge[0]] == level:
                self.here[edge] += rows
            else:  # addressed to a later level: goes on in this partition
                self.outbox.blocks[part][edge] += rows
        self.watermarks = dict(inbox.watermarks)
        self.sides = inbox.sides
        self.report = Report()
        self.state_writer = StateWriter(order.checkpoint, worker.cache, order.epoch)
        self.times: dict[tuple[str, int], tuple[int, int, int]] = {}
        worker.forget_stale(plan, order)

    def run(self) -> tuple[dict[int, Parcel], Report]:
        RuntimeValueProvider.set_runtime_options(dict(self.plan.options))
        for stage in self.plan.stages:
            if stage.level == self.level:
                self._run_stage(stage)
        for (stage_id, number), chain in self.state_writer.write().items():
            self.report.groups[stage_id, number] = KeyGroupMeta(chain, *self.times[stage_id, number])
        self.report.staged = dict(self.outbox.staged)
        self.report.sides = dict(self.outbox.sides)
        parcels = {
            p: Parcel(self.part, dict(self.outbox.blocks.get(p, {})), self.watermarks, self._sides_for(p))
            for p in range(self.order.partitions)
        }
        return parcels, self.report

    def _sides_for(self, partition: int) -> dict[str, list[bytes]]:
        """Every task reads the whole of a side input: what was made here goes to all, what came in stays."""
        made = self.outbox.sides
        if partition != self.part:
            return dict(made)
        return {label: self.sides.get(label, []) + made.get(label, []) for label in {*self.sides, *made}}

    def _run_stage(self, stage: StagePlan) -> None:
        order = self.order
        input_us = min([self.watermarks.get(p, MAX_US) for p in stage.producers], default=MAX_US)
        rows = [self.here.pop((stage.id, index), []) for index in range(len(stage.inputs))]
        metas = {n: m for n, m in order.groups.get(stage.id, {}).items() if n % order.partitions == self.part}
        due = {n for n, m in metas.items() if self._is_due(m, input_us)}
        hold_us = min([m.hold_us for n, m in metas.items()], default=MAX_US)
        if any(rows) or due:
            hold_us = self._run_bundle(stage, rows, metas, due, input_us)
        watermark = min(input_us, hold_us, order.waiting_us.get(stage.id, MAX_US))
        watermark = max(watermark, order.output_us.get(stage.id, MIN_US))  # never back
        self.watermarks[stage.id] = self.report.output_us[stage.id] = watermark
        if stage.keeps_state:
            self.report.input_us[stage.id] = max(input_us, order.previous_input_us(stage.id))

    def _is_due(self, meta: KeyGroupMeta, input_us: int) -> bool:
        at_the_end = input_us == MAX_US and bool(meta.chain)
        return meta.next_event_us <= input_us or meta.next_real_us <= self.order.now_us or at_the_end

    def _run_bundle(
        self, stage: StagePlan, rows: list[list[Row]], metas: dict[int, KeyGroupMeta], due: set[int], input_us: int
    ) -> int:
        """-> the stage's hold: the least time that its state and residuals keep its output watermark at."""
        worker, order = self.worker, self.order
        processor = worker.pool.take(self.plan.id, stage)
        for output in processor.outputs:
            output.send = self._send
            output.side = lambda label, data: self.outbox.sides[label].append(data)
            output.stage_item = lambda label, data: self.outbox.staged[label].append(data)
            output.part, output.key_groups = self.part, order.key_groups
        if stage.sides:
            processor.state.use_sides(self._side_state(stage))
        kind = stage.inputs[0].kind
        if kind in (GROUP, KEYED):
            touched = due | {row[0] for row in rows[0]}
            groups = load_groups(worker.cache, order, stage.id, touched)
            old_us = order.previous_input_us(stage.id)
            if kind == GROUP:
                driver = self._pane_driver(stage, processor)
                result, times = run_grouping(processor, driver, groups, rows[0], old_us, input_us, order.now_us)
            else:
                result, times = run_stateful(
                    processor, groups, order.key_groups, rows[0], old_us, input_us, order.now_us
                )
            for number, group in groups.items():
                chain = order.groups.get(stage.id, {}).get(number, KeyGroupMeta()).chain
                self.state_writer.add(stage.id, number, chain, group)
                self.times[stage.id, number] = times[number]
            untouched = [m.hold_us for n, m in metas.items() if n not in touched]
            hold_us = min([*untouched, *(t[0] for t in times.values())], default=MAX_US)
        else:
            result = processor.run(lambda: self._feed(stage, processor, rows))
            hold_us = MAX_US
        hold_us = min(hold_us, self._keep_residuals(stage, result))
        self.report.metrics.setdefault(stage.id, []).extend(result.metrics)
        worker.pool.give_back(self.plan.id, stage, processor)
        return hold_us

    def _feed(self, stage: StagePlan, processor: StageProcessor, rows: list[list[Row]]) -> None:
        for plan, operation, some in zip(stage.inputs, processor.inputs, rows, strict=True):
            for _, _, chunk in some:
                operation.push(operation.decode(ENCODED_IMPULSE if plan.kind == IMPULSE else chunk))

    def _send(self, edge: EdgeId, partition: int, row: Row) -> None:
        if self.level_of[edge[0]] == self.level:
            self.here[edge].append(row)
        else:
            self.outbox.send(edge, partition, row)

    def _pane_driver(self, stage: StagePlan, processor: StageProcessor) -> Panes:
        key = (self.plan.id, stage.id)
        if key not in self.worker.drivers:
            self.worker.drivers[key] = pane_driver(processor.inputs[0])
        return self.worker.drivers[key]

    def _side_state(self, stage: StagePlan) -> dict[bytes, bytes]:
        chunks: dict[str, list[bytes]] = {}
        for side in stage.sides:
            stored = [
                chunk
                for name in self.order.side_files.get(side.label, ())
                for chunk in self.worker.side_file(self.order.checkpoint, name)
            ]
            chunks[side.label] = stored + self.sides.get(side.label, [])
        return state_of_sides(stage, self.worker.context(self.plan), chunks)

    def _keep_residuals(self, stage: StagePlan, result: BundleResult) -> int:
        hold_us = MAX_US
        for rest in result.deferred:
            watermark = rest.watermark_us if rest.watermark_us is not None else self._least_output(stage)
            due_us = self.order.now_us + rest.delay_us if rest.delay_us else 0
            self.report.residuals.append(Residual(rest.transform, rest.element, watermark, due_us, self.part))
            hold_us = min(hold_us, watermark)
        return hold_us

    def _least_output(self, stage: StagePlan) -> int:
        """Without an estimator a source promises nothing: its watermark stays where it was."""
        return self.order.output_us.get(stage.id, MIN_US)
