"""One Spark job an epoch: a level is a stage of the job, an exchange is a shuffle of one record per pair of tasks.

RDDs rather than DataFrames: an empty job of 1/2/5 levels costs 180/388/764 ms against 394/522/969 ms, because there is
no query to plan. Rows are bucketed by target in the Python task; Spark moves whole parcels and never sees an element.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from spark_jobs.beam_runner.errors import RunnerError, StepError
from spark_jobs.beam_runner.exchange import Parcel
from spark_jobs.beam_runner.plan import Plan
from spark_jobs.beam_runner.task import EpochOrder, Report, WorkerWarning

if TYPE_CHECKING:
    from pyspark import Broadcast, SparkContext

Message = tuple[Parcel, list[Report]]


class SparkTransport:
    """`partitions` = tasks per level; 0 = as many as Spark has cores."""

    def __init__(self, context: SparkContext, partitions: int = 0) -> None:
        self._context = context
        _require_whole_epochs(context)
        self.partitions = partitions or context.defaultParallelism
        self._plan: tuple[str, Broadcast[Plan]] | None = None
        self._warned: set[WorkerWarning] = set()

    def run(self, plan: Plan, order: EpochOrder, first_level: int, parcels: dict[int, Parcel]) -> list[Report]:
        shared = self._broadcast(plan)
        self._context.setJobDescription(f"epoch {order.epoch}")
        start = [_pack((parcels[p], [])) for p in range(self.partitions)]
        rdd: Any = self._context.parallelize(start, self.partitions)
        for level in range(first_level, plan.levels):
            if level > first_level:
                rdd = rdd.partitionBy(self.partitions, int).values()
            rdd = rdd.mapPartitionsWithIndex(_level_task(shared, order, level, last=level == plan.levels - 1))
        try:
            collected = rdd.collect()
        except Exception as error:
            raise StepError.from_spark(error) from None
        reports: list[Report] = [report for packed in collected for report in pickle.loads(packed)]
        self._warn(reports)
        return reports

    def _warn(self, reports: list[Report]) -> None:
        """What workers warned of is said here too, once a job; the driver's filters decide whether it is shown."""
        for warning in dict.fromkeys(w for report in reports for w in report.warnings):
            if warning not in self._warned:
                self._warned.add(warning)
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

    def _broadcast(self, plan: Plan) -> Broadcast[Plan]:
        if self._plan is None or self._plan[0] != plan.id:
            self._plan = (plan.id, self._context.broadcast(plan))
        return self._plan[1]

    def close(self) -> None:
        if self._plan is not None:
            self._plan[1].unpersist()


def _require_whole_epochs(context: SparkContext) -> None:
    """A lost shuffle output must fail the epoch: Spark would recompute it, but no source reads the same twice."""
    conf = context.getConf()
    attempts = conf.get("spark.stage.maxConsecutiveAttempts", "4")
    is_local = str(conf.get("spark.master", "")).startswith("local")
    if not is_local and (attempts != "1" or conf.get("spark.speculation", "false") != "false"):
        raise RunnerError(
            "The Spark session may recompute parts of an epoch, which would not be exactly-once.",
            hint="Start it with spark.stage.maxConsecutiveAttempts=1 and spark.speculation=false.",
        )


def _level_task(
    plan: Broadcast[Plan], order: EpochOrder, level: int, *, last: bool
) -> Callable[[int, Iterable[bytes]], Iterator[Any]]:
    def run_task(part: int, packed: Iterable[bytes]) -> Iterator[Any]:
        # Imported in the worker: cloudpickle would copy a module global that a nested function uses.
        from spark_jobs.beam_runner.transport import spark_worker

        return spark_worker.run_task(plan.value, order, level, part, packed, last=last)

    return run_task


def _pack(message: Message) -> bytes:
    return pickle.dumps(message, protocol=5)
