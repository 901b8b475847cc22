"""What a scenario gives: a figure, its peer's figure in the same run, and the target for the ratio of the two."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Figure:
    """One line of the report. `value` is in `unit`; `ratio` is ours over the peer's, both in `unit`."""

    scenario: str
    what: str
    value: float
    unit: str
    target: str = ""
    peer: str = ""
    peer_value: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.value / self.peer_value if self.peer_value else None

    def line(self) -> str:
        peer = "" if self.ratio is None else f"  {self.ratio:>6.2f} x {self.peer} ({self.peer_value:,.4g})"
        target = f"  [target: {self.target}]" if self.target else ""
        return f"{self.scenario:<12}{self.what:<44}{self.value:>12,.4g} {self.unit:<12}{peer}{target}"


def median_seconds(work: Callable[[], object], turns: int, *, warm_up: int = 1) -> float:
    """Wall-clock seconds, median of `turns` after `warm_up` runs that are not counted."""
    for _ in range(warm_up):
        work()
    return statistics.median(seconds(work) for _ in range(turns))


def seconds(work: Callable[[], object]) -> float:
    return used(time.perf_counter, work)


def used(clock: Callable[[], float], work: Callable[[], object]) -> float:
    began = clock()
    work()
    return clock() - began


def processor_seconds() -> float:
    """That this process took since its start, and all that it started: Spark's JVM and its Python workers."""
    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
            if process is not this:  # of workers that have ended
                total += times.children_user + times.children_system
    return total
