"""Which of Beam's test modules are run, from suites.toml, and what is known to fail, from expected.toml."""

from __future__ import annotations

import ast
import importlib.util
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Suite:
    """One process of pytest. Names are relative to apache_beam; see suites.toml."""

    name: str
    modules: tuple[str, ...]
    classes: tuple[str, ...] = ()
    skip: dict[str, str] = field(default_factory=dict)
    one_task: dict[str, str] = field(default_factory=dict)
    unskip: dict[str, str] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)

    def arguments(self) -> list[str]:
        """What pytest is to collect."""
        names = [f"apache_beam.{module}" for module in self.modules]
        return [f"{name}::{c}" for name in names for c in self.classes] if self.classes else names

    def accounts_for(self, test: str) -> bool:
        """Whether the suite holds the test, or tells why nothing of its module is run."""
        module, group, _ = test.split("::")
        if module in self.modules:
            return not self.classes or group in self.classes
        reasons = [reason for pattern, reason in self.without.items() if fnmatchcase(module, pattern)]
        return any(not reason.startswith("in the suite") for reason in reasons)


def load_suites() -> dict[str, Suite]:
    with open(FOLDER / "suites.toml", "rb") as file:
        tables = tomllib.load(file)
    return {
        name: Suite(
            name,
            _modules(table["modules"], table.get("without", {})),
            tuple(table.get("classes", ())),
            table.get("skip", {}),
            table.get("one_task", {}),
            table.get("unskip", {}),
            table.get("without", {}),
        )
        for name, table in tables.items()
    }


def _modules(patterns: list[str], without: dict[str, str]) -> tuple[str, ...]:
    found = []
    for pattern in patterns:
        matching = [m for m in _test_modules() if fnmatchcase(m, pattern) and m.count(".") == pattern.count(".")]
        if not matching:
            raise LookupError(f"No test module of the installed apache_beam matches {pattern!r} of suites.toml.")
        found += [m for m in matching if not any(fnmatchcase(m, w) for w in without)]
    return tuple(dict.fromkeys(found))


def beam_folder() -> Path:
    """Where apache_beam is installed."""
    spec = importlib.util.find_spec("apache_beam")
    if spec is None or spec.origin is None:
        raise LookupError("apache_beam is not installed.")
    return Path(spec.origin).parent


@cache
def _test_modules() -> tuple[str, ...]:
    root = beam_folder()
    paths = (path.relative_to(root).with_suffix("") for path in root.rglob("*_test.py"))
    return tuple(sorted(".".join(path.parts) for path in paths))


MARKER = "it_validatesrunner"


@cache
def marked_tests() -> frozenset[str]:
    """Patterns of the tests, of all installed modules, that Beam marks as ones that every runner has to pass."""
    found = set()
    for module in _test_modules():
        source = (beam_folder() / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
        if MARKER in source:
            found |= marked_in(module, ast.parse(source))
    return frozenset(found)


def marked_in(module: str, tree: ast.Module) -> set[str]:
    """The marked tests of one module; a parameterized one is a pattern of its cases."""
    found, marks = set(), 0
    for suite in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        whole = _decorations(suite, MARKER)
        marks += whole
        for test in (n for n in suite.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")):
            marked = _decorations(test, MARKER)
            marks += marked
            if whole or marked:
                cases = "_[0-9]*" if _decorations(test, "parameterized") else ""
                found.add(f"{module}::{suite.name}::{test.name}{cases}")
    if marks != sum(isinstance(node, ast.Attribute) and node.attr == MARKER for node in ast.walk(tree)):
        raise LookupError(f"{module} marks a test with {MARKER} in a way that is not understood here.")
    return found


def _decorations(node: ast.ClassDef | ast.FunctionDef, name: str) -> int:
    return sum(name in ast.dump(decorator) for decorator in node.decorator_list)


def validates_runner(test: str) -> bool:
    """Whether Beam marks the test as one that every runner has to pass."""
    return any(fnmatchcase(test, pattern) for pattern in marked_tests())


def left_out() -> set[str]:
    """Patterns of the marked tests that are in no suite, without a reason in suites.toml."""
    suites = load_suites().values()
    return {test for test in marked_tests() if not any(suite.accounts_for(test) for suite in suites)}


@dataclass(frozen=True)
class Expected:
    """Tests that fail or are skipped for one written reason, on the transports and in the modes of `where`."""

    reason: str
    where: tuple[str, ...]  # patterns of 'transport/mode'
    tests: tuple[str, ...]
    outcome: str = "failed"

    def applies(self, where: str) -> bool:
        return any(fnmatchcase(where, pattern) for pattern in self.where)


def load_expected() -> list[Expected]:
    """What expected.toml lists, and the tests that suites.toml skips."""
    with open(FOLDER / "expected.toml", "rb") as file:
        tables = tomllib.load(file)
    listed = [
        Expected(t["reason"], tuple(t.get("where", ["*"])), tuple(t["tests"]), outcome)
        for kind, outcome in (("known", "failed"), ("skipped", "skipped"))
        for t in tables.get(kind, [])
    ]
    ours = [(test, reason) for suite in load_suites().values() for test, reason in suite.skip.items()]
    return listed + [Expected(reason, ("*",), (test,), "skipped") for test, reason in ours]
