"""Restrictions that do not end by themselves: cut, so that an epoch ends; truncated, so that a drained stream ends."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any

from apache_beam.portability.api import beam_fn_api_pb2

from spark_jobs.beam_runner import beam_internals as beam_parts
from spark_jobs.beam_runner.exchange import Row
from spark_jobs.beam_runner.operations import InputOperation

_LOOK_EVERY_S = 0.05


class Splitter:
    """While entered: a thread that splits the element under way as soon as it has had its share of `seconds`.

    What is left of a restriction is in `residuals`, as (operation, residual). A DoFn whose tracker does not split, or
    that blocks between two claims, cannot be cut: its bundle takes as long as it takes.
    """

    def __init__(self, operation: InputOperation, elements: int, seconds: float) -> None:
        self.residuals: list[tuple[Any, Any]] = []
        self._operation, self._share_s = operation, seconds / max(1, elements)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="split", daemon=True)

    def __enter__(self) -> Splitter:
        self._operation.began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._operation.began = None

    def _run(self) -> None:
        while not self._ended.wait(min(self._share_s, _LOOK_EVERY_S)):
            began = self._operation.began
            if began is not None and time.monotonic() - began >= self._share_s:
                split = self._operation.receivers[0].try_split(0.0)
                if split is not None:
                    self.residuals += split[1]


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
