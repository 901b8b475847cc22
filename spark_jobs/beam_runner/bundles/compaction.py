"""Side inputs that grow for as long as a stream runs: many parts are folded into one of what can still be seen.

A side input in the global window gets parts with every epoch that adds to it, and none of them expires. A task of a
later epoch folds the newest ones, and leaves out elements that no reader sees any more: for AsSingleton all but the
latest pane, for AsDict all but the last value of a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spark_jobs.beam_runner.bundles.side_inputs import SideTable
from spark_jobs.beam_runner.checkpoint.manifest import SidePart

MOST_PARTS = 32  # of a side input, beside those of one epoch and a few large ones


def parts_to_fold(parts: Sequence[SidePart], tasks: int) -> tuple[SidePart, ...]:
    """The newest parts, once they are many. Those that outweigh all newer ones together stay as they are: what is kept
    for ever is so written log(n) times rather than n times, and what expires is gone before it could be written on.
    """
    newer = sum(part.size_bytes for part in parts)
    for first, part in enumerate(parts):
        newer -= part.size_bytes
        if part.size_bytes <= newer:
            return tuple(parts[first:]) if len(parts) - first > MOST_PARTS + tasks else ()
    return ()


def fold(readers: Sequence[SideTable], chunks: Iterable[bytes]) -> bytes:
    """-> a chunk of what any of the readers can still see of the elements in `chunks`, in their order."""
    elements: list[bytes] = []
    seen: list[dict[tuple[bytes, bytes], tuple[int, list[int]]]] = [{} for _ in readers]
    for chunk in chunks:
        for data, element in readers[0].decode(chunk):
            for reader, slots in zip(readers, seen, strict=True):
                key, version = reader.slot(element)
                for window in element.windows:
                    slot = reader.encode_window(window), key
                    newest = slots.get(slot)
                    if newest is None or version > newest[0]:
                        slots[slot] = (version, [len(elements)])
                    elif version == newest[0]:
                        newest[1].append(len(elements))
            elements.append(data)
    kept = {number for slots in seen for _, numbers in slots.values() for number in numbers}
    return b"".join(elements[number] for number in sorted(kept))
