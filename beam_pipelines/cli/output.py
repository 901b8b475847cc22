"""How commands speak: data on stdout, everything else on stderr; the same call on a terminal, in a pipe and in CI."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

stderr = Console(stderr=True, highlight=False)


class Format(StrEnum):
    """Of the data on stdout."""

    TEXT = "text"
    JSON = "json"


OutputOption = typer.Option(
    "--output", help="text for people, json for programs (one object, the last line of stdout)."
)


def say(message: str) -> None:
    """A line of progress."""
    stderr.print(message, markup=False, soft_wrap=True)


def emit_json(document: Mapping[str, Any]) -> None:
    """The result, as one line."""
    sys.stdout.write(json.dumps(document, default=str) + "\n")
    sys.stdout.flush()


def emit_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """The result as a table; numbers to the right."""
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for index, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], (int, float)) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else "" if cell is None else str(cell) for cell in row))
    Console(file=sys.stdout, highlight=False).print(table)
