"""Encoded rows beyond a task's share of memory: in a temporary file until somebody reads them."""

from __future__ import annotations

import os
import tempfile
from typing import Any

MEMORY_BYTES = 128 << 20
LEAST_BYTES = 512  # smaller ones stay in memory: a place in a file costs nearly as much
_ROW_BYTES = 150  # that a row takes beside its data


class _File:
    """Gone with the process, in a folder that Spark gives its workers, which has room for shuffles."""

    def __init__(self) -> None:
        folders = [folder for folder in os.environ.get("SPARK_LOCAL_DIRS", "").split(",") if os.path.isdir(folder)]
        self._end = 0
        self._folder = folders[os.getpid() % len(folders)] if folders else tempfile.gettempdir()
        try:
            self._file = tempfile.TemporaryFile(prefix="beam-rows-", dir=self._folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._no_room(error) from error

    def append(self, data: bytes) -> int:
        """-> where it is."""
        view, at = memoryview(data), self._end
        try:
            while view:  # a write may take less than it was given
                done = os.pwrite(self._file.fileno(), view, at)
                view, at = view[done:], at + done
        except OSError as error:
            raise self._no_room(error) from error
        begin, self._end = self._end, at
        return begin

    def read(self, offset: int, length: int) -> bytes:
        parts, done = [], 0
        while done < length:  # the system reads at most 2 GiB at once
            part = os.pread(self._file.fileno(), length - done, offset + done)
            if not part:
                raise EOFError(f"a temporary file ends {length - done:,} bytes before the end of a row that it holds")
            parts.append(part)
            done += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def _no_room(self, error: OSError) -> OSError:
        return OSError(
            error.errno,
            f"{error.strerror}: rows that a task has no memory for, after {self._end >> 20:,} MiB of them in a "
            f"temporary file of {self._folder}. SPARK_LOCAL_DIRS or TMPDIR name a disk with more room",
        )


class Spilled:
    """Bytes in a file, which lives as long as one of them does. `bytes()` reads them; pickles as bytes."""

    __slots__ = ("_file", "_length", "_offset")

    def __init__(self, file: _File, offset: int, length: int) -> None:
        self._file, self._offset, self._length = file, offset, length

    def __len__(self) -> int:
        return self._length

    def __bytes__(self) -> bytes:
        return self._file.read(self._offset, self._length)

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (bytes(self),)


Data = bytes | Spilled


class Spool:
    """Holds bytes in memory up to `memory_bytes`; what comes then goes to a temporary file."""

    def __init__(self, memory_bytes: int) -> None:
        self._room = memory_bytes
        self._file: _File | None = None

    def keep(self, data: Data) -> Data:
        """-> what to hold in place of `data`."""
        if isinstance(data, Spilled):
            return data
        size = len(data)
        if size + _ROW_BYTES <= self._room or size < LEAST_BYTES:
            self._room -= size + _ROW_BYTES
            return data
        if self._file is None:
            self._file = _File()
        return Spilled(self._file, self._file.append(data), size)
