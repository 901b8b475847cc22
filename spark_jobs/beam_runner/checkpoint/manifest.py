"""What one committed epoch leaves behind: all that the next epoch, or a restart, needs."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import astuple, dataclass, field
from typing import Any

from spark_jobs.beam_runner.clock import MAX_US, MIN_US, NEVER_US
from spark_jobs.beam_runner.errors import CheckpointError

FORMAT = 3  # 1 and 2 were before the first release
_CHECKSUM = b',"crc32":'  # last in the file


@dataclass(frozen=True)
class Frame:
    """A slice of a state file: one key group's changes, or its whole state, of one epoch."""

    file: str
    offset: int
    length: int
    snapshot: bool


@dataclass(frozen=True)
class KeyGroupMeta:
    """Where a key group's state is, and when it wants to be looked at again (microseconds)."""

    chain: tuple[Frame, ...] = ()  # a snapshot, then deltas; oldest first
    hold_us: int = MAX_US  # the stage's output watermark may not pass this
    next_event_us: int = NEVER_US  # earliest event-time timer or window expiry
    next_real_us: int = NEVER_US  # earliest processing-time timer
    input_us: int = MIN_US  # the input watermark it was last run at, where elements may wait for a side input


@dataclass(frozen=True)
class Residual:
    """The part of a splittable DoFn's restriction that is left for a later epoch."""

    transform: str  # stable label of the processing transform
    element: bytes  # encoded as that transform's input
    watermark_us: int
    due_us: int  # processing time before which it need not run; 0 = at once
    part: int  # the task that ran it: connections and buffers are warm there
    truncated: bool = False  # by a drain, which truncates each restriction once


@dataclass(frozen=True)
class SidePart:
    """What one task added to a side input in one epoch: `chunks`, or if that is None the checkpoint's file `name`."""

    name: str
    end_us: int  # greatest end of the elements' windows: past it nobody asks for them
    chunks: tuple[bytes, ...] | None = None
    size_bytes: int = 0  # of the file


@dataclass(frozen=True)
class Waiting:
    """Rows of one stage that a task put aside."""

    stage: str
    file: str
    hold_us: int  # least timestamp among them
    ready_us: dict[str, int]  # side input -> no element that waits for it is ready before its watermark is past this
    part: int
    partitions: int  # tasks there were when it was written


