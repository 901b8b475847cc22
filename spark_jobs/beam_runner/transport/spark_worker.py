"""What runs in Spark's Python workers. One `Worker` per process outlives the tasks: Spark reuses its processes."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from typing import Any

from spark_jobs.beam_runner.exchange import open_parcels
from spark_jobs.beam_runner.plan import Plan
from spark_jobs.beam_runner.task import EpochOrder, Report, Worker, run_level

WORKER = Worker()


def run_task(
    plan: Plan, order: EpochOrder, level: int, part: int, packed: Iterable[bytes], *, last: bool
) -> Iterator[Any]:
    """Yields (target partition, packed piece of a parcel) for the next level; on the last level all packed reports.

    Reports of earlier levels travel along in the parcel that a partition sends to itself.
    """
    parcels, reports = [], []
    for data in packed:
        parcel, carried = pickle.loads(data)
        parcels.append(parcel)
        reports += carried
    out, report = run_level(WORKER, plan, order, level, part, open_parcels(parcels))
    reports.append(report)
    if last:
        yield pickle.dumps(reports, protocol=5)
        return
    for target in list(out):
        carried_on: list[Report] = reports if target == part else []
        for piece in out.pop(target).pieces():
            yield target, pickle.dumps((piece, carried_on), protocol=5)
            carried_on = []
