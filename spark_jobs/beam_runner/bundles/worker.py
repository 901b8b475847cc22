"""What a process that runs tasks keeps from epoch to epoch."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass

from apache_beam.portability.api import beam_fn_api_pb2, beam_runner_api_pb2

from spark_jobs.beam_runner.beam_internals import PipelineContext, load_main_classes, load_row_types
from spark_jobs.beam_runner.bundles.bundle import ProcessorPool, StageProcessor
from spark_jobs.beam_runner.bundles.order import EpochOrder
from spark_jobs.beam_runner.bundles.side_inputs import SideTable
from spark_jobs.beam_runner.bundles.splitting import Truncation
from spark_jobs.beam_runner.keyed.keyed_stage import Panes
from spark_jobs.beam_runner.keyed.state_files import StateCache
from spark_jobs.beam_runner.planning.plan import Plan, SidePlan, StagePlan


@dataclass(frozen=True)
class Unfinalized:
    """A bundle whose DoFns want to hear of the commit. Its processor is not used before."""

    run: str  # id of the task's run that it is of
    attempt: str  # of the epoch
    plan_id: str
    stage: StagePlan
    processor: StageProcessor


class Worker:
    """What a process keeps from epoch to epoch: live stages, key groups, decoded side inputs."""

    def __init__(self) -> None:
        self.pool = ProcessorPool()
        self.cache = StateCache()
        self.drivers: dict[tuple[str, str], Panes] = {}
        self._tables: dict[tuple[str, str, str, str], SideTable] = {}
        self._contexts: dict[str, PipelineContext] = {}
        self._truncations: dict[tuple[str, str], Truncation] = {}
        self._unfinalized: list[Unfinalized] = []
        self._plan_id: str | None = None

    @property
    def name(self) -> str:
        """Of the process, and of the worker in it."""
        return f"{socket.gethostname()}:{os.getpid()}:{id(self)}"

    def context(self, plan: Plan) -> PipelineContext:
        if plan.id not in self._contexts:
            components = beam_runner_api_pb2.Components.FromString(plan.components)
            self._contexts = {plan.id: PipelineContext(components)}
        return self._contexts[plan.id]

    def begin(self, plan: Plan, order: EpochOrder) -> None:
        """Keeps memory to what this plan and epoch can still use; what an earlier epoch left to be done is done."""
        if plan.id != self._plan_id:
            load_row_types(plan.row_types)
            load_main_classes(plan.main_classes)
            self._plan_id = plan.id
        self.finalize(order.committed)
        # What is left of earlier attempts lost: to another attempt of its task or epoch, or to an epoch without news.
        self._let_go(lambda bundle: bundle.attempt != order.attempt)
        self.cache.forget_stale(order.checkpoint, order.groups)
        self._tables = {key: table for key, table in self._tables.items() if key[0] == plan.id}
        self.drivers = {key: driver for key, driver in self.drivers.items() if key[0] == plan.id}

    def truncation(self, plan: Plan, stage: StagePlan) -> Truncation:
        key = (plan.id, stage.id)
        if key not in self._truncations:
            self._truncations = {key: Truncation(beam_fn_api_pb2.ProcessBundleDescriptor.FromString(stage.descriptor))}
        return self._truncations[key]

    def finalize_after_commit(self, bundles: list[Unfinalized]) -> None:
        self._unfinalized += bundles

    def finalize(self, committed: Collection[str]) -> None:
        """Calls the DoFns of bundles that are of these runs of tasks."""
        for bundle in self._unfinalized:
            if bundle.run in committed:
                bundle.processor.finalize()
        self._let_go(lambda bundle: bundle.run in committed)

    def _let_go(self, is_over: Callable[[Unfinalized], bool]) -> None:
        bundles, self._unfinalized = self._unfinalized, []
        for bundle in bundles:
            if is_over(bundle):
                self.pool.give_back(bundle.plan_id, bundle.stage, bundle.processor)
            else:
                self._unfinalized.append(bundle)

    def close(self) -> None:
        """Tears down all DoFns."""
        for bundle in self._unfinalized:
            bundle.processor.discard()
        self._unfinalized = []
        self.pool.close()

    def side_table(self, plan: Plan, stage: StagePlan, side: SidePlan) -> SideTable:
        key = (plan.id, stage.id, side.transform, side.tag)
        if key not in self._tables:
            self._tables[key] = SideTable(side, self.context(plan))
        return self._tables[key]
