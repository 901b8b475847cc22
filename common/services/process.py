"""Background processes that outlive the command that started them, and are never mistaken for another one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

# create_time() is derived from the boot time, which the kernel recomputes when the clock is adjusted. No system hands
# out a pid again this soon.
CLOCK_TOLERANCE_S = 2.0
KILL_GRACE_S = 5.0
POLL_S = 0.02
# A service needs no more than this, and must not see the secrets or the JAVA_TOOL_OPTIONS of the command's environment.
INHERITED_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")


@dataclass(frozen=True)
class ProcessId:
    """A pid with the time its process began: the pid of a dead process, given to another one, does not match."""

    pid: int
    created_at_s: float

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """Identity of the process that has `pid` now; raises `psutil.NoSuchProcess`."""
        return cls(pid, psutil.Process(pid).create_time())

    def find(self) -> psutil.Process | None:
        """The process, or None if it has ended (a zombie has)."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created_at_s) < CLOCK_TOLERANCE_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:  # gone, or another user's: not ours
            return None

    @property
    def is_running(self) -> bool:
        return self.find() is not None

    def stop(self, grace_s: float) -> None:
        """End the process and its group: SIGTERM, then SIGKILL after `grace_s`. Does nothing if it has ended."""
        for signal_number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, KILL_GRACE_S)):
            if self.is_running:
                with suppress(ProcessLookupError):  # it ended this instant
                    os.killpg(self.pid, signal_number)
                self._wait(patience_s)

    def _wait(self, patience_s: float) -> None:
        """Return when the process has ended or after `patience_s`.

        Not `psutil.Process.wait`: it waits for a zombie to be collected, which an orphan's new parent may never do
        (seen in containers).
        """
        deadline_s = time.monotonic() + patience_s
        while self.is_running and time.monotonic() < deadline_s:
            time.sleep(POLL_S)


def spawn(argv: Sequence[str], *, cwd: Path, log: Path) -> tuple[ProcessId, subprocess.Popen[bytes]]:
    """Start `argv` as the leader of its own session, so that neither Ctrl-C nor the end of this command reaches it.

    Both outputs go to `log`; the log of the run before is kept beside it as ``<log>.1``.
    """
    if log.exists():
        log.replace(log.with_name(f"{log.name}.1"))
    with log.open("wb") as output:
        child = subprocess.Popen(
            argv,
            cwd=cwd,
            env={name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return ProcessId.of(child.pid), child
