"""Encoded rows beyond a task's share of memory: in a temporary file until somebody reads them."""

from __future__ import annotations

import os
import tempfile
from typing import IO, Any

MEMORY_BYTES = 128 << 20
LEAST_BYTES = 4 << 10  # smaller ones stay in memory: a place in a file costs as much
_ROW_BYTES = 150  # that a row takes beside its data


def temporary_file(prefix: str) -> IO[bytes]:
    """Gone with the process, in the folder that Spark gives its workers, which has room for shuffles."""
    folder = os.environ.get("SPARK_LOCAL_DIRS", "").partition(",")[0]
    return tempfile.TemporaryFile(prefix=prefix, dir=folder if os.path.isdir(folder) else None, buffering=0)


class Spilled:
    """Bytes in a file, which lives as long as one of them does. `bytes()` reads them; pickles as bytes."""

    __slots__ = ("_file", "_length", "_offset")

    def __init__(self, file: IO[bytes], offset: int, length: int) -> None:
        self._file, self._offset, self._length = file, offset, length

    def __len__(self) -> int:
        return self._length

    def __bytes__(self) -> bytes:
        parts, done = [], 0
        while done < self._length:  # the system reads at most 2 GiB at once
            part = os.pread(self._file.fileno(), self._length - done, self._offset + done)
            if not part:
                raise EOFError(f"a temporary file ends {self._length - done:,} bytes before a row that it holds")
            parts.append(part)
            done += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (bytes(self),)


class Spool:
    """Holds bytes in memory up to `memory_bytes`; what comes then goes to a temporary file."""

    def __init__(self, memory_bytes: int) -> None:
        self._room = memory_bytes
        self._file: IO[bytes] | None = None
        self._end = 0

    def keep(self, data: bytes | Spilled) -> bytes | Spilled:
        """-> what to hold in place of `data`."""
        if isinstance(data, Spilled):
            return data
        self._room -= len(data) + _ROW_BYTES
        if self._room >= 0 or len(data) < LEAST_BYTES:
            return data
        if self._file is None:
            self._file = temporary_file("beam-rows-")
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._end += len(data)
        return Spilled(self._file, self._end - len(data), len(data))
