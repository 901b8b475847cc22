"""Small epochs in the driver, large ones on Spark: the same task code, state files and manifests either way.

A Spark job has a price per level, whatever it carries. An epoch whose tasks have little to do costs a fraction of it
in the driver's own process.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping

from spark_jobs.beam_runner.bundles.exchange import Parcel
from spark_jobs.beam_runner.bundles.order import EpochOrder, Report
from spark_jobs.beam_runner.errors import RunnerError, StepError
from spark_jobs.beam_runner.planning.plan import Plan
from spark_jobs.beam_runner.transport import Transport
from spark_jobs.beam_runner.transport.local import LocalTransport

SMALL_IN_A_ROW = 3  # epochs on Spark that were small before one is tried here: a source may have to connect anew
PATIENCE = 5  # an epoch here may take this many times the limit before the next goes back to Spark


class AdaptiveTransport:
    """Takes an epoch here after several on `spark` whose tasks needed less than `limit_s` seconds in all."""

    def __init__(self, spark: Transport, limit_s: float) -> None:
        self._spark, self._limit_s = spark, limit_s
        self.partitions = spark.partitions
        self._local = LocalTransport(spark.partitions)
        self._small = 0

    def run(self, plan: Plan, order: EpochOrder, first_level: int, parcels: dict[int, Parcel]) -> list[Report]:
        is_here = self._small >= SMALL_IN_A_ROW
        run = self._run_here if is_here else self._spark.run
        reports = run(plan, order, first_level, parcels)
        seconds = sum(report.seconds for report in reports)
        self._small = self._small + 1 if seconds < self._limit_s * (PATIENCE if is_here else 1) else 0
        return reports

    def _run_here(self, plan: Plan, order: EpochOrder, first_level: int, parcels: dict[int, Parcel]) -> list[Report]:
        try:
            return self._local.run(plan, order, first_level, parcels)
        except RunnerError:
            raise
        except Exception as error:  # the same to a user as from a worker
            raise StepError(f"{type(error).__name__}: {error}", traceback.format_exc()) from error

    def committed(self, bundles: Mapping[str, str]) -> None:
        self._local.committed(bundles)
        if elsewhere := {run: worker for run, worker in bundles.items() if worker not in self._local.processes}:
            self._spark.committed(elsewhere)

    def close(self) -> None:
        try:
            self._local.close()
        finally:
            self._spark.close()
