"""Whether a checkpoint is whole: every manifest that is there, and every byte of every file that they name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from spark_jobs.beam_runner.checkpoint.checkpoint import SIDE, STATE, Checkpoint
from spark_jobs.beam_runner.checkpoint.manifest import Frame, Manifest
from spark_jobs.beam_runner.checkpoint.progress import manifest_of
from spark_jobs.beam_runner.errors import CheckpointError
from spark_jobs.beam_runner.keyed.state import KeyGroup


@dataclass(frozen=True)
class EpochHealth:
    """One manifest. Whole if there are no problems."""

    epoch: int
    problems: tuple[str, ...]
    files: int
    bytes: int


@dataclass(frozen=True)
class Health:
    """Of a checkpoint, oldest epoch first."""

    epochs: tuple[EpochHealth, ...]

    @property
    def newest(self) -> int | None:
        return self.epochs[-1].epoch if self.epochs else None

    @property
    def newest_whole(self) -> int | None:
        """The epoch to roll back to; None if there is none."""
        return max((each.epoch for each in self.epochs if not each.problems), default=None)

    @property
    def is_whole(self) -> bool:
        return not any(each.problems for each in self.epochs)


def verify(checkpoint: Checkpoint) -> Health:
    """Reads everything once; may be called while the job runs. Memory: the largest file."""
    return Health(tuple(_Reading(checkpoint).epochs()))


@dataclass
class _Reading:
    checkpoint: Checkpoint
    sizes: dict[str, int] = field(default_factory=dict)  # of files that were read whole and right
    problems: dict[str, str] = field(default_factory=dict)
    frames: set[Frame] = field(default_factory=set)

    def epochs(self) -> Iterator[EpochHealth]:
        for epoch in self.checkpoint.epochs():
            health = self._epoch(epoch)
            # The job that runs meanwhile may have collected it as garbage: then it is not part of the checkpoint.
            if not health.problems or epoch in self.checkpoint.epochs():
                yield health

    def _epoch(self, epoch: int) -> EpochHealth:
        try:
            manifest = manifest_of(self.checkpoint, epoch)
        except CheckpointError as error:
            return EpochHealth(epoch, (error.message,), 0, 0)
        names = [(STATE, name) for name in sorted(manifest.state_files())]
        names += [(SIDE, name) for name in sorted(manifest.live_files() - manifest.state_files())]
        self._read_frames(manifest)
        for folder, name in names:
            self._read(folder, name)
        problems = [self.problems[name] for _, name in names if name in self.problems]
        return EpochHealth(epoch, tuple(problems), len(names), sum(self.sizes.get(name, 0) for _, name in names))

    def _read(self, folder: str, name: str) -> bytes:
        if name in self.sizes or name in self.problems:
            return b""
        try:
            data = self.checkpoint.read(folder, name)
            self.sizes[name] = len(data)
            return data
        except CheckpointError as error:
            self.problems[name] = error.message
            return b""

    def _read_frames(self, manifest: Manifest) -> None:
        """Each file once, with all frames of it that this manifest names and no earlier one did."""
        by_file: dict[str, set[Frame]] = {}
        for metas in manifest.groups.values():
            for meta in metas.values():
                for frame in meta.chain:
                    if frame not in self.frames:
                        by_file.setdefault(frame.file, set()).add(frame)
        for name, frames in sorted(by_file.items()):
            self.sizes.pop(name, None)
            data = self._read(STATE, name)
            for frame in frames if name in self.sizes else ():
                where = f"{self.checkpoint.url}/{STATE}/{name}@{frame.offset}"
                try:
                    KeyGroup().apply(data[frame.offset : frame.offset + frame.length], where)
                    self.frames.add(frame)
                except CheckpointError as error:
                    self.problems[name] = error.message
