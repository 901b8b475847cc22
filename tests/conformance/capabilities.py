"""docs/capabilities.md: what SparkRunner does of Beam's capability matrix, by the tests that show it.

    python -m tests.conformance.capabilities [--check]

Made from capabilities.toml (matrix row -> tests) and results.json (what became of the tests). `--check` writes
nothing and exits 1 if the document is not what these two make. A row without a passing test shows as a gap.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from tests.conformance.results import FAILED, PASSED, SKIPPED, Committed, read_committed
from tests.conformance.suites import FOLDER, beam_folder, load_expected, load_suites, validates_runner

PROJECT = FOLDER.parent.parent
DOCUMENT = PROJECT / "docs" / "capabilities.md"
PLACES = ("local/batch", "local/streaming", "spark/batch", "spark/streaming")
PEERS = ("spark", "flink")
FN_API_RUNNER = "runners.portability.fn_api_runner.fn_runner_test::FnApiRunnerTest::"


@dataclass(frozen=True)
class Row:
    """A row of the matrix. `peers`: what the matrix says of Beam's runners, empty where it says nothing."""

    group: str
    name: str
    peers: dict[str, str]
    tests: tuple[str, ...]
    own: tuple[str, ...]
    note: str


def load_rows() -> list[Row]:
    with open(FOLDER / "capabilities.toml", "rb") as file:
        groups = tomllib.load(file)["group"]
    return [
        Row(
            group["name"],
            row["name"],
            {peer: row[peer] for peer in PEERS},
            tuple(row["tests"]),
            tuple(row.get("own", ())),
            row.get("note", ""),
        )
        for group in groups
        for row in group["row"]
    ]


def outcomes(row: Row, committed: Committed) -> dict[str, Counter[str]]:
    """Place -> outcomes of the row's tests there."""
    counts = {place: Counter[str]() for place in PLACES}
    for _, places in _matching(row, committed):
        for place, outcome in places.items():
            counts[place][outcome] += 1
    return counts


def _matching(row: Row, committed: Committed) -> Iterator[tuple[str, dict[str, str]]]:
    for tests in committed.values():
        for test, places in tests.items():
            if any(fnmatchcase(test, pattern) for pattern in row.tests):
                yield test, places


def idle_patterns(rows: list[Row], committed: Committed) -> list[str]:
    """Patterns that match no test, and tests of our own that do not exist: mistakes in capabilities.toml."""
    known = [test for tests in committed.values() for test in tests]
    idle = [p for row in rows for p in row.tests if not any(fnmatchcase(test, p) for test in known)]
    return idle + [name for row in rows for name in row.own if not own_tests(name)]


