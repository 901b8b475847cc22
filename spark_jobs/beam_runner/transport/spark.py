"""One Spark job an epoch: a level is a stage of the job, an exchange is a shuffle of parcels, in pieces of about 1 MiB.

RDDs rather than DataFrames: an empty job of 1/2/5 levels costs 180/388/764 ms against 394/522/969 ms, because there is
no query to plan. Rows are bucketed by target in the Python task; Spark never sees an element.
"""

from __future__ import annotations

import logging
import pickle
import re
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from py4j.protocol import Py4JJavaError
from pyspark import RDD
from pyspark.errors import PythonException as PySparkPythonException
from pyspark.serializers import CPickleSerializer

from spark_jobs.beam_runner.bundles.exchange import Parcel
from spark_jobs.beam_runner.bundles.order import EpochOrder, Report, WorkerWarning
from spark_jobs.beam_runner.bundles.worker import Worker
from spark_jobs.beam_runner.errors import (
    GOES_ON,
    MORE_MEMORY,
    RunnerError,
    SessionLostError,
    WorkerLostError,
    worker_error,
)
from spark_jobs.beam_runner.options import worker_log_levels
from spark_jobs.beam_runner.planning.explain import other_steps
from spark_jobs.beam_runner.planning.plan import Plan
from spark_jobs.beam_runner.transport.attempts import whole_epoch
from spark_jobs.shipping import is_local

if TYPE_CHECKING:
    from pyspark import Broadcast, SparkContext

    from spark_jobs.beam_runner.transport.spark_worker import Sent

_log = logging.getLogger(__name__)

_TELL_ATTEMPTS = 3
_INLINE_BYTES = 512 << 10  # of an order; PySpark's limit for a function is 1 MiB
_MOST_WARNINGS = 1000  # of a job
_EXECUTORS_WITHIN_S = 60.0
_LOST_TASK = re.compile(r"Lost task (\d+)\.\d+ in stage (\d+)\.")
_STATUS_WITHIN_S = 2.0
_TRACEBACK = "Traceback (most recent call last)"
_ended: deque[str] = deque(maxlen=100)  # the last jobs that did: workers hear of it from those that come after them


class SparkTransport:
    """`partitions` = tasks per level; 0 = as many as Spark has cores when the job starts."""

    def __init__(self, context: SparkContext, partitions: int = 0, *, has_teardown: bool = False) -> None:
        self._context = context
        self.partitions = partitions or _cores(context)
        self._has_teardown, self._processes = has_teardown, set[str]()
        self._plan: Broadcast[Plan] | None = None  # a job has one
        self._warned: set[WorkerWarning] = set()
        self._job_id = uuid.uuid4().hex

    def run(self, plan: Plan, order: EpochOrder, first_level: int, parcels: dict[int, Parcel]) -> list[Report]:
        packed = self._packed(order)
        try:
            runs = self._job(plan, order, packed, first_level, parcels).collect()
        except Exception as error:
            raise self._located(_failure(self._context, error), plan, order, first_level) from None
        except BaseException:  # Ctrl-C: Spark would finish the job
            self._context.cancelJobsWithTag(self._job_id)
            raise
        finally:
            if not isinstance(packed, bytes) and _is_alive(self._context):
                packed.destroy()
        reports = whole_epoch(runs, range(first_level, plan.levels), self.partitions)
        self._processes.update(report.process for report in reports)
        self._warn(reports)
        return reports

    def _packed(self, order: EpochOrder) -> bytes | Broadcast[bytes]:
        """Small orders travel with the tasks. PySpark would broadcast a large one itself, once a level and for good."""
        packed = pickle.dumps(order, protocol=5)
        return packed if len(packed) <= _INLINE_BYTES else self._context.broadcast(packed)

    def _job(
        self,
        plan: Plan,
        order: EpochOrder,
        packed: bytes | Broadcast[bytes],
        first_level: int,
        parcels: dict[int, Parcel],
    ) -> Any:
        shared, log_levels = self._broadcast(plan), worker_log_levels(plan.options)
        self._context.setJobDescription(f"epoch {order.epoch}")
        start: list[Sent] = [(None, parcels[p], []) for p in range(self.partitions)]
        rdd: Any = self._context.parallelize(start, self.partitions)
        for level in range(first_level, plan.levels):
            if level > first_level:
                rdd = _exchanged(rdd, self.partitions)
            rdd = rdd.mapPartitionsWithIndex(
                _level_task(self._job_id, shared, packed, level, log_levels, last=level == plan.levels - 1)
            )
        return rdd

    def _located(self, failure: RunnerError, plan: Plan, order: EpochOrder, first_level: int) -> RunnerError:
        """A lost worker said nothing itself: adds what it was doing, as far as Spark can tell."""
        task = _LOST_TASK.search(failure.message)
        stages = _stages_of_job(self._context, int(task[2])) if task is not None else []
        if task is None or not stages or not isinstance(failure, WorkerLostError):
            return failure
        level = first_level + stages.index(int(task[2]))
        steps = "; ".join(", ".join([s.id, *other_steps(s)]) for s in plan.stages if s.level == level)
        return WorkerLostError(
            f"Epoch {order.epoch} lost the worker of task {task[1]} of {self.partitions} in level {level}, which runs "
            f"{steps}: {failure.message}",
            hint=f"If it was killed for its memory (the log of the machine's kernel or of Spark's executor says so): "
            f"{MORE_MEMORY}. A step, or a library that it calls, may also have ended its process. {failure.hint}",
        )

    def committed(self, bundles: Mapping[str, str]) -> None:
        committed = frozenset(bundles)
        self._tell_workers(set(bundles.values()), lambda worker: worker.finalize(committed))

    def _tell_workers(self, processes: set[str], tell: Callable[[Worker], None]) -> None:
        """Spark does not place a task in a process: a task for each, and again if one got two of them."""
        job = self._job_id

        def run_task(_: Iterable[int]) -> Iterator[str]:
            from spark_jobs.beam_runner.transport import spark_worker

            yield spark_worker.tell(spark_worker.worker_of(job, ()), tell)

        left = set(processes)
        for _ in range(_TELL_ATTEMPTS):
            tasks = self._context.parallelize(range(self.partitions), self.partitions)
            try:
                left -= set(tasks.mapPartitions(run_task).collect())
            except Exception as error:
                _log.warning(
                    "Workers could not be told that an epoch or the job has ended: %s", _failure(self._context, error)
                )
                return
            if not left:
                return

    def _warn(self, reports: list[Report]) -> None:
        """What workers warned of is said here too, once a job; the driver's filters decide whether it is shown.

        Up to a number: one that names the element would be a new one each time.
        """
        for warning in dict.fromkeys(w for report in reports for w in report.warnings):
            if warning not in self._warned and len(self._warned) < _MOST_WARNINGS:
                self._warned.add(warning)
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

    def _broadcast(self, plan: Plan) -> Broadcast[Plan]:
        if self._plan is None:
            self._context.addJobTag(self._job_id)  # of all that this thread runs from now on
            self._plan = self._context.broadcast(plan)
        return self._plan

    def close(self) -> None:
        if not _is_alive(self._context):
            return
        self._context.removeJobTag(self._job_id)
        if self._has_teardown:  # of a process that a failed task took with it, Spark leaves nothing to tear down
            self._tell_workers(self._processes, lambda worker: worker.close())
        if self._plan is not None:
            self._plan.destroy()
        _ended.append(self._job_id)


