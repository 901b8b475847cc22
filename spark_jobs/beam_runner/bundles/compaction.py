"""Side inputs that grow for as long as a stream runs: many parts are folded into one of what can still be seen.

A side input in the global window gets parts with every epoch that adds to it, and none of them expires. A task of a
later epoch folds the newest ones: it leaves out elements that no reader sees any more (of AsSingleton all but the
latest pane, of AsDict all but the last value of a key) and windows that all readers have left behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spark_jobs.beam_runner.bundles.exchange import SideChunks
from spark_jobs.beam_runner.bundles.side_inputs import SideTable
from spark_jobs.beam_runner.checkpoint.manifest import SidePart
from spark_jobs.beam_runner.clock import micros

MOST_PARTS = 32  # of a side input, beside those of one epoch and a few large ones


@dataclass(frozen=True)
class Fold:
    """Work for one task: the newest parts of a side input become one. `left_us`: what ends before it is left out."""

    parts: tuple[SidePart, ...]
    left_us: int


def parts_to_fold(parts: Sequence[SidePart], tasks: int) -> tuple[SidePart, ...]:
    """The newest parts, once they are many. Those that outweigh all newer ones together stay as they are: what is kept
    for ever is so written again log(n) times rather than n times.
    """
    newer = sum(part.size_bytes for part in parts)
    for first, part in enumerate(parts):
        newer -= part.size_bytes
        if part.size_bytes <= newer:
            return tuple(parts[first:]) if len(parts) - first > MOST_PARTS + tasks else ()
    return ()


def fold(readers: Sequence[SideTable], chunks: Iterable[bytes], left_us: int) -> SideChunks:
    """-> what any of the readers can still see of the elements in `chunks`, in their order."""
    elements: list[tuple[bytes, int]] = []  # encoded, end of the last window
    seen: list[dict[tuple[bytes, bytes], tuple[int, list[int]]]] = [{} for _ in readers]
    for chunk in chunks:
        for data, element in readers[0].decode(chunk):
            windows = [w for w in element.windows if micros(w.max_timestamp()) >= left_us]
            if not windows:
                continue
            for reader, slots in zip(readers, seen, strict=True):
                key, version = reader.slot(element)
                for window in windows:
                    slot = reader.encode_window(window), key
                    newest = slots.get(slot)
                    if newest is None or version > newest[0]:
                        slots[slot] = (version, [len(elements)])
                    elif version == newest[0]:
                        newest[1].append(len(elements))
            elements.append((data, max(micros(w.max_timestamp()) for w in windows)))
    kept = sorted({number for slots in seen for _, numbers in slots.values() for number in numbers})
    folded = SideChunks()
    if kept:
        folded.add(b"".join(elements[n][0] for n in kept), max(elements[n][1] for n in kept))
    return folded
