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

    def arguments(self) -> list[str]:
        """What pytest is to collect."""
        names = [f"apache_beam.{module}" for module in self.modules]
        return [f"{name}::{c}" for name in names for c in self.classes] if self.classes else names


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


@cache
def validates_runner() -> frozenset[str]:
    """The tests, of the modules of all suites, that Beam marks as ones that every runner has to pass."""
    found = set()
    for module in {module for suite in load_suites().values() for module in suite.modules}:
        path = beam_folder() / (module.replace(".", "/") + ".py")
        for suite in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(suite, ast.ClassDef):
                tests = [n for n in suite.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
                whole = _is_marked(suite)
                found |= {f"{module}::{suite.name}::{test.name}" for test in tests if whole or _is_marked(test)}
    return frozenset(found)


def _is_marked(node: ast.ClassDef | ast.FunctionDef) -> bool:
    return any("it_validatesrunner" in ast.dump(decorator) for decorator in node.decorator_list)


@dataclass(frozen=True)
class KnownFailures:
    """Tests that fail for one written reason, on the transports and in the modes that `where` matches."""

    reason: str
    where: tuple[str, ...]  # patterns of 'transport/mode'
    tests: tuple[str, ...]

    def applies(self, where: str) -> bool:
        return any(fnmatchcase(where, pattern) for pattern in self.where)


def load_known_failures() -> list[KnownFailures]:
    with open(FOLDER / "expected.toml", "rb") as file:
        tables = tomllib.load(file).get("known", [])
    return [KnownFailures(t["reason"], tuple(t.get("where", ["*"])), tuple(t["tests"])) for t in tables]
