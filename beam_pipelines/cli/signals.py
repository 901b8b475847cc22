"""Ctrl-C (or SIGTERM) once: finish what is under way. Twice: stop at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from beam_pipelines.cli.output import say


@contextmanager
def draining(request_stop: Callable[[], None]) -> Iterator[None]:
    """Within the block the first signal calls `request_stop`, the second raises KeyboardInterrupt."""
    asked = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        say("stopping after this epoch; again to stop at once")
        request_stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
