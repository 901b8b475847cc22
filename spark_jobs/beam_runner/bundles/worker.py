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
    stage: StagePlan
    processor: StageProcessor


class Worker:
    """What a process keeps from epoch to epoch of one job: live stages, key groups, decoded side inputs."""

    def __init__(self) -> None:
        self.pool = ProcessorPool()
        self.cache = StateCache()
        self.drivers: dict[str, Panes] = {}  # by stage
        self._tables: dict[tuple[str, str, str], SideTable] = {}
        self._truncations: dict[str, Truncation] = {}
        self._unfinalized: list[Unfinalized] = []
        self._context: PipelineContext | None = None
        self._has_classes = False
        self._attempt = ""

    @property
    def name(self) -> str:
        """Of the process, and of the worker in it."""
        return f"{socket.gethostname()}:{os.getpid()}:{id(self)}"

    def context(self, plan: Plan) -> PipelineContext:
        if self._context is None:
            self._context = PipelineContext(beam_runner_api_pb2.Components.FromString(plan.components))
        return self._context

    def load_classes(self, plan: Plan) -> None:
        """So that what was pickled by their names can be read."""
        if not self._has_classes:
            load_row_types(plan.row_types)
            load_main_classes(plan.main_classes)
            self._has_classes = True

    def begin(self, plan: Plan, order: EpochOrder) -> None:
        """Keeps memory to what this epoch can still use; what an earlier one left to be done is done."""
        self.load_classes(plan)
        self.finalize(order.committed)
        # What is left of earlier attempts lost: to another attempt of its task or epoch, or to an epoch without news.
        self._let_go(lambda bundle: bundle.attempt != order.attempt)
        if self._attempt != order.attempt:  # once: what this attempt's tasks keep, the last manifest does not name
            self._attempt = order.attempt
            self.cache.forget_stale(order.checkpoint, order.groups)

    def truncation(self, stage: StagePlan) -> Truncation:
        if stage.id not in self._truncations:
            descriptor = beam_fn_api_pb2.ProcessBundleDescriptor.FromString(stage.descriptor)
            self._truncations[stage.id] = Truncation(descriptor)
        return self._truncations[stage.id]

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
                self.pool.give_back(bundle.stage, bundle.processor)
            else:
                self._unfinalized.append(bundle)

    def close(self) -> None:
        """Tears down all DoFns. Raises nothing."""
        for bundle in self._unfinalized:
            bundle.processor.close()
        self._unfinalized = []
        self.pool.close()

    def side_table(self, plan: Plan, stage: StagePlan, side: SidePlan) -> SideTable:
        key = (stage.id, side.transform, side.tag)
        if key not in self._tables:
            self._tables[key] = SideTable(side, self.context(plan))
        return self._tables[key]
