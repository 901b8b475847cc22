"""What a job's exactly-once promise rests on: manifests, state files, side inputs, in one place.

    <root>/epochs/000000012.json              one manifest per committed epoch
    <root>/epochs/driver-000000003            the third driver was started: older ones stop
    <root>/state/000000012-<id>-<crc>.kg      key-group state written by one task in one epoch
    <root>/side/000000000-<id>-<crc>.rows     side-input elements of one epoch

A manifest is created only if its name is free: of two drivers that run the same epoch one commits. Whichever that was,
the driver that was started last goes on, and the other is fenced. Data files never change, and their names hold the
CRC-32 of their bytes. How a place does this is the store's business (store.py).
"""

from __future__ import annotations

import os
import re
import uuid
import zlib
from collections.abc import Iterable
from pathlib import Path

from spark_jobs.beam_runner.checkpoint.store import DRAFT, open_store
from spark_jobs.beam_runner.errors import SHARED_PLACE, CheckpointError, FencedError, way_back

EPOCHS, STATE, SIDE = "epochs", "state", "side"

# Manifests that garbage collection leaves, with all files that they name: so far back a job can be rolled. What only
# they name costs the deltas of as many epochs.
KEEP_MANIFESTS = 8

_DRIVER = "driver-"
_CHECKSUM = re.compile(r"-([0-9a-f]{8})\.\w+$")


