"""The folder that a job's exactly-once promise rests on: manifests, state files, side inputs.

    <root>/epochs/000000012.json     one manifest per committed epoch
    <root>/state/000000012-<id>.kg   key-group state written by one task in one epoch
    <root>/side/000000000-<id>.rows  side-input elements of one epoch

Files are written whole and synced before they get their name. A manifest gets its name by a hard link, which fails
if the name exists: of two drivers that run the same epoch one commits and the other is fenced.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from spark_jobs.beam_runner.errors import CheckpointError, FencedError

EPOCHS, STATE, SIDE = "epochs", "state", "side"


class Checkpoint:
    """Access to one checkpoint folder on a local or shared POSIX file system. Picklable: tasks open it by path."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def prepare(self) -> None:
        """Makes the folders. Safe to repeat."""
        for name in (EPOCHS, STATE, SIDE):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    # ---- manifests
    def last_epoch(self) -> int | None:
        """Number of the newest committed epoch, None before the first."""
        folder = self.root / EPOCHS
        numbers = [int(name[:-5]) for name in os.listdir(folder) if name.endswith(".json")] if folder.exists() else []
        return max(numbers, default=None)

    def read_manifest(self, epoch: int) -> bytes:
        return self._manifest_path(epoch).read_bytes()

    def commit_manifest(self, epoch: int, data: bytes) -> None:
        """The commit point. Raises FencedError if the epoch was committed by somebody else."""
        final = self._manifest_path(epoch)
        draft = final.with_name(f"{final.name}.{uuid.uuid4().hex}.tmp")
        _write_synced(draft, data)
        try:
            os.link(draft, final)
        except FileExistsError:
            raise FencedError(
                f"Epoch {epoch} of {self.root} was committed by another driver; this one stops.",
                hint="Only one job may run on a checkpoint.",
            ) from None
        finally:
            draft.unlink(missing_ok=True)
        _sync_folder(final.parent)
        try:
            self.require_newest(epoch)  # old manifests are deleted: a name that is free may still be long past
        except FencedError:
            final.unlink()
            raise

    def require_newest(self, epoch: int) -> None:
        """Raises FencedError if a later epoch than `epoch` was committed: the newest manifest is never deleted."""
        newest = self.last_epoch()
        if newest != epoch:
            raise FencedError(
                f"Epoch {newest} of {self.root} was committed by another driver; this one was at {epoch} and stops.",
                hint="Only one job may run on a checkpoint.",
            )

    def _manifest_path(self, epoch: int) -> Path:
        return self.root / EPOCHS / f"{epoch:09d}.json"

    # ---- data files
    def write(self, folder: str, epoch: int, suffix: str, data: bytes) -> str:
        """Writes a new file and returns its name, which no other attempt shares."""
        name = f"{epoch:09d}-{uuid.uuid4().hex[:16]}.{suffix}"
        final = self.root / folder / name
        draft = final.with_name(name + ".tmp")
        _write_synced(draft, data)
        os.rename(draft, final)
        _sync_folder(final.parent)
        return name

    def read(self, folder: str, name: str, offset: int = 0, length: int = -1) -> bytes:
        path = self.root / folder / name
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                data = file.read(length)
        except FileNotFoundError:
            raise CheckpointError(
                f"The manifest names {path}, which is missing.", hint="Restore the file or start from a new checkpoint."
            ) from None
        if 0 <= length != len(data):
            raise CheckpointError(f"{path} ends early: {len(data)} of {length} bytes at {offset}.")
        return data

    def collect_garbage(self, epoch: int, live: set[str], keep_manifests: int = 8) -> None:
        """Deletes data files of epochs before `epoch` that no manifest still in use names, and old manifests."""
        self.require_newest(epoch)
        for folder in (STATE, SIDE):
            for name in os.listdir(self.root / folder):
                if name not in live and name[:9].isdigit() and int(name[:9]) < epoch:
                    (self.root / folder / name).unlink(missing_ok=True)
        for name in os.listdir(self.root / EPOCHS):
            if name.endswith(".tmp") or (name.endswith(".json") and int(name[:-5]) <= epoch - keep_manifests):
                (self.root / EPOCHS / name).unlink(missing_ok=True)


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
