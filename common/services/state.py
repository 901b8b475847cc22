"""What is known of the services from one command to the next: ports, processes, and for whom they run.

One JSON file, replaced atomically. It is written by the command that holds the lock, and read by any.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from common.errors import PipelineError
from common.services.process import ProcessId

LOCK_POLL_S = 0.1


@dataclass(frozen=True)
class Record:
    """One service as the last command left it.

    A service is wanted by nobody, and so an orphan, when it is not `pinned` (by ``services up``) and every command in
    `owners` has ended, be it by ``kill -9``.
    """

    ports: dict[str, int] = field(default_factory=dict)
    process: ProcessId | None = None
    pinned: bool = False
    owners: tuple[ProcessId, ...] = ()

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.is_running

    @property
    def is_wanted(self) -> bool:
        return self.pinned or any(owner.is_running for owner in self.owners)

    @property
    def is_orphan(self) -> bool:
        return self.is_running and not self.is_wanted

    def wanted_by(self, owner: ProcessId | None) -> Record:
        """The record with one owner more (None pins it), and without those that have ended."""
        owners = {known for known in self.owners if known.is_running} | ({owner} if owner else set())
        return replace(self, pinned=self.pinned or owner is None, owners=tuple(sorted(owners, key=lambda o: o.pid)))

    def without(self, owner_pid: int) -> Record:
        """The record after the command `owner_pid` has let go of it."""
        return replace(self, owners=tuple(owner for owner in self.owners if owner.pid != owner_pid))

    def stopped(self) -> Record:
        """The record after its process has ended: only the ports are remembered."""
        return Record(self.ports)


class StateFile:
    """The records of all services below one state folder; its methods may be called from several threads."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "services.json"
        self._lock_path = folder / "lock"
        self._mutex = threading.Lock()

    def read(self) -> dict[str, Record]:
        """All records; an absent file has none.

        Raises:
            PipelineError: ``bad_service_state`` for a file that is not ours.
        """
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return {}
        try:
            return {name: _record(fields) for name, fields in json.loads(text).items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PipelineError(
                f"{self._path} cannot be read ({error})",
                code="bad_service_state",
                hint=f"end the services that run below {self._path.parent} by hand, then remove {self._path}",
            ) from error

    def update(self, name: str, record: Record) -> None:
        """Replace one record, on disk when this returns (power cuts aside: no process survives one)."""
        with self._mutex:
            records = self.read() | {name: record}
            draft = self._path.with_suffix(".draft")
            draft.write_text(json.dumps({name: asdict(record) for name, record in records.items()}, indent=2) + "\n")
            draft.replace(self._path)

    @contextmanager
    def locked(self, timeout_s: float, on_wait: Callable[[str], None]) -> Iterator[None]:
        """Exclusive among all commands with this state folder; the lock ends with its holder, however that ends.

        Raises:
            PipelineError: ``services_locked`` when another command holds it for longer than `timeout_s`.
        """
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock_path.open("a+") as lock:
            deadline_s = time.monotonic() + timeout_s
            told = False
            while not _try_lock(lock.fileno()):
                lock.seek(0)
                holder = f"process {lock.read().strip() or 'unknown'}"
                if not told:
                    on_wait(f"waiting for {holder}, which is starting or stopping services")
                    told = True
                if time.monotonic() > deadline_s:
                    raise PipelineError(
                        f"{holder} has been starting or stopping services for more than {timeout_s:.0f} s",
                        code="services_locked",
                        hint="wait for it, or end it, and try again",
                    )
                time.sleep(LOCK_POLL_S)
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _record(fields: dict[str, Any]) -> Record:
    process = fields["process"]
    return Record(
        ports=dict(fields["ports"]),
        process=ProcessId(**process) if process else None,
        pinned=bool(fields["pinned"]),
        owners=tuple(ProcessId(**owner) for owner in fields["owners"]),
    )
