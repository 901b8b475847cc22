"""The life of a view's tiles: open, closed by the watermark, gone when no event can reach them any more.

Pure functions over tile batches (common/tiles.py) with two more columns: `closed`, whether the watermark has passed the
tile's end and its on-time pane is out, and `changed`, whether it changed since its last pane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from common.domain import FeatureView
from common.records import millis
from common.tiles import EARLY, LATE, ON_TIME, TILE, merge_tiles, tile_schema

CLOSED, CHANGED = "closed", "changed"

Flags = npt.NDArray[np.bool_]
Panes = dict[str, pa.RecordBatch]  # pane name -> tiles that have rows in it


class Closing(NamedTuple):
    """What is left of the tiles after a firing, the panes that are due, and when to fire next (None: never)."""

    tiles: pa.RecordBatch
    panes: Panes
    next_ms: int | None


@dataclass(frozen=True)
class OpenTiles:
    """Tiles of one view. They are kept until `allowed_lateness_ms` after their end."""

    view: FeatureView
    allowed_lateness_ms: int

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([*tile_schema(self.view), (CLOSED, pa.bool_()), (CHANGED, pa.bool_())])

    def settled(self, tiles: pa.RecordBatch) -> pa.RecordBatch:
        """The tiles with nothing changed: their panes are out."""
        return self._flagged(tiles, _flag(tiles, CLOSED), np.zeros(tiles.num_rows, bool))

    def merge(self, tiles: pa.RecordBatch, partials: pa.RecordBatch) -> pa.RecordBatch:
        """Adds a tile batch; what it touches is changed. Cost: one grouping of both."""
        count = partials.num_rows
        return merge_tiles(self.view, [tiles, self._flagged(partials, np.zeros(count, bool), np.ones(count, bool))])

    def open_ends_ms(self, tiles: pa.RecordBatch) -> npt.NDArray[np.int64]:
        """When the open tiles close."""
        return self._ends_ms(tiles)[~_flag(tiles, CLOSED)]

    def close(self, tiles: pa.RecordBatch, watermark_ms: int) -> Closing:
        """The watermark is at least here: closes the tiles that end by then, and lets go of those that expire."""
        ends_ms, closed, changed = self._ends_ms(tiles), _flag(tiles, CLOSED), _flag(tiles, CHANGED)
        closing = ~closed & (ends_ms <= watermark_ms)
        expired = ends_ms + self.allowed_lateness_ms <= watermark_ms
        # A closed tile that expires in the bundle that changed it does not live to the bundle's end.
        panes = _chosen(tiles, {ON_TIME: closing, LATE: expired & closed & changed})
        closed = closed | closing
        left = self._flagged(tiles, closed, changed & ~closing).filter(pa.array(~expired))
        if not closed.all():
            return Closing(left, panes, next_firing_ms(watermark_ms, ends_ms[~closed]))
        expiries_ms = ends_ms[~expired] + self.allowed_lateness_ms
        return Closing(left, panes, int(expiries_ms.min()) if len(expiries_ms) else None)

    def unsettled(self, tiles: pa.RecordBatch) -> Panes:
        """The panes of tiles that changed."""
        closed, changed = _flag(tiles, CLOSED), _flag(tiles, CHANGED)
        return _chosen(tiles, {EARLY: changed & ~closed, LATE: changed & closed})

    def _ends_ms(self, tiles: pa.RecordBatch) -> npt.NDArray[np.int64]:
        return millis(tiles.column(TILE)) + self.view.tile_ms

    def _flagged(self, tiles: pa.RecordBatch, closed: Flags, changed: Flags) -> pa.RecordBatch:
        columns = [tiles.column(field.name) for field in tile_schema(self.view)]
        return pa.RecordBatch.from_arrays([*columns, pa.array(closed), pa.array(changed)], schema=self.schema)


def next_firing_ms(fired_ms: int, due_ms: npt.NDArray[np.int64]) -> int:
    """When a timer that fired at `fired_ms` should fire next, for what is due at `due_ms[n > 0]`.

    At the earliest, unless what is due spreads over more than twice as long: then halfway to the latest. One firing
    handles all that is due, and a timer is not told how far the watermark really is: a replay of 22 years would fire
    for 190,000 hours one by one instead of 18 times. In a job that keeps up, due times lie close together and nothing
    waits longer than for the next of them.
    """
    return max(int(due_ms.min()), fired_ms + (int(due_ms.max()) - fired_ms) // 2)


def _chosen(tiles: pa.RecordBatch, masks: dict[str, Flags]) -> Panes:
    return {pane: tiles.filter(pa.array(mask)) for pane, mask in masks.items() if mask.any()}


def _flag(tiles: pa.RecordBatch, name: str) -> Flags:
    flags: Flags = tiles.column(name).to_numpy(zero_copy_only=False)
    return flags
