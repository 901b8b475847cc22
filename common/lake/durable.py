"""Files that survive a power cut, on the local file system or (by nature) on an object store."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence

import pyarrow as pa

from common.lake.warehouse import Lake

# One fsync costs 1-2 ms; one syncfs after 1,500 new files cost 30 ms.
SYNC_EACH_MAX_FILES = 8


def write_file(lake: Lake, path: str, data: pa.Buffer) -> None:
    """Writes a file of the warehouse, whole and durable. `path` is relative and not used before."""
    filesystem, full_path = lake.filesystem(path)
    filesystem.create_dir(os.path.dirname(full_path), recursive=True)
    with filesystem.open_output_stream(full_path) as sink:
        sink.write(data)
    if lake.is_local:
        make_durable(lake.warehouse, [path])


def read_file(lake: Lake, path: str) -> pa.Buffer | None:
    """The content of a file of the warehouse, None if it does not exist."""
    filesystem, full_path = lake.filesystem(path)
    try:
        with filesystem.open_input_file(full_path) as source:
            return source.read_buffer()
    except FileNotFoundError:
        return None


def delete_file(lake: Lake, path: str) -> None:
    """Deletes a file of the warehouse, if it exists."""
    filesystem, full_path = lake.filesystem(path)
    try:
        filesystem.delete_file(full_path)
    except FileNotFoundError:
        return


def make_durable(root: str, paths: Sequence[str]) -> None:
    """Forces new local files, given relative to `root`, and their names to disk.

    Few files one by one; many, on Linux, by one call for the whole file system.
    """
    if len(paths) > SYNC_EACH_MAX_FILES and sys.platform == "linux":
        _sync_filesystem(root)
        return
    names = {root}
    for path in paths:
        while path:  # the file and each folder above it, any of which may be new
            names.add(os.path.join(root, path))
            path = os.path.dirname(path)
    for name in names:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sync_filesystem(root: str) -> None:
    descriptor = os.open(root, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), "syncfs failed", root)
    finally:
        os.close(descriptor)
