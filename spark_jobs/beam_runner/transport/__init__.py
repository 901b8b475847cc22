"""How the tasks of an epoch are run: in this process (`local`) or as one Spark job (`spark`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from spark_jobs.beam_runner.bundles.exchange import Parcel
from spark_jobs.beam_runner.bundles.order import EpochOrder, Report
from spark_jobs.beam_runner.planning.plan import Plan


class Transport(Protocol):
    """Runs the levels of one epoch. A failure of any task fails the epoch; nothing of it is committed."""

    partitions: int

    def run(self, plan: Plan, order: EpochOrder, first_level: int, parcels: dict[int, Parcel]) -> list[Report]:
        """`parcels`: what the first level's tasks start with, by partition. -> the reports of all tasks."""
        ...

    def committed(self, bundles: Mapping[str, str]) -> None:
        """An epoch is committed: its bundles (id of the task's run -> name of the worker) are finalised.

        Best effort, as Beam's finalisation is: what is not reached now is finalised with the next epoch.
        """
        ...

    def close(self) -> None:
        """Tears down DoFns, and what the transport started itself."""
        ...
