"""Which of many keys are due: a heap that forgets lazily, so that an epoch looks at what is due and at nothing else."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_SPARE = 1024  # outdated heap entries that are not worth a clean-up


class Schedule(Generic[K]):
    """One time (microseconds) per key. `never` and later times are not kept; `never` is the least of no times."""

    def __init__(self, never: int) -> None:
        self._never = never
        self._at: dict[K, int] = {}
        self._heap: list[tuple[int, K]] = []

    def set(self, key: K, at: int) -> None:
        """Replaces the key's time."""
        if at >= self._never:
            self._at.pop(key, None)
        elif self._at.get(key) != at:
            self._at[key] = at
            heapq.heappush(self._heap, (at, key))
            if len(self._heap) > 2 * len(self._at) + _SPARE:
                self._heap = [(then, known) for known, then in self._at.items()]
                heapq.heapify(self._heap)

    def discard(self, key: K) -> None:
        self._at.pop(key, None)

    def least(self) -> int:
        while self._heap:
            at, key = self._heap[0]
            if self._at.get(key) == at:
                return at
            heapq.heappop(self._heap)
        return self._never

    def take_due(self, until: int) -> list[K]:
        """Keys whose time is at or before `until`, in time order. They are no longer scheduled."""
        due: list[K] = []
        while self.least() <= until and self._heap:
            _, key = heapq.heappop(self._heap)
            del self._at[key]
            due.append(key)
        return due
