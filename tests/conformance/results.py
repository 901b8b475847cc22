"""Results of Beam's suites: read from the plugin's reports, counted, kept, and compared with what is expected."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.conformance.suites import FOLDER, Expected

COMMITTED = FOLDER / "results.json"
PASSED, FAILED, SKIPPED, UNTOUCHED = "passed", "failed", "skipped", "untouched"


@dataclass(frozen=True)
class Result:
    """One test at one place ('transport/mode'). `untouched`: it ran no pipeline on SparkRunner and proves nothing."""

    test: str
    suite: str
    where: str
    outcome: str
    message: str = ""
    seconds: float = 0.0
    validates_runner: bool = False


def read_report(path: Path, suite: str, where: str, end: str, pattern: str = "*") -> list[Result]:
    """A plugin's report -> results. `end`: what became of the process, told for the test that did not finish."""
    records = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            records[record["test"]] = record
    results = []
    for record in records.values():
        outcome, message = record["outcome"], record["message"]
        if outcome == "unfinished":
            outcome, message = FAILED, f"the process ended in this test: {end}"
        elif outcome != SKIPPED and not record["ours"] and not (outcome == FAILED and record["built"]):
            outcome = UNTOUCHED
        if outcome == SKIPPED:
            message = message if message.startswith("ours: ") else f"Beam: {message}"
        results.append(
            Result(record["test"], suite, where, outcome, message, record["seconds"], record["validates_runner"])
        )
    if end or (not results and pattern == "*"):
        results.append(Result(f"{suite}::process", suite, where, FAILED, end or "no test was collected"))
    return results


def count(results: Iterable[Result]) -> dict[tuple[str, str], Counter[str]]:
    """(where, suite) -> outcomes. `it_validatesrunner` is a suite across all others: Beam's marker for these tests."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for result in results:
        counts.setdefault((result.where, result.suite), Counter())[result.outcome] += 1
        if result.validates_runner:
            counts.setdefault((result.where, "it_validatesrunner"), Counter())[result.outcome] += 1
    return counts


def surprises(results: Iterable[Result], expected: Iterable[Expected], *, whole: bool = True) -> list[str]:
    """One line for each failed or skipped test that is not listed as such, and for each that is listed and is not."""
    listed = list(expected)
    found = []
    by_place: dict[str, dict[str, Result]] = {}
    for result in results:
        by_place.setdefault(result.where, {})[result.test] = result
    for where, tests in sorted(by_place.items()):
        outcomes = {test: some.outcome for some in listed if some.applies(where) for test in some.tests}
        modules = {test.partition("::")[0] for test in tests}
        for test, outcome in sorted(outcomes.items()):
            if test in tests and tests[test].outcome != outcome:
                found.append(f"{where}  {test}  is listed as {outcome}, but {_what_became(tests[test])}")
            elif whole and test not in tests and test.partition("::")[0] in modules:
                found.append(f"{where}  {test}  is listed as {outcome}, but there is no such test")
        for test, result in sorted(tests.items()):
            if result.outcome in (FAILED, SKIPPED) and test not in outcomes:
                found.append(f"{where}  {test}  {_what_became(result)}")
    return found


def _what_became(result: Result) -> str:
    return f"{result.outcome}: {result.message}" if result.message else result.outcome


def write_full(results: Iterable[Result], path: Path) -> None:
    """Everything about each test, and the counts."""
    kept = list(results)
    counts = {f"{where} {suite}": dict(counter) for (where, suite), counter in sorted(count(kept).items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"counts": counts, "tests": [asdict(r) for r in kept]}, indent=1), encoding="utf-8")


Committed = dict[str, dict[str, dict[str, str]]]  # suite -> test -> where -> outcome


def read_committed(path: Path = COMMITTED) -> Committed:
    committed: Committed = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return committed


def refresh_committed(results: Iterable[Result], path: Path = COMMITTED, *, whole: bool = True) -> None:
    """Puts the results in place of the old ones of the same suites and places; one line a test, for readable diffs.

    `whole`: the suites ran whole, so that tests without a result are gone.
    """
    committed = read_committed(path)
    kept = list(results)
    for suite, where in {(r.suite, r.where) for r in kept} if whole else ():
        for places in committed.get(suite, {}).values():
            places.pop(where, None)
    for result in kept:
        committed.setdefault(result.suite, {}).setdefault(result.test, {})[result.where] = result.outcome
    lines = []
    for suite, tests in sorted(committed.items()):
        rows = [
            f"  {json.dumps(test)}: {json.dumps(dict(sorted(places.items())))}"
            for test, places in sorted(tests.items())
            if places
        ]
        lines.append(f" {json.dumps(suite)}: {{\n" + ",\n".join(rows) + "\n }")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def as_table(results: Iterable[Result]) -> str:
    """The counts, as text."""
    counts = count(results)
    head = ("suite", "transport/mode", PASSED, FAILED, SKIPPED, UNTOUCHED)
    rows = [(suite, where, *(str(c[o]) for o in head[2:])) for (where, suite), c in sorted(counts.items())]
    totals: Mapping[str, Counter[str]] = {where: Counter() for where, _ in counts}
    for (where, suite), counter in counts.items():
        if suite != "it_validatesrunner":
            totals[where].update(counter)
    rows += [("all", where, *(str(c[o]) for o in head[2:])) for where, c in sorted(totals.items())]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
