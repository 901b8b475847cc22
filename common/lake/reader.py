"""Reading tables: counts from the log alone, rows, and the current rows of a gold view.

Polars reads, not Arrow's dataset: 7,800 files of 13 rows took 1.1 s against 10-16 s.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from common.lake.warehouse import Lake

# Of two panes with as many events the later one in this order is current.
PANE_ORDER = {"early": 0, "on_time": 1, "late": 2}


def row_count(lake: Lake, table: str) -> int:
    """Rows in the newest version, by the log's statistics: no data file is opened. 0 if there is no table."""
    if not lake.exists(table):
        return 0
    counts = pa.table(lake.open(table).get_add_actions(flatten=True))["num_records"]
    return int(pc.sum(counts).as_py() or 0)


def scan(lake: Lake, table: str, version: int | None = None) -> pl.LazyFrame:
    """Lazy rows of the newest (or given) version. Files that a filter rules out by the log are not opened."""
    return pl.scan_delta(lake.open(table, version))


def read(
    lake: Lake,
    table: str,
    columns: Sequence[str] | None = None,
    filters: pl.Expr | None = None,
    version: int | None = None,
) -> pa.Table:
    """Rows of a table in its storage types, in no particular order."""
    delta = lake.open(table, version)
    stored = pa.schema(delta.schema())
    names = stored.names if columns is None else list(columns)
    rows = pl.scan_delta(delta)
    if filters is not None:
        rows = rows.filter(filters)
    return _to_arrow(rows.select(names), stored)


def current_panes(panes: pl.LazyFrame, key: Sequence[str]) -> pl.LazyFrame:
    """Panes of a gold table -> the current one of each (key, tile): what the view says now.

    Gold is append-only and a tile's rows are its panes. The pane with the most events is current; of equals, by pane
    (late over on_time over early), then by creation.
    """
    rank = pl.col("pane").replace_strict(PANE_ORDER, return_dtype=pl.Int8)
    return panes.sort("events", rank, "created_timestamp").unique([*key, "tile_start"], keep="last")


def current_rows(lake: Lake, table: str, key: Sequence[str]) -> pa.Table:
    """The current rows of a gold table, all columns, in no particular order."""
    delta = lake.open(table)
    return _to_arrow(current_panes(pl.scan_delta(delta), key), pa.schema(delta.schema()))


def _to_arrow(rows: pl.LazyFrame, stored: pa.Schema) -> pa.Table:
    table = rows.collect().to_arrow(compat_level=pl.CompatLevel.oldest())
    return table.cast(pa.schema([stored.field(name) for name in table.column_names]))
