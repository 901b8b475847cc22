"""What runs in Spark's Python workers. A `Worker` a job and process outlives tasks: Spark reuses its processes."""

from __future__ import annotations

import contextlib
import gc
import logging
import pickle
import time
import warnings
from collections.abc import Callable, Iterable, Iterator

from pyspark import TaskContext
from pyspark.serializers import pack_long

from spark_jobs.beam_runner.beam_internals import current_step
from spark_jobs.beam_runner.bundles.exchange import Parcel, open_parcels
from spark_jobs.beam_runner.bundles.order import EpochOrder, WorkerWarning
from spark_jobs.beam_runner.bundles.spool import Spool
from spark_jobs.beam_runner.bundles.task import run_level
from spark_jobs.beam_runner.bundles.worker import Worker
from spark_jobs.beam_runner.planning.plan import Plan
from spark_jobs.beam_runner.transport.attempts import TaskRun

_workers: dict[str, Worker] = {}  # by job: one session may run several side by side
# What a task gathers is a list per key, none of it garbage before it ends: with Python's threshold of 700 objects the
# collector took a third of a task's time. The process is ours alone.
gc.set_threshold(50_000, 10, 10)
Sent = tuple[int | None, Parcel, list[TaskRun]]  # attempt that sent it, piece of a parcel, runs that travel along
_MOST_WARNINGS = 100  # of one task: a warning that names the element would fill the report


def worker_of(job: str, ended: Iterable[str]) -> Worker:
    """The job's worker in this process. Those of jobs that have ended are closed."""
    for other in ended:
        if other in _workers:
            with contextlib.suppress(Exception):  # of its DoFns' teardown: no concern of this job
                _workers.pop(other).close()
    return _workers.setdefault(job, Worker())


class LogFormat(logging.Formatter):
    """Of what a worker writes to stderr: names the epoch and the step."""

    epoch = -1

    def format(self, record: logging.LogRecord) -> str:
        where = ", ".join([f"epoch {self.epoch}", *filter(None, [current_step()])])
        return f"{record.levelname}:{record.name}:[{where}] {super().format(record)}"


def run_task(
    worker: Worker, plan: Plan, order: EpochOrder, level: int, part: int, sent: Iterable[Sent], *, last: bool
) -> Iterator[TaskRun | bytes]:
    """Yields the packed target partition and a pickled `Sent`, by turns; the last level yields the runs of all levels.

    Runs of earlier levels travel along in the parcel that a partition sends to itself.
    """
    LogFormat.epoch = order.epoch
    try:
        yield from _run_task(worker, plan, order, level, part, sent, last=last)
    except Exception as error:
        if not getattr(error, "__notes__", ()):  # not in a bundle, which names itself
            error.add_note(
                f"in epoch {order.epoch}, task {part} of {order.partitions}, between bundles of level {level}"
            )
        raise


def _run_task(
    worker: Worker, plan: Plan, order: EpochOrder, level: int, part: int, sent: Iterable[Sent], *, last: bool
) -> Iterator[TaskRun | bytes]:
    worker.load_classes(plan)  # of which those may be that came with the parcels
    spool, parcels, read = Spool(order.memory_bytes), [], {}
    runs: list[TaskRun] = []
    for attempt, parcel, carried in sent:
        parcels.append(parcel.kept(spool))
        runs += carried
        if attempt is not None:
            read[parcel.source] = attempt
    # Process-wide, which is safe here only: a Python worker runs one task at a time.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # once a place and task, also for what Beam wants told once a process
        out, report = run_level(worker, plan, order, level, part, open_parcels(parcels))
    del parcels, spool  # what came in goes, while what was made is sent
    report.warnings = [_portable(warning) for warning in caught[:_MOST_WARNINGS]]
    this = TaskContext.get().taskAttemptId()
    runs.append(TaskRun(level, part, this, read, report))
    if last:
        yield from runs
        return
    for target in list(out):
        carried_on = runs if target == part else []
        for piece in out.pop(target).pieces():
            yield pack_long(target)
            yield pickle.dumps((this, piece, carried_on), protocol=5)
            carried_on = []


def tell(worker: Worker, action: Callable[[Worker], None]) -> str:
    """-> the name of the worker, after `action`. Takes long enough for other processes to get their task."""
    action(worker)
    time.sleep(0.02)
    return worker.name


def _portable(caught: warnings.WarningMessage) -> WorkerWarning:
    category = caught.category
    try:
        pickle.dumps(category)
    except Exception:  # a class of the user's main module: it came here by value and has no name to go back by
        category = UserWarning
    return WorkerWarning(str(caught.message), category, caught.filename, caught.lineno)
