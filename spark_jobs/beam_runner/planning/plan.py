"""The plan: fused stages in levels, as data. Made by `translate`, carried to the tasks, printed by `explain`.

A stage's level is the number of shuffles before it; all stages of a level run in one task, so an epoch is one Spark
job with as many stages as there are levels. Ids are step labels, which stay the same from run to run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from spark_jobs.beam_runner.planning.script import Script

# Kinds of edges. Only GROUP, KEYED, SHUFFLE and SIDE raise the level.
FORWARD, SHUFFLE, GROUP, KEYED, SIDE, PUBLISH, IMPULSE, SCRIPT = (
    "forward",
    "shuffle",
    "group",
    "keyed",
    "side",
    "publish",
    "impulse",
    "script",
)
STATEFUL_KINDS = frozenset([GROUP, KEYED])
# What a reader sees of the elements of a side input's window. Those that no reader sees are not kept for ever.
ALL_PANES, LATEST_PANE, LAST_OF_KEY = "all panes", "the latest pane", "the last value of each key"


@dataclass(frozen=True)
class InputPlan:
    """One data input of a stage."""

    transform: str  # label of the input transform inside the stage's descriptor
    kind: str
    producers: tuple[str, ...]  # stages that write to it


@dataclass(frozen=True)
class SidePlan:
    """One side input of a ParDo in a stage."""

    transform: str
    tag: str
    label: str  # what its elements are stored under
    spec: bytes  # beam_runner_api_pb2.SideInput
    view: str
    coder: str
    producers: tuple[str, ...]
    unbounded: bool  # complete by window, not as a whole
    waits: bool  # elements of the stage's input wait for their window of it
    triggered: bool  # ready as soon as it has fired for a window
    lateness_us: int  # of the elements that look at it
    format: str  # what its stored elements depend on (state_format.py)


@dataclass(frozen=True)
class StagePlan:
    """A fused stage: everything a task needs to run its bundles."""

    id: str
    level: int
    transforms: tuple[str, ...]
    inputs: tuple[InputPlan, ...]
    sides: tuple[SidePlan, ...]
    descriptor: bytes  # beam_fn_api_pb2.ProcessBundleDescriptor
    state_format: str = ""  # what the bytes that it leaves for later epochs depend on (state_format.py)
    sources: tuple[str, ...] = ()  # splittable DoFns that run here
    publishes: tuple[str, ...] = ()  # labels of the publishers that it stages for

    @property
    def producers(self) -> tuple[str, ...]:
        return tuple(sorted({p for i in self.inputs for p in i.producers}))

    @property
    def keeps_state(self) -> bool:
        return any(i.kind in STATEFUL_KINDS for i in self.inputs)

    @property
    def splittable(self) -> bool:
        """Begins with restrictions of a splittable DoFn."""
        return bool(self.sources)

    @property
    def from_impulse(self) -> bool:
        return any(i.kind == IMPULSE for i in self.inputs)


@dataclass(frozen=True)
class Plan:
    """Stages in an order in which producers come before consumers."""

    stages: tuple[StagePlan, ...]
    components: bytes  # beam_runner_api_pb2.Components
    options: dict[str, object]
    publishers: dict[str, bytes]  # publish label -> pickled publisher
    row_types: bytes  # pickled classes of rows
    main_classes: dict[str, bytes]  # of the driver's script: name -> pickled
    script: Script | None = None  # of the pipeline's TestStream

    @property
    def levels(self) -> int:
        return 1 + max((stage.level for stage in self.stages), default=0)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Stage or side input -> what its bytes in a checkpoint depend on."""
        sides = {side.label: side.format for stage in self.stages for side in stage.sides}
        return sides | {stage.id: stage.state_format for stage in self.stages}

    def is_seen_whole(self, label: str) -> bool:
        """Whether a reader of the side input sees all of its elements."""
        return any(s.view == ALL_PANES for stage in self.stages for s in stage.sides if s.label == label)

    def stage_with(self, transform: str) -> StagePlan:
        return next(s for s in self.stages if transform in s.transforms)

    def explain(self, form: str = "text") -> str:
        """The plan for people (`text`, `mermaid`) or programs (`json`)."""
        from spark_jobs.beam_runner.planning.explain import FORMS  # it needs this module's types

        return FORMS[form](self)