class Checkpoint:
    """Access to one checkpoint: a path, or `gs://bucket/path`. Picklable: tasks open it by address.

    `is_shared`: all tasks see the same files. If not, as in a batch on a cluster without `--checkpoint`, none can be
    written: what little a batch leaves for other tasks travels with the job.
    """

    def __init__(self, root: str | os.PathLike[str], *, is_shared: bool = True) -> None:
        self.store, self._is_shared = open_store(root), is_shared
        self._driver = 0  # number of the driver that this is; 0 = of nobody

    @property
    def url(self) -> str:
        return self.store.url

    @property
    def root(self) -> Path:
        """The folder of a checkpoint on a file system."""
        return Path(self.url)

    def prepare(self) -> None:
        """Makes the place ready. Safe to repeat. Raises CheckpointStoreError if it cannot be used."""
        self.store.prepare((EPOCHS, STATE, SIDE))

    # ---- manifests
    def epochs(self) -> list[int]:
        """Numbers of the manifests that are there, oldest first."""
        return _epochs_in(self.store.names(EPOCHS))

    def last_epoch(self) -> int | None:
        """Number of the newest committed epoch, None before the first."""
        return max(self.epochs(), default=None)

    def read_manifest(self, epoch: int) -> bytes:
        """Raises CheckpointError if there is no such manifest."""
        try:
            return self.store.read(_manifest_name(epoch))
        except FileNotFoundError:
            raise CheckpointError(
                f"{self.url} has no manifest of epoch {epoch}; it has {', '.join(map(str, self.epochs())) or 'none'}.",
                hint=f"python -m spark_jobs.beam_runner checkpoint show {self.url}",
            ) from None

    # ---- drivers
    def take_over(self) -> None:
        """From now on older drivers are fenced: when they commit, publish, or look (`require_newest`)."""
        names = self.store.names(EPOCHS)
        number = _newest_driver(names) + 1
        while not self.store.put_if_absent(_driver_name(number), b""):
            number += 1
        self._driver = number
        self.store.delete(f"{EPOCHS}/{name}" for name in names if name.startswith(_DRIVER))  # all of them older

    def is_newest_driver(self) -> bool:
        return _newest_driver(self.store.names(EPOCHS)) <= self._driver

    def commit_manifest(self, epoch: int, data: bytes) -> None:
        """The commit point. Raises FencedError if the epoch, or a later one, was committed by somebody else.

        Also if a newer driver was started meanwhile: then this epoch is the last of the older one.
        """
        if not self.store.put_if_absent(_manifest_name(epoch), data):
            raise FencedError(
                f"Epoch {epoch} of {self.url} was committed by another driver; this one stops.",
                hint="Only one job may run on a checkpoint.",
            )
        try:
            self.require_newest(epoch)
        except FencedError:
            if self.last_epoch() != epoch:  # old manifests are deleted: a name that is free may still be long past
                self.store.delete([_manifest_name(epoch)])
            raise

    def require_newest(self, epoch: int) -> None:
        """Raises FencedError if a later epoch than `epoch` was committed: the newest manifest is never deleted.

        Also if a driver was started on the checkpoint after this one.
        """
        names = self.store.names(EPOCHS)
        if _newest_driver(names) > self._driver > 0:
            raise FencedError(
                f"Another driver was started on {self.url}; this one, at epoch {epoch}, stops.",
                hint="Only one job may run on a checkpoint.",
            )
        newest = max(_epochs_in(names), default=None)
        if newest != epoch:
            raise FencedError(
                f"Epoch {newest} of {self.url} was committed by another driver; this one was at {epoch} and stops.",
                hint="Only one job may run on a checkpoint.",
            )

    # ---- data files
    def write(self, folder: str, epoch: int, suffix: str, data: bytes) -> str:
        """Writes a new file and returns its name, which no other attempt shares.

        Raises CheckpointError if the place is not shared.
        """
        if not self._is_shared:
            raise CheckpointError(
                f"A task has {len(data):,} bytes for others, more than travels with the job, and there is no place "
                "that all workers share.",
                hint=SHARED_PLACE,
            )
        name = f"{epoch:09d}-{uuid.uuid4().hex[:16]}-{zlib.crc32(data):08x}.{suffix}"
        self.store.write(f"{folder}/{name}", data)
        return name

    def read(self, folder: str, name: str, offset: int = 0, length: int = -1) -> bytes:
        """Raises CheckpointError if the file is missing or short, or, if read whole, has other bytes than written."""
        where = f"{self.url}/{folder}/{name}"
        try:
            data = self.store.read(f"{folder}/{name}", offset, length)
        except FileNotFoundError:
            raise CheckpointError(f"The manifest names {where}, which is missing.", hint=way_back(self.url)) from None
        if 0 <= length != len(data):
            raise CheckpointError(
                f"{where} ends early: {len(data)} of {length} bytes at {offset}.", hint=way_back(self.url)
            )
        checksum = _CHECKSUM.search(name)
        if length < 0 and checksum and zlib.crc32(data) != int(checksum[1], 16):
            raise CheckpointError(
                f"{where} is damaged: its bytes are not those that were written.", hint=way_back(self.url)
            )
        return data

    def collect_garbage(self, epoch: int, live: set[str], keep_manifests: int = KEEP_MANIFESTS) -> None:
        """Deletes old manifests, then data files of epochs before `epoch` that are not in `live`.

        Manifests first: one that is there has all its files, whenever this is interrupted. `live` has to hold what
        the manifests that stay name (`Manifest.live_files`).
        """
        self.require_newest(epoch)
        self.store.delete(_manifest_name(old) for old in self.epochs() if old <= epoch - keep_manifests)
        self.store.delete(  # a draft of a later epoch may be another driver's, which is about to commit it
            f"{EPOCHS}/{name}"
            for name in self.store.names(EPOCHS)
            if name.endswith(DRAFT) and name[:9].isdigit() and int(name[:9]) <= epoch
        )
        for folder in (STATE, SIDE):
            self.store.delete(
                f"{folder}/{name}"
                for name in self.store.names(folder)
                if name not in live and name[:9].isdigit() and int(name[:9]) < epoch
            )


def _manifest_name(epoch: int) -> str:
    return f"{EPOCHS}/{epoch:09d}.json"


def _epochs_in(names: Iterable[str]) -> list[int]:
    return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())


def _driver_name(number: int) -> str:
    return f"{EPOCHS}/{_DRIVER}{number:09d}"


def _newest_driver(names: Iterable[str]) -> int:
    numbers = (name.removeprefix(_DRIVER) for name in names if name.startswith(_DRIVER))
    return max((int(number) for number in numbers if number.isdigit()), default=0)
