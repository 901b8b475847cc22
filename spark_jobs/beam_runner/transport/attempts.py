"""Which attempts of its tasks an epoch is made of. Spark may run a task twice; an epoch may use only one of them.

Two attempts of a task do not do the same: a source may have more by the second time. That is harmless as long as all
who read the task's results read those of one attempt, and its report is of the same one (docs/adr/0006). Spark sees
to that within a level, by task retry or speculation. It does not when a finished level lost results that some tasks
of the next level have read already: it computes the lost ones again and keeps what was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spark_jobs.beam_runner.bundles.order import Report
from spark_jobs.beam_runner.errors import WorkerLostError


@dataclass(frozen=True)
class TaskRun:
    """One attempt of one task: its report, and the attempts whose results it read, by their partition."""

    level: int
    part: int
    attempt: int  # unique in a Spark session
    read: dict[int, int]
    report: Report


def whole_epoch(runs: Sequence[TaskRun], levels: range, partitions: int) -> list[Report]:
    """-> the reports of all tasks in order of level and partition.

    Raises WorkerLostError unless there is exactly one attempt of each task, and everybody read that one.
    """
    used = {(run.level, run.part): run.attempt for run in runs}
    tasks = {(level, part) for level in levels for part in range(partitions)}
    if len(runs) != len(tasks) or used.keys() != tasks:
        raise WorkerLostError(f"Spark returned {len(runs)} results of {len(tasks)} tasks.")
    for run in runs:
        sources = {} if run.level == levels.start else {p: used[run.level - 1, p] for p in range(partitions)}
        if run.read != sources:
            raise WorkerLostError(
                f"Level {run.level} read results of level {run.level - 1} that were lost and computed again since."
            )
    return [run.report for run in sorted(runs, key=lambda r: (r.level, r.part))]
