"""What a scenario gives: a figure, its peer's figure in the same run, and the target for the ratio of the two."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import psutil

JVM, PYTHON = "JVM", "Python"


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
        peer = "" if self.ratio is None else f"  {self.ratio:>6.2f} x {self.peer} ({number(self.peer_value or 0)})"
        target = f"  [target: {self.target}]" if self.target else ""
        return f"{self.scenario:<12}{self.what:<50}{number(self.value):>9} {self.unit}{peer}{target}"


def number(value: float) -> str:
    """To four digits, or all of a larger one's."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


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


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds, and processor seconds by kind of process."""

    wall: float
    kinds: dict[str, float]

    @property
    def cores(self) -> float:
        return sum(self.kinds.values())


def median_costs(works: Sequence[Callable[[], object]], turns: int) -> list[Cost]:
    """Of each; they take turns, to meet the same load. Medians of `turns` after two that are not counted."""
    walls: list[list[float]] = [[] for _ in works]
    processors: list[list[dict[str, float]]] = [[] for _ in works]
    for turn in range(turns + 2):
        for index, work in enumerate(works):
            before = processor_seconds_by_kind()
            wall = seconds(work)
            if turn >= 2:
                after = processor_seconds_by_kind()
                walls[index].append(wall)
                processors[index].append({kind: after[kind] - before[kind] for kind in after})
    return [Cost(statistics.median(wall), medians(of)) for wall, of in zip(walls, processors, strict=True)]


def medians(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    return {kind: statistics.median(sample[kind] for sample in samples) for kind in samples[0]}


def processor_seconds() -> float:
    """That this process took since its start, and all that it started: Spark's JVM and its Python workers."""
    return sum(processor_seconds_by_kind().values())


def processor_seconds_by_kind() -> dict[str, float]:
    this = psutil.Process()

    def taken(process: psutil.Process) -> float:
        times = process.cpu_times()
        ended = times.children_user + times.children_system  # of workers
        return times.user + times.system + (ended if process != this else 0)

    return by_kind(this, taken)


def proportional_mib(root: psutil.Process) -> dict[str, float]:
    """Resident memory (PSS) of a process and all that it started: a page that n processes share counts 1/n for each."""
    return by_kind(root, lambda process: process.memory_full_info().pss / (1 << 20))


def by_kind(root: psutil.Process, amount: Callable[[psutil.Process], float]) -> dict[str, float]:
    """Sums over the JVMs and over the other processes, which are Python, below `root` and with it."""
    sums = {JVM: 0.0, PYTHON: 0.0}
    with contextlib.suppress(psutil.NoSuchProcess):  # it may end at any time
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                sums[JVM if process.name() == "java" else PYTHON] += amount(process)
    return sums


def largest(samples: Iterable[dict[str, float]]) -> dict[str, float]:
    """The sample with the largest sum."""
    return max(samples, key=lambda sample: sum(sample.values()))
