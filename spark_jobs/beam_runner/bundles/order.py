"""What the driver tells the tasks of an epoch, and what they tell the driver."""

from __future__ import annotations

from dataclasses import dataclass, field

from spark_jobs.beam_runner.checkpoint.checkpoint import Checkpoint
from spark_jobs.beam_runner.checkpoint.manifest import KeyGroupMeta, Residual, SidePart, Waiting
from spark_jobs.beam_runner.clock import MIN_US


@dataclass(frozen=True)
class EpochOrder:
    """What the driver tells every task of an epoch."""

    epoch: int
    partitions: int
    key_groups: int
    checkpoint: Checkpoint
    now_us: int
    groups: dict[str, dict[int, KeyGroupMeta]]
    input_us: dict[str, int]  # input watermarks after the previous epoch, of stages with state
    output_us: dict[str, int]
    waiting_us: dict[str, int]  # stage -> least watermark of its residuals that are not due yet
    sides: dict[str, tuple[SidePart, ...]]
    folds: dict[str, tuple[SidePart, ...]]  # newest parts of side inputs that become one in this epoch
    folded: dict[str, frozenset[str]]  # part -> names of those that were folded to it
    waiting: tuple[Waiting, ...]
    keep_sides: bool  # later epochs will read what this one adds to side inputs
    split_after_s: float | None  # restrictions that run longer are cut
    draining: bool
    memory_bytes: int  # rows that a task receives, or sends, and holds in memory; more are in a file
    attempt: str  # unique to each run of the epoch
    committed: frozenset[str]  # the last epoch's bundles that waited for its commit, by the reports' ids

    def previous_input_us(self, stage: str) -> int:
        return self.input_us.get(stage, MIN_US)


@dataclass(frozen=True)
class WorkerWarning:
    """A Python warning that was issued in a worker's process."""

    message: str
    category: type[Warning]
    filename: str
    lineno: int


@dataclass
class Report:
    """What a task tells the driver. Its last fields do not go into the manifest, everything else does."""

    output_us: dict[str, int] = field(default_factory=dict)
    input_us: dict[str, int] = field(default_factory=dict)
    groups: dict[tuple[str, int], KeyGroupMeta] = field(default_factory=dict)
    residuals: list[Residual] = field(default_factory=list)  # due by how long they may rest: clocks differ
    staged: dict[str, list[bytes]] = field(default_factory=dict)
    sides: dict[str, list[SidePart]] = field(default_factory=dict)
    folded: dict[str, SidePart] = field(default_factory=dict)  # what the order's folds became
    waiting: list[Waiting] = field(default_factory=list)
    released: list[str] = field(default_factory=list)  # files of rows that waited and do so no more
    metrics: dict[str, list[bytes]] = field(default_factory=dict)
    emitted: bool = False  # a step of it emitted something
    process: str = ""  # name of the worker
    seconds: float = 0.0  # that the task took, without Spark's part
    awaits_commit: str = ""  # id of this run's bundles with DoFns that wait for the commit; "" = there are none
    warnings: list[WorkerWarning] = field(default_factory=list)
