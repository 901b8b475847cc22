"""One fused stage in this process: Beam's BundleProcessor without gRPC, reused from bundle to bundle."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from apache_beam.portability.api import beam_fn_api_pb2

from spark_jobs.beam_runner import beam_internals as beam_parts
from spark_jobs.beam_runner.bundles.operations import InputOperation, OutputOperation
from spark_jobs.beam_runner.bundles.splitting import Splitter
from spark_jobs.beam_runner.clock import MIN_US
from spark_jobs.beam_runner.keyed.user_state import StateHandler
from spark_jobs.beam_runner.metrics import any_elements
from spark_jobs.beam_runner.planning.plan import StagePlan

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Deferred:
    """A splittable DoFn's remainder, as it came out of a bundle."""

    transform: str
    element: bytes
    watermark_us: int | None
    delay_us: int


@dataclass(frozen=True)
class BundleResult:
    deferred: list[Deferred]
    metrics: list[bytes]  # encoded MonitoringInfo
    emitted: bool  # a step emitted something, if only for the next one
    wants_finalization: bool  # `finalize` is to be called once the epoch is committed


class StageProcessor:
    """The live stage: operations built once, `run` once per bundle.

    An error in a bundle leaves the processor unusable (open DoFns, half-filled outputs): throw it away.
    """

    def __init__(self, plan: StagePlan) -> None:
        self.step = plan.id
        descriptor = beam_fn_api_pb2.ProcessBundleDescriptor.FromString(plan.descriptor)
        self.state = StateHandler()
        self.processor = beam_parts.BundleProcessor(beam_parts.CAPABILITIES, descriptor, self.state, None)
        operations = self.processor.ops
        self.inputs: list[InputOperation] = [operations[i.transform] for i in plan.inputs]
        self.outputs = [op for op in operations.values() if isinstance(op, OutputOperation)]
        self.timer_domains = beam_parts.timer_domains(descriptor)
        self._fed = {pc for i in plan.inputs for pc in descriptor.transforms[i.transform].outputs.values()}
        self._bundles = 0

    def run(self, feed: Callable[[], None], splitter: Splitter | None = None) -> BundleResult:
        """Starts the operations, calls `feed` to push elements and timers, and finishes the bundle."""
        processor = self.processor
        if self._bundles:
            processor.reset()
        self._bundles += 1
        context = beam_parts.ExecutionContext(instruction_id=f"bundle-{self._bundles}")
        processor.current_instruction_id = context.instruction_id
        try:
            processor.state_sampler.start()
            for operation in reversed(processor.ops.values()):
                operation.execution_context = context
                operation.start()
            for (transform, family), timer in processor.timers_info.items():
                timer.output_stream = beam_parts.ClosableOutputStream()
                processor.ops[transform].add_timer_info(family, timer)
            with splitter or contextlib.nullcontext():
                feed()
            for operation in processor.ops.values():
                operation.finish()
            left = [*(splitter.residuals if splitter is not None else ()), *context.delayed_applications]
            deferred = [self._deferred(op, rest) for op, rest in left]
            infos = processor.monitoring_infos()
            wants_finalization = processor.requires_finalization()
        finally:
            processor.current_instruction_id = None
            processor.state_sampler.stop_if_still_running()
        metrics = [info.SerializeToString() for info in infos]
        return BundleResult(deferred, metrics, any_elements(infos, besides=self._fed), wants_finalization)

    def let_go(self) -> None:
        """Forgets the task whose bundle it ran: an idle processor would keep what the task sent in memory."""
        for output in self.outputs:
            del output.send, output.side, output.stage_item
        self.state.begin({}, 1, None)
        self.state.use_sides({})

    def finalize(self) -> None:
        """Calls what DoFns registered with their BundleFinalizerParam in the last bundle. Beam logs what they raise."""
        self.processor.finalize_bundle()

    def _deferred(self, operation: Any, rest: Any) -> Deferred:
        proto = self.processor.delayed_bundle_application(operation, rest)
        application = proto.application
        marks = [t.seconds * 1_000_000 + t.nanos // 1_000 for t in application.output_watermarks.values()]
        delay = proto.requested_time_delay
        return Deferred(
            transform=application.transform_id,
            element=application.element,
            watermark_us=max(MIN_US, min(marks)) if marks else None,
            delay_us=max(0, delay.seconds * 1_000_000 + delay.nanos // 1_000),
        )

    def close(self) -> None:
        """Runs the teardown of every DoFn. What one raises is logged: no job fails for it, or hides why it failed."""
        for name, operation in self.processor.ops.items():
            try:
                operation.teardown()
            except Exception:
                _log.warning("The teardown of %r raised.", name, exc_info=True)


class ProcessorPool:
    """Idle processors by stage. For one thread, as all of a worker is."""

    def __init__(self) -> None:
        self._idle: dict[str, list[StageProcessor]] = {}

    def take(self, stage: StagePlan) -> StageProcessor:
        idle = self._idle.get(stage.id)
        return idle.pop() if idle else StageProcessor(stage)

    def give_back(self, stage: StagePlan, processor: StageProcessor) -> None:
        self._idle.setdefault(stage.id, []).append(processor)

    def close(self) -> None:
        """Tears down the idle processors."""
        for processors in self._idle.values():
            for processor in processors:
                processor.close()
        self._idle.clear()