def own_tests(name: str) -> int:
    """The number of tests that 'path' or 'path::test' names; a parametrised one counts once."""
    path, _, wanted = name.partition("::")
    file = PROJECT / path
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if file.exists() else ()
    names = [node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return names.count(wanted) if wanted else len(names)


@cache
def skipped_by_beams_runner(name: str) -> frozenset[str]:
    """Tests of FnApiRunnerTest that Beam's own suite for its 'spark' or 'flink' runner skips, whatever the options."""
    source = beam_folder() / "runners" / "portability" / f"{name}_runner_test.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))  # not imported: that looks for Docker and for jars
    suite = next(
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == f"{name.capitalize()}RunnerTest"
    )
    return frozenset(
        node.name
        for node in suite.body
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and isinstance(node.body[-1], ast.Raise)
        and "SkipTest" in ast.dump(node.body[-1])
    )


def render(rows: list[Row], committed: Committed) -> str:
    lines = [_HEAD]
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            lines += ["", f"## {group}", "", _TABLE_HEAD]
        lines.append(_line(row, committed))
    gaps = [f"{row.group.rstrip('?')}: {row.name}" for row in rows if _is_gap(row, committed)]
    lines += ["", "## Gaps", ""]
    lines += [f"- {gap}" for gap in gaps] or ["None."]
    lines += ["", "## Known failures", "", "Tests that ran and failed, each for a reason that is written down.", ""]
    for known in load_expected():
        if known.outcome == FAILED:
            where = ", ".join(f"`{w}`" for w in known.where)
            lines.append(f"- {len(known.tests)} on {where}: {known.reason}")
    lines += ["", "## Run although Beam skips them", "", _UNSKIPPED_HEAD, ""]
    reasons = Counter(reason for suite in load_suites().values() for reason in suite.unskip.values())
    lines += [f"- {number}: {reason}" for reason, number in sorted(reasons.items())]
    lines += ["", "## All suites", "", _SUITES_HEAD, "", *_suites(committed)]
    return "\n".join(lines) + "\n"


def _is_gap(row: Row, committed: Committed) -> bool:
    return not row.own and not any(counts[PASSED] for counts in outcomes(row, committed).values())


def _line(row: Row, committed: Committed) -> str:
    counts = outcomes(row, committed)
    cells = [row.name, *(_cell(counts[place]) for place in PLACES), str(sum(map(own_tests, row.own)) or "")]
    if _is_gap(row, committed):
        cells[1] = "**gap**"
    for peer in PEERS:
        tests = {test.removeprefix(FN_API_RUNNER) for test, _ in _matching(row, committed)}
        skips = sorted(tests & skipped_by_beams_runner(peer))
        text = row.peers[peer] or "not stated"
        cells.append("<br>".join([text, *(f"skips `{test}`" for test in skips)]))
    cells.append(row.note)
    return "| " + " | ".join(cells) + " |"


def _cell(counts: Counter[str]) -> str:
    ran = counts[PASSED] + counts[FAILED]
    return f"{counts[PASSED]}/{ran}" if ran else ""


def _suites(committed: Committed) -> Iterator[str]:
    yield "| suite | " + " | ".join(PLACES) + " | skipped |"
    yield "|---|" + "---|" * len(PLACES) + "---|"
    everything = {test: places for tests in committed.values() for test, places in tests.items()}
    across = {
        "FnApiRunnerTest": {t: p for t, p in everything.items() if t.startswith(FN_API_RUNNER)},
        "it_validatesrunner": {t: p for t, p in everything.items() if validates_runner(t)},
    }
    for suite, tests in [*across.items(), *sorted(committed.items()), ("all", everything)]:
        cells = [_cell(Counter(places.get(place, "") for places in tests.values())) for place in PLACES]
        reasons = _skipped(tests)
        text = "<br>".join(f"{n}: {reason}" for reason, n in reasons.items()) if suite != "all" else reasons.total()
        yield f"| `{suite}` | " + " | ".join([*cells, str(text or "")]) + " |"


def _skipped(tests: dict[str, dict[str, str]]) -> Counter[str]:
    """What the tests are skipped for, at any place."""
    skipped = {test for test, places in tests.items() if SKIPPED in places.values()}
    return Counter(
        some.reason for some in load_expected() for test in some.tests if some.outcome == SKIPPED and test in skipped
    )


_HEAD = """# Capabilities

What SparkRunner does of Beam's capability matrix, and which of Beam's own tests show it. Made by
`python -m tests.conformance.capabilities` from `tests/conformance/results.json`; do not edit.

The four columns of figures are tests passed of tests run: in process or on Spark, as a batch or with `--streaming`
forced on. A test counts only if it ran a pipeline on SparkRunner. On Spark a list that a test's DoFn fills in another
process reaches the test through a file (`tests/conformance/records.py`). *Ours* is the number of this repository's own
tests, where Beam has none that a runner could be given. **gap**: no test shows it.

The last columns are what [Beam's matrix](https://beam.apache.org/documentation/runners/capability-matrix/) states for
its Spark runner (RDD based) and its Flink runner; it does not tell Python from Java. *skips* names the tests of the row
that Beam's own test suite for portable Python leaves out on that runner (`spark_runner_test.py`,
`flink_runner_test.py`)."""

_SUITES_HEAD = """\
Passed of run. `FnApiRunnerTest`, and `it_validatesrunner`, the tests that Beam marks as ones every runner has to
pass, are parts of the suites below them. Tests that are skipped, and those that run no pipeline on SparkRunner, are not
counted as run; `build/conformance.json` lists them."""

_UNSKIPPED_HEAD = """\
Tests that Beam skips on its own runners, for a flaw of theirs or of the test's, or if it is given no pipeline options.
Here they run and are counted like all others, without Beam's decorators (`unskip` in `tests/conformance/suites.toml`).
Beam's reasons:"""

_TABLE_HEAD = (
    "| capability | batch | streaming | batch on Spark | streaming on Spark | ours | Beam's Spark runner "
    "| Beam's Flink runner | note |\n|---|---|---|---|---|---|---|---|---|"
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.capabilities", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the document is out of date")
    flags = parser.parse_args()
    rows, committed = load_rows(), read_committed()
    if idle := idle_patterns(rows, committed):
        print("capabilities.toml names tests that do not exist: " + ", ".join(idle), file=sys.stderr)
        return 1
    text = render(rows, committed)
    if not flags.check:
        DOCUMENT.write_text(text, encoding="utf-8")
        return 0
    if Path(DOCUMENT).exists() and DOCUMENT.read_text(encoding="utf-8") == text:
        return 0
    print(f"{DOCUMENT} does not match the results: python -m tests.conformance.capabilities", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
