"""Which package may import which, and what a command may load before it runs: laws, not habits."""

from __future__ import annotations

import ast
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
HEAVY = ("apache_beam", "pyspark", "feast", "pandas", "deltalake", "polars")
COMMAND_CPU_S = 1.0


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in the project's folder."""
    return subprocess.run([sys.executable, *arguments], cwd=PROJECT, capture_output=True, text=True, check=False)


def loaded_by(code: str) -> set[str]:
    """Top-level packages that are loaded after `code`."""
    done = python(
        "-c", f"{code}\nimport json, sys\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def imports(file: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_layers() -> None:
    """The contracts of `[tool.importlinter]`."""
    done = python("-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))")
    assert done.returncode == 0, done.stdout[-3000:]
    assert " 0 broken" in done.stdout


def test_private_parts_of_beam_stay_in_one_adapter() -> None:
    """import-linter sees other packages as wholes, so this is read from the source."""
    adapter = PROJECT / "spark_jobs" / "beam_runner" / "beam_internals.py"
    files = sorted((PROJECT / "spark_jobs").rglob("*.py"))
    assert adapter in files
    importers = [file for file in files if any(name.startswith("apache_beam.runners") for name in imports(file))]
    assert importers == [adapter]
    private = {
        f"{file.name}:{node.lineno}: {ast.unparse(node)}"
        for folder in ("bundles", "keyed", "planning")
        for file in (PROJECT / "spark_jobs" / "beam_runner" / folder).glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }
    assert private == set()


def test_no_package_uses_spark_but_spark_jobs() -> None:
    files = [file for package in ("common", "beam_pipelines") for file in (PROJECT / package).rglob("*.py")]
    assert len(files) > 50
    assert [file for file in files if any(name.split(".")[0] == "pyspark" for name in imports(file))] == []


@pytest.mark.parametrize(
    "code",
    [
        "import beam_pipelines.__main__",
        "from beam_pipelines.cli.main import main; assert main(['--help']) == 0",
        "from beam_pipelines.cli.main import main; assert main(['run', '--help']) == 0",
    ],
)
def test_a_command_line_loads_nothing_heavy(code: str) -> None:
    assert loaded_by(code) & set(HEAVY) == set()


@pytest.mark.slow  # Beam takes 2-9 s to import
def test_pipelines_and_the_runner_load_without_spark() -> None:
    """Another runner, and a look at a checkpoint, need no pyspark."""
    loaded = loaded_by(
        "import beam_pipelines.launch, beam_pipelines.cli.job_state, spark_jobs.beam_runner.checkpoint.progress"
    )
    assert "apache_beam" in loaded  # or this would look at nothing
    assert "pyspark" not in loaded


def test_help_is_quick() -> None:
    """In CPU seconds, the best of three: on a busy machine a command waits for its turn."""
    assert min(_cpu_s("-m", "beam_pipelines", "--help") for _ in range(3)) < COMMAND_CPU_S


def _cpu_s(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments], cwd=PROJECT, env={**os.environ, "COLUMNS": "80"}, capture_output=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
