"""Restrictions that do not end by themselves: cut, so that an epoch ends; truncated, so that a drained stream ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.utils.windowed_value import WindowedValue

from spark_jobs.beam_runner import beam_internals as beam_parts
from spark_jobs.beam_runner.bundles.exchange import Row
from spark_jobs.beam_runner.bundles.operations import InputOperation

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.05
_REST_AFTER_S = 5.0  # without a bundle to look after, the thread ends


def in_one_window_each(values: Iterable[WindowedValue]) -> Iterator[WindowedValue]:
    """The same elements, each in one window.

    Beam 2.77 takes a DoFn that looks at its window for one that does not while it is in the first of an element's
    windows (`if window_index:`): what a split leaves there would go to all of them.
    """
    for value in values:
        for window in value.windows:
            yield WindowedValue(value.value, value.timestamp, (window,), value.pane_info)


class Splitter:
    """While entered: the element under way is split as soon as it has had its share of `seconds`.

    What is left of a restriction is in `residuals`, as (operation, residual). A DoFn whose tracker does not split, or
    that blocks between two claims, cannot be cut: its bundle takes as long as it takes.
    """

    def __init__(self, operation: InputOperation, elements: int, seconds: float) -> None:
        self.residuals: list[tuple[Any, Any]] = []
        self._operation, self._share_s = operation, seconds / max(1, elements)

    def __enter__(self) -> Splitter:
        self._operation.began = time.monotonic()
        _lookout.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _lookout.remove(self)
        self._operation.began = None

    def look(self) -> None:
        """Splits if it is time to."""
        began = self._operation.began
        if began is not None and time.monotonic() - began >= self._share_s:
            try:
                split = self._operation.receivers[0].try_split(0.0)
            except Exception:  # of the user's tracker: the bundle goes on uncut, and others are still looked after
                _log.warning("A restriction could not be split.", exc_info=True)
                self._share_s = float("inf")
                return
            if split is not None:
                self.residuals += split[1]


class _Lookout:
    """One thread of the process that looks after all splitters; a thread for each would cost more than most bundles."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._splitters: list[Splitter] = []
        self._thread: threading.Thread | None = None

    def add(self, splitter: Splitter) -> None:
        with self._lock:
            self._splitters.append(splitter)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="split", daemon=True)
                self._thread.start()

    def remove(self, splitter: Splitter) -> None:
        with self._lock:  # no split of it is under way
            self._splitters.remove(splitter)

    def _run(self) -> None:
        idle_since = time.monotonic()
        while True:
            time.sleep(_LOOK_EVERY_S)
            with self._lock:
                if self._splitters:
                    idle_since = time.monotonic()
                for splitter in self._splitters:
                    splitter.look()
                if time.monotonic() - idle_since > _REST_AFTER_S:
                    self._thread = None
                    return


_lookout = _Lookout()


TRUNCATED = b"truncated"  # key of a row whose restriction was truncated in an earlier epoch


class Truncation:
    """What a drain does to a stage of restrictions: each is replaced by what its provider still wants to do."""

    def __init__(self, descriptor: beam_fn_api_pb2.ProcessBundleDescriptor) -> None:
        self._provider = beam_parts.restriction_provider(descriptor)

    def apply(self, operation: InputOperation, rows: list[Row]) -> list[Row]:
        """By default bounded restrictions stay as they are and unbounded ones go."""
        encode = operation.windowed_coder_impl.encode_nested
        kept: list[Row] = []
        for lane, mark, chunk in rows:
            if mark == TRUNCATED:
                kept.append((lane, mark, chunk))
                continue
            for sized in operation.decode(chunk):
                (element, (restriction, watermark_state)), _ = sized.value
                left = self._provider.truncate(element, restriction)
                if left is not None:
                    size = self._provider.restriction_size(element, left)
                    kept.append((lane, TRUNCATED, encode(sized.with_value(((element, (left, watermark_state)), size)))))
        return kept
