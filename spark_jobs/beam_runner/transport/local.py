"""All tasks in this process, one after the other: for tests, and for looking at a pipeline without Spark."""

from __future__ import annotations

from collections.abc import Mapping

from spark_jobs.beam_runner.bundles.exchange import Parcel, open_parcels
from spark_jobs.beam_runner.bundles.order import EpochOrder, Report
from spark_jobs.beam_runner.bundles.task import run_level
from spark_jobs.beam_runner.bundles.worker import Worker
from spark_jobs.beam_runner.planning.plan import Plan


class LocalTransport:
    """Same task code, state files and manifests as on Spark."""

    def __init__(self, partitions: int = 2) -> None:
        self.partitions = partitions
        self._workers = [Worker() for _ in range(partitions)]

    def run(self, plan: Plan, order: EpochOrder, first_level: int, parcels: dict[int, Parcel]) -> list[Report]:
        reports: list[Report] = []
        waiting = {p: [parcels[p]] for p in range(self.partitions)}
        for level in range(first_level, plan.levels):
            sent: dict[int, list[Parcel]] = {p: [] for p in range(self.partitions)}
            for p in range(self.partitions):
                out, report = run_level(self._workers[p], plan, order, level, p, open_parcels(waiting[p]))
                reports.append(report)
                for target, parcel in out.items():
                    sent[target].append(parcel)
            waiting = sent
        return reports

    @property
    def processes(self) -> set[str]:
        """Names of the workers."""
        return {worker.name for worker in self._workers}

    def committed(self, bundles: Mapping[str, str]) -> None:
        for worker in self._workers:
            worker.finalize(bundles)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