@dataclass(frozen=True)
class Manifest:
    """State of a job after epoch `epoch`. Keys are stable step labels, never positions in a plan."""

    epoch: int = -1
    job: str = ""  # id under which this epoch is published
    next_job: str = ""  # id under which later ones are; "" = the same. Set in a copy (see transfer.py)
    committed_us: int = 0  # by the driver's clock
    key_groups: int = 0
    fingerprint: dict[str, str] = field(default_factory=dict)  # stage or side input -> what its bytes depend on
    input_us: dict[str, int] = field(default_factory=dict)  # stage -> input watermark, for stages with state
    output_us: dict[str, int] = field(default_factory=dict)  # stage -> output watermark
    groups: dict[str, dict[int, KeyGroupMeta]] = field(default_factory=dict)
    residuals: tuple[Residual, ...] = ()
    sides: dict[str, tuple[SidePart, ...]] = field(default_factory=dict)  # side input -> its parts
    dropped_us: dict[str, int] = field(default_factory=dict)  # side input -> greatest end of the parts it has no more
    thinned: tuple[str, ...] = ()  # side inputs of whose parts only what their readers could see is left
    waiting: tuple[Waiting, ...] = ()
    staged: dict[str, tuple[bytes, ...]] = field(default_factory=dict)  # publish label -> descriptors of this epoch
    metrics: dict[str, tuple[bytes, ...]] = field(default_factory=dict)  # stage -> monitoring infos since the start
    draining: bool = False
    done: bool = False

    def state_files(self) -> set[str]:
        """Names of the state files that this manifest needs."""
        return {frame.file for metas in self.groups.values() for meta in metas.values() for frame in meta.chain}

    def live_files(self) -> set[str]:
        """Names of the data files that this manifest needs."""
        sides = {part.name for parts in self.sides.values() for part in parts if part.chunks is None}
        return self.state_files() | sides | {waiting.file for waiting in self.waiting}

    def to_json(self) -> bytes:
        data = {
            "format": FORMAT,
            "epoch": self.epoch,
            "job": self.job,
            "next_job": self.next_job,
            "committed_us": self.committed_us,
            "key_groups": self.key_groups,
            "draining": self.draining,
            "done": self.done,
            "fingerprint": self.fingerprint,
            "input_us": self.input_us,
            "output_us": self.output_us,
            "groups": {
                stage: {
                    str(group): [
                        [[f.file, f.offset, f.length, f.snapshot] for f in meta.chain],
                        meta.hold_us,
                        meta.next_event_us,
                        meta.next_real_us,
                        meta.input_us,
                    ]
                    for group, meta in metas.items()
                }
                for stage, metas in self.groups.items()
            },
            "residuals": [
                [r.transform, _text(r.element), r.watermark_us, r.due_us, r.part, r.truncated] for r in self.residuals
            ],
            "sides": {
                label: [
                    [p.name, p.end_us, None if p.chunks is None else [*map(_text, p.chunks)], p.size_bytes]
                    for p in parts
                ]
                for label, parts in self.sides.items()
            },
            "dropped_us": self.dropped_us,
            "thinned": self.thinned,
            "waiting": [list(astuple(w)) for w in self.waiting],
            "staged": {label: [_text(item) for item in items] for label, items in self.staged.items()},
            "metrics": {stage: [_text(info) for info in infos] for stage, infos in self.metrics.items()},
        }
        body = json.dumps(data, separators=(",", ":")).encode()
        return b"%s%s%d}" % (body[:-1], _CHECKSUM, zlib.crc32(body))

    @classmethod
    def from_json(cls, raw: bytes, where: str, hint: str | None = None) -> Manifest:
        """Raises CheckpointError, naming `where`, if the bytes are not a whole manifest of a format that is known."""
        try:
            data: dict[str, Any] = json.loads(raw)
            version = data["format"]
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(f"{where} is not a manifest, or not all of it.", hint=hint) from None
        if version != FORMAT:
            raise CheckpointError(
                f"{where} has manifest format {version}; this version reads {FORMAT}.",
                hint="Run the version of the project that wrote it.",
            )
        body, _, checksum = raw.rpartition(_CHECKSUM)
        if checksum != b"%d}" % zlib.crc32(body + b"}"):
            raise CheckpointError(f"{where} is damaged: its bytes are not those that were written.", hint=hint)
        return cls(
            epoch=data["epoch"],
            job=data["job"],
            next_job=data["next_job"],
            committed_us=data["committed_us"],
            key_groups=data["key_groups"],
            draining=data["draining"],
            done=data["done"],
            fingerprint=data["fingerprint"],
            input_us=data["input_us"],
            output_us=data["output_us"],
            groups={
                stage: {
                    int(group): KeyGroupMeta(tuple(Frame(*frame) for frame in chain), *times)
                    for group, (chain, *times) in metas.items()
                }
                for stage, metas in data["groups"].items()
            },
            residuals=tuple(
                Residual(transform, _bytes(element), *rest) for transform, element, *rest in data["residuals"]
            ),
            sides={
                label: tuple(
                    SidePart(name, end_us, None if chunks is None else tuple(map(_bytes, chunks)), size)
                    for name, end_us, chunks, size in parts
                )
                for label, parts in data["sides"].items()
            },
            dropped_us=data["dropped_us"],
            thinned=tuple(data["thinned"]),
            waiting=tuple(Waiting(*fields) for fields in data["waiting"]),
            staged={label: tuple(map(_bytes, items)) for label, items in data["staged"].items()},
            metrics={stage: tuple(map(_bytes, infos)) for stage, infos in data["metrics"].items()},
        )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)
