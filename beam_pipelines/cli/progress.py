"""What goes on, while it goes on: a line per step on stderr, and on a terminal a spinner with the newest one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.markup import escape
from rich.status import Status

from beam_pipelines.cli.output import stderr

_LINE_EVERY_S = 1.0


class Progress:
    """Steps are always said; repeated progress within a step at most once a second. A context manager: the spinner."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._last_line = 0.0
        self._spinner: Status | None = stderr.status("") if stderr.is_terminal else None

    def __enter__(self) -> Progress:
        if self._spinner is not None:
            self._spinner.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._spinner is not None:
            self._spinner.stop()

    def step(self, message: str) -> None:
        elapsed = time.monotonic() - self._started
        # One call a line: services report from their own threads.
        stderr.print(f"{elapsed:6.1f}s  {message}", markup=False, soft_wrap=True)
        if self._spinner is not None:
            self._spinner.update(escape(message))
        self._last_line = time.monotonic()

    def produced(self, done: int, total: int) -> None:
        if time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self.step(f"produced {done:,} of {total:,} messages")

    def epoch(self, what: str, counters: Mapping[str, int], seconds: float) -> None:
        if time.monotonic() - self._last_line < _LINE_EVERY_S:
            return
        consumed, silver = counters.get("pipeline/consumed", 0), counters.get("pipeline/silver", 0)
        self.step(f"{what}: {consumed:,} consumed, {silver:,} in silver, {seconds:.0f} s")
