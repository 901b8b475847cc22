"""Reading tables: counts from the log alone, rows, and the current rows of a gold view."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from common.lake.warehouse import Lake

# Of two panes with as many events the later one in this order is current.
PANE_ORDER = ("early", "on_time", "late")


def row_count(lake: Lake, table: str) -> int:
    """Rows in the newest version, by the log's statistics: no data file is opened. 0 if there is no table."""
    if not lake.exists(table):
        return 0
    counts = pa.table(lake.open(table).get_add_actions(flatten=True))["num_records"]
    return int(pc.sum(counts).as_py() or 0)


def read(
    lake: Lake,
    table: str,
    columns: Sequence[str] | None = None,
    filters: pc.Expression | None = None,
    version: int | None = None,
) -> pa.Table:
    """Rows of a table, in no particular order. Files that the log's statistics rule out are not opened."""
    dataset = lake.open(table, version).to_pyarrow_dataset()
    return dataset.to_table(columns=list(columns) if columns is not None else None, filter=filters)


def current_rows(
    lake: Lake,
    table: str,
    key: Sequence[str],
    columns: Sequence[str] | None = None,
    filters: pc.Expression | None = None,
) -> pa.Table:
    """The newest pane of each (key, tile) of a gold table: what the view says now.

    Gold is append-only and a tile's rows are its panes. The pane with the most events is current; of equals, by pane
    (late over on_time over early), then by creation. `columns` defaults to all.
    """
    ordering = ["events", "pane", "created_timestamp"]
    tile = [*key, "tile_start"]
    wanted = None if columns is None else list(dict.fromkeys([*columns, *tile, *ordering]))
    panes = pl.DataFrame(read(lake, table, wanted, filters))
    rank = pl.col("pane").replace_strict({pane: i for i, pane in enumerate(PANE_ORDER)}, return_dtype=pl.Int8)
    newest = (
        panes.with_columns(rank.alias("_rank"))
        .sort("events", "_rank", "created_timestamp")
        .unique(tile, keep="last", maintain_order=True)
        .drop("_rank")
    )
    return (newest if columns is None else newest.select(columns)).to_arrow(compat_level=pl.CompatLevel.oldest())
