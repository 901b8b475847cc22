"""Where a checkpoint's bytes are: a file system or an object store, behind six calls.

Names are `<folder>/<file>`, relative to the checkpoint. What a store promises, and the checkpoint builds on:

- a file is there whole or not at all, and durable when the call returns;
- of several writers that `put_if_absent` one name, one succeeds, also when it had to try again;
- `names` lists everything that was there when it was called.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from spark_jobs.beam_runner.errors import CheckpointStoreError

DRAFT = ".tmp"
GCS_SCHEME = "gs://"


class CheckpointStore(Protocol):
    """One checkpoint's place. Picklable and cheap: it holds an address, clients are opened where they are used.

    Every call may raise CheckpointStoreError: no access, no such place, or no answer after bounded retries.
    """

    @property
    def url(self) -> str: ...

    def prepare(self, folders: Iterable[str]) -> None:
        """Makes the place ready for files in `folders`. Safe to repeat."""
        ...

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Writes a file unless its name is taken; -> whether this call wrote it."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Writes a file whose name nobody else uses."""
        ...

    def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        """`length` bytes from `offset`, fewer at the end of the file; -1 = all. Raises FileNotFoundError."""
        ...

    def names(self, folder: str) -> list[str]:
        """Names of the files right inside `folder` ("" = the checkpoint itself), without it, in any order."""
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Deletes files; those that are not there are no error."""
        ...


def open_store(root: str | os.PathLike[str]) -> CheckpointStore:
    """The store of an address: a path, or `gs://bucket/path`. Asks nothing of it yet."""
    address = os.fspath(root)
    if address.startswith(GCS_SCHEME):
        from spark_jobs.beam_runner.checkpoint.gcs import GcsStore

        return GcsStore(address)
    if "://" in address:
        raise CheckpointStoreError(
            f"A checkpoint cannot be at {address}: there is no store for this kind of address.",
            hint="--checkpoint /a/folder or --checkpoint gs://bucket/path",
        )
    return PosixStore(os.path.abspath(address))  # the workers of a cluster run in folders of their own


@dataclass(frozen=True)
class PosixStore:
    """A folder of a local or shared POSIX file system.

    Files are written under another name and synced, then get theirs: by a rename, or by a hard link where the name
    must be free.
    """

    url: str

    def prepare(self, folders: Iterable[str]) -> None:
        folders = list(folders)
        try:
            self._require_own(folders)
            path, grown = self.url, [self.url]  # folders with a new entry
            while not os.path.exists(path):
                path = os.path.dirname(path)
                grown.append(path)
            for folder in folders:
                os.makedirs(self._path(folder), exist_ok=True)
            for path in grown if any(folders) else ():
                _sync_folder(path)
        except OSError as error:
            raise self._unusable(error) from None

    def put_if_absent(self, name: str, data: bytes) -> bool:
        draft = self._draft(name, data)
        try:
            try:
                os.link(draft, self._path(name))
            except FileExistsError:
                if os.stat(draft).st_nlink == 1:  # else it is our own: NFS lost the first answer, and asked again
                    return False
        except FileNotFoundError:
            return False  # the draft was garbage: somebody committed this name, or a later one
        finally:
            self.delete([os.path.relpath(draft, self.url)])
        _sync_folder(os.path.dirname(self._path(name)))
        return True

    def write(self, name: str, data: bytes) -> None:
        os.rename(self._draft(name, data), self._path(name))
        _sync_folder(os.path.dirname(self._path(name)))

    def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        with open(self._path(name), "rb") as file:
            file.seek(offset)
            return file.read(length)

    def names(self, folder: str) -> list[str]:
        try:
            return [entry.name for entry in os.scandir(self._path(folder)) if entry.is_file()]
        except FileNotFoundError:
            return []
        except (NotADirectoryError, PermissionError) as error:
            raise self._unusable(error) from None

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                os.unlink(self._path(name))
            except FileNotFoundError:
                continue

    def _require_own(self, folders: Collection[str]) -> None:
        """A folder full of other things is most likely named by mistake. Notes of the caller (.json) may be there."""
        if not any(folders) or not os.path.exists(self.url):
            return
        found = set(os.listdir(self.url)) - {"lost+found"}  # which a volume of its own begins with
        others = {name for name in found if not name.startswith(".") and not name.endswith(".json")}
        if others and found.isdisjoint(folders):
            raise CheckpointStoreError(
                f"{self.url} is no checkpoint: it holds other things, such as {min(others)}.",
                hint="--checkpoint=<a folder that is empty or new>",
            )

    def _unusable(self, error: OSError) -> CheckpointStoreError:
        return CheckpointStoreError(
            f"A checkpoint cannot be at {self.url}: {error.strerror}: {error.filename}.",
            hint="--checkpoint=<a folder that is there, or can be made, and may be written>",
        )

    def _path(self, name: str) -> str:
        return os.path.join(self.url, name)

    def _draft(self, name: str, data: bytes) -> str:
        draft = self._path(f"{name}.{uuid.uuid4().hex}{DRAFT}")
        with open(draft, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return draft


def _sync_folder(path: str) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
