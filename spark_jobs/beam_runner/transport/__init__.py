"""How the tasks of an epoch are run: in this process (`local`) or as one Spark job (`spark`)."""

from __future__ import annotations

from typing import Protocol

from spark_jobs.beam_runner.exchange import Parcel
from spark_jobs.beam_runner.plan import Plan
from spark_jobs.beam_runner.task import EpochOrder, Report


class Transport(Protocol):
    """Runs the levels of one epoch. A failure of any task fails the epoch; nothing of it is committed."""

    partitions: int

    def run(self, plan: Plan, order: EpochOrder, first_level: int, parcels: dict[int, Parcel]) -> list[Report]:
        """`parcels`: what the first level's tasks start with, by partition. -> the reports of all tasks."""
        ...

    def close(self) -> None:
        """Tears down what the transport started itself."""
        ...
