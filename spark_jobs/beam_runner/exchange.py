"""How elements travel between stages: edges, lanes and the outbox of a task.

A *row* is (key group, key, value): encoded key and encoded windowed value for keyed edges, (lane, b"", chunk of
encoded windowed values) for the others. Rows of one edge to one partition leave a task as one block, and a task reads
blocks in the order of the partitions that wrote them, so a replay sees the same order.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from dataclasses import dataclass, field

from spark_jobs.beam_runner.clock import MIN_US
from spark_jobs.beam_runner.manifest import SidePart

Row = tuple[int, bytes, bytes]
EdgeId = tuple[str, int]  # (consumer stage, index of its input)


def key_group(key: bytes, groups: int) -> int:
    """The key group of an encoded key; the same in every process and version."""
    return zlib.crc32(key) % groups


@dataclass
class SideChunks:
    """Encoded elements of a side input, and the greatest end of their windows."""

    chunks: list[bytes] = field(default_factory=list)
    end_us: int = MIN_US

    def add(self, chunk: bytes, end_us: int) -> None:
        self.chunks.append(chunk)
        self.end_us = max(self.end_us, end_us)


@dataclass
class Outbox:
    """What the stages of one task leave for later levels and for the driver."""

    partitions: int
    part: int
    blocks: dict[int, dict[EdgeId, list[Row]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    sides: dict[str, SideChunks] = field(default_factory=lambda: defaultdict(SideChunks))
    staged: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))

    def send(self, edge: EdgeId, partition: int, row: Row) -> None:
        self.blocks[partition % self.partitions][edge].append(row)


@dataclass(frozen=True)
class Inbox:
    """What a task gets: blocks in source order, the watermarks upstream stages reached, parts of side inputs."""

    rows: dict[EdgeId, list[Row]]
    watermarks: dict[str, int]  # stage -> the least output watermark of its tasks
    sides: dict[str, list[SidePart]]


@dataclass(frozen=True)
class Parcel:
    """What one task sends to one partition of the next level. `rows` may be addressed to a still later level."""

    source: int
    rows: dict[EdgeId, list[Row]]
    watermarks: dict[str, int]
    sides: dict[str, list[SidePart]]


def open_parcels(parcels: list[Parcel]) -> Inbox:
    """Joins parcels by source order. A watermark is the least that any source reports."""
    rows: dict[EdgeId, list[Row]] = defaultdict(list)
    watermarks: dict[str, int] = {}
    sides: dict[str, list[SidePart]] = defaultdict(list)
    for parcel in sorted(parcels, key=lambda p: p.source):
        for edge, some in parcel.rows.items():
            rows[edge] += some
        for stage, watermark in parcel.watermarks.items():
            watermarks[stage] = min(watermark, watermarks.get(stage, watermark))
        for label, parts in parcel.sides.items():
            sides[label] += parts
    return Inbox(dict(rows), watermarks, dict(sides))