def _cores(context: SparkContext) -> int:
    """The cores that Spark has. Executors of a cluster come one by one: waits until no more have come for a second."""
    if is_local(context.master):
        return int(context.defaultParallelism)
    deadline = time.monotonic() + _EXECUTORS_WITHIN_S
    executors, since = 0, time.monotonic()
    while time.monotonic() < deadline and (not executors or time.monotonic() < since + 1):
        now = context._jsc.sc().getExecutorMemoryStatus().size() - 1  # the driver is one of them
        if now != executors:
            executors, since = now, time.monotonic()
        time.sleep(0.05)
    if not executors:
        raise SessionLostError(
            f"{context.master} gave the job no executor within {_EXECUTORS_WITHIN_S:.0f} s.",
            hint="Look at the master's page: are there workers, with free cores and enough memory?",
        )
    return int(context.defaultParallelism)


def _failure(context: SparkContext, error: Exception) -> RunnerError:
    """What went wrong in a job, as one of the runner's errors: only `WorkerLostError` is worth another attempt."""
    if not _is_alive(context):
        return SessionLostError(
            "The job's Spark session is gone: its JVM died or was stopped.",
            hint=f"Start the job again. {GOES_ON}",
        )
    # A Python traceback is that of the user's function; else the driver could not send the job, or lost its workers.
    if isinstance(error, PySparkPythonException) or not isinstance(error, Py4JJavaError) or _TRACEBACK in str(error):
        return worker_error(error)
    cause = str(error).partition("most recent failure: ")[2] or str(error).partition(": ")[2] or str(error)
    return WorkerLostError(
        cause.strip().partition("\n")[0].partition(" Consider setting")[0],
        hint=f"The logs of Spark's executors say more. {GOES_ON}",
    )


def _stages_of_job(context: SparkContext, stage: int) -> list[int]:
    """The stages of the job that `stage` is of, one a level; empty if Spark does not know, or not any more."""
    tracker = context.statusTracker()
    deadline = time.monotonic() + _STATUS_WITHIN_S  # Spark's books are a little behind
    while True:
        for job in tracker.getJobIdsForGroup(context.getLocalProperty("spark.jobGroup.id")):
            info = tracker.getJobInfo(job)
            if info is not None and stage in info.stageIds:
                return sorted(info.stageIds)
        if time.monotonic() > deadline:
            return []
        time.sleep(0.1)


def _is_alive(context: SparkContext) -> bool:
    try:
        return not context._jsc.sc().isStopped()
    except Exception:  # there is no JVM to ask, or no context in it
        return False


def _exchanged(rdd: Any, partitions: int) -> Any:
    """What tasks yielded as pairs of (packed target, pickled piece), by target.

    PySpark's own `partitionBy` gathers up to 1,000 pieces in each worker, and pickles them once more.
    """
    context = rdd.ctx
    rdd._bypass_serializer = True
    pairs = context._jvm.PairwiseRDD(rdd._jrdd.rdd()).asJavaPairRDD()
    exchanged = pairs.partitionBy(context._jvm.PythonPartitioner(partitions, 0))
    return RDD(context._jvm.PythonRDD.valueOfPair(exchanged), context, CPickleSerializer())


def _level_task(
    job: str,
    plan: Broadcast[Plan],
    order: bytes | Broadcast[bytes],
    level: int,
    log_levels: dict[str, int],
    *,
    last: bool,
) -> Callable[[int, Iterable[Sent]], Iterator[Any]]:
    ended = tuple(_ended)

    def run_task(part: int, sent: Iterable[Sent]) -> Iterator[Any]:
        # Imported in the worker: cloudpickle would copy a module global that a nested function uses.
        from spark_jobs.beam_runner.transport import spark_worker

        for name, log_level in log_levels.items():
            logging.getLogger(name).setLevel(log_level)
        unpacked = pickle.loads(order if isinstance(order, bytes) else order.value)
        worker = spark_worker.worker_of(job, ended)
        return spark_worker.run_task(worker, plan.value, unpacked, level, part, sent, last=last)

    return run_task
