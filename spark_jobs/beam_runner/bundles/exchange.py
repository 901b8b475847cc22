"""How elements travel between stages: edges, lanes and the outbox of a task.

A *row* is (key group, b"", block of pairs) for keyed edges (see `grouped`), (lane, b"", chunk of encoded windowed
values) for the others. `bytes()` of its data are the bytes, wherever they are held. Rows of one edge to one partition
leave a task in order, and a task reads them in the order of the partitions that wrote them, so a replay sees the same
order.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from spark_jobs.beam_runner.bundles.spool import Data, Spool
from spark_jobs.beam_runner.checkpoint.manifest import SidePart
from spark_jobs.beam_runner.clock import MIN_US

# Pieces are pickled, and above 32 MiB malloc maps memory anew: twice the time.
PIECE_BYTES = 1 << 20

Row = tuple[int, bytes, Data]
EdgeId = tuple[str, int]  # (consumer stage, index of its input)


def held(rows: Iterable[Row], spool: Spool) -> list[Row]:
    """The rows, with data that `spool` holds."""
    return [(number, key, spool.keep(data)) for number, key, data in rows]


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
    spool: Spool
    blocks: dict[int, dict[EdgeId, list[Row]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    sides: dict[str, SideChunks] = field(default_factory=lambda: defaultdict(SideChunks))
    staged: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))

    def send(self, edge: EdgeId, partition: int, row: Row) -> None:
        self.blocks[partition % self.partitions][edge] += held([row], self.spool)


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
    piece: int = 0  # a parcel may travel in pieces

    def kept(self, spool: Spool) -> Parcel:
        """The same with its rows held by `spool`."""
        return replace(self, rows={edge: held(some, spool) for edge, some in self.rows.items()})

    def pieces(self, most_bytes: int = PIECE_BYTES) -> Iterator[Parcel]:
        """The parcel as parcels whose rows are of at most so many bytes, or a single row. Empties it on the way."""
        count = held = 0
        rows: dict[EdgeId, list[Row]] = defaultdict(list)
        for edge, some in self.rows.items():
            for row in some:
                if held and held + len(row[2]) > most_bytes:
                    yield Parcel(self.source, dict(rows), {}, {}, count)
                    count, held = count + 1, 0
                    rows.clear()
                rows[edge].append(row)
                held += len(row[2])
            some.clear()
        yield Parcel(self.source, dict(rows), self.watermarks, self.sides, count)


def open_parcels(parcels: list[Parcel]) -> Inbox:
    """Joins parcels by source order. A watermark is the least that any source reports."""
    rows: dict[EdgeId, list[Row]] = defaultdict(list)
    watermarks: dict[str, int] = {}
    sides: dict[str, list[SidePart]] = defaultdict(list)
    for parcel in sorted(parcels, key=lambda p: (p.source, p.piece)):
        for edge, some in parcel.rows.items():
            rows[edge] += some
        for stage, watermark in parcel.watermarks.items():
            watermarks[stage] = min(watermark, watermarks.get(stage, watermark))
        for label, parts in parcel.sides.items():
            sides[label] += parts
    return Inbox(dict(rows), watermarks, dict(sides))
