"""The table of the fault suite: who was killed where, and what was wrong afterwards. Also in build/faults.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.killed_runs import ROOT, Outcome

Note = Callable[[str, Outcome], None]
_ROWS = pytest.StashKey[list[dict[str, Any]]]()
_COLUMNS = ("where", "point", "victim", "kills", "starts", "differences")


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Note:
    """Puts the kills of one job into the table: `starts` and `differences` are those of the whole job."""
    rows = request.config.stash.setdefault(_ROWS, [])

    def add(where: str, outcome: Outcome) -> None:
        for kill in outcome.kills:
            row = (where, kill.point, kill.victim, 1, outcome.runs, outcome.differences)
            rows.append({**dict(zip(_COLUMNS, row, strict=True)), "test": request.node.nodeid})

    return add


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash.get(_ROWS, [])
    if not rows:
        return
    path = Path(ROOT) / "build" / "faults.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows, indent=1))
    terminalreporter.section("faults")
    lines = [_COLUMNS, *(tuple(str(row[name]) for name in _COLUMNS) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    for line in lines:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    killed, wrong = sum(row["kills"] for row in rows), sum(row["differences"] for row in rows)
    terminalreporter.write_line(f"{killed} kills, {wrong} differences")
