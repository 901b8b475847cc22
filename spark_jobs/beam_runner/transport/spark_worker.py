"""What runs in Spark's Python workers. One `Worker` per process outlives the tasks: Spark reuses its processes."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from spark_jobs.beam_runner.exchange import open_parcels
from spark_jobs.beam_runner.plan import Plan
from spark_jobs.beam_runner.task import EpochOrder, Report, Worker, WorkerWarning, run_level

WORKER = Worker()
_MOST_WARNINGS = 100  # of one task: a warning that names the element would fill the report


def run_task(
    plan: Plan, order: EpochOrder, level: int, part: int, packed: Iterable[bytes], *, last: bool
) -> Iterator[Any]:
    """Yields (target partition, packed message) for the next level; on the last level the packed reports of all levels.

    Reports of earlier levels travel along in the parcel that a partition sends to itself.
    """
    parcels, reports = [], []
    for data in packed:
        parcel, carried = pickle.loads(data)
        parcels.append(parcel)
        reports += carried
    # Process-wide, which is safe here only: a Python worker runs one task at a time.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # once a place and task, also for what Beam wants told once a process
        out, report = run_level(WORKER, plan, order, level, part, open_parcels(parcels))
    report.warnings = [_portable(warning) for warning in caught[:_MOST_WARNINGS]]
    reports.append(report)
    if last:
        yield pickle.dumps(reports, protocol=5)
        return
    for target, parcel in out.items():
        carried_on: list[Report] = reports if target == part else []
        yield target, pickle.dumps((parcel, carried_on), protocol=5)


def _portable(caught: warnings.WarningMessage) -> WorkerWarning:
    category = caught.category
    try:
        pickle.dumps(category)
    except Exception:  # a class of the user's main module: it came here by value and has no name to go back by
        category = UserWarning
    return WorkerWarning(str(caught.message), category, caught.filename, caught.lineno)
