"""Who may import whom. `make lint` checks the packages; this checks what a package graph cannot see.

That is: whether an import is inside a function, which parts of Beam are used where, and what an import really loads.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("common", "beam_pipelines", "spark_jobs", "feature_repo")

# Package -> what it may not import, not even inside a function.
FORBIDDEN = {
    "common": ("apache_beam", "pyspark", "feast", "beam_pipelines", "spark_jobs", "feature_repo"),
    "beam_pipelines": ("pyspark", "feature_repo"),
    "spark_jobs": ("feast", "beam_pipelines", "feature_repo"),
    "feature_repo": ("pyspark", "spark_jobs"),
}
# Modules that may import spark_jobs, inside a function: they make the runner, or look at its checkpoint.
SPARK_USERS = ("beam_pipelines.launch", "beam_pipelines.runners", "beam_pipelines.cli.")
# The one module of spark_jobs that may use Beam's private parts.
BEAM_ADAPTER = "spark_jobs.beam_runner.beam_internals"


@dataclass(frozen=True)
class Import:
    module: str  # that imports
    line: int
    target: str
    is_lazy: bool  # inside a function: nothing is loaded when the module is imported

    def is_of(self, *packages: str) -> bool:
        return any(self.target == package or self.target.startswith(package + ".") for package in packages)


def imports_of(root: Path) -> Iterator[Import]:
    """All imports of the four packages below `root`, those for the type checker alone excepted."""
    for package in OURS:
        for path in sorted((root / package).rglob("*.py")):
            module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            yield from _imports(ast.parse(path.read_text()), module, is_lazy=False)


def _imports(node: ast.AST, module: str, *, is_lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (Import(module, child.lineno, name.name, is_lazy) for name in child.names)
        elif isinstance(child, ast.ImportFrom):
            # `from apache_beam import runners` is an import of apache_beam.runners.
            base = child.module or ""
            yield from (Import(module, child.lineno, f"{base}.{name.name}", is_lazy) for name in child.names)
        else:
            inside = is_lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            yield from _imports(child, module, is_lazy=inside)


def breaches(root: Path) -> list[str]:
    """Every import that breaks the law, as `module:line imports target`."""
    found = []
    for each in imports_of(root):
        package = each.module.partition(".")[0]
        forbidden = each.is_of(*FORBIDDEN[package])
        if package == "beam_pipelines" and each.is_of("spark_jobs"):
            forbidden = not (each.is_lazy and each.module.startswith(SPARK_USERS))
        if package == "spark_jobs" and each.is_of("apache_beam.runners"):
            forbidden = each.module != BEAM_ADAPTER
        if forbidden:
            found.append(f"{each.module}:{each.line} imports {each.target}")
    return found


def test_nobody_breaks_the_law() -> None:
    assert breaches(ROOT) == []


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("common/lake/reader.py", "import apache_beam as beam"),
        ("common/publish.py", "def f():\n    import feast"),
        ("beam_pipelines/pipelines/gold.py", "from pyspark.sql import SparkSession"),
        ("beam_pipelines/runners.py", "from spark_jobs.beam_runner import SparkRunner"),
        ("beam_pipelines/io/kafka.py", "def f():\n    from spark_jobs.session import spark_session"),
        ("spark_jobs/session.py", "from beam_pipelines import launch"),
        ("spark_jobs/beam_runner/driver.py", "from apache_beam import runners"),
        ("spark_jobs/beam_runner/driver.py", "def f():\n    import apache_beam.runners.worker.operations"),
        ("feature_repo/generator.py", "import pyspark"),
    ],
)
def test_each_rule_can_be_broken(tmp_path: Path, module: str, statement: str) -> None:
    path = tmp_path / module
    path.parent.mkdir(parents=True)
    path.write_text(statement)
    assert len(breaches(tmp_path)) == 1


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("beam_pipelines/runners.py", "def f():\n    from spark_jobs.beam_runner import SparkRunner"),
        ("beam_pipelines/launch.py", "if TYPE_CHECKING:\n    from spark_jobs.beam_runner import SparkRunner"),
        ("spark_jobs/beam_runner/beam_internals.py", "from apache_beam.runners import common"),
        ("common/records.py", "import pyarrow as pa"),
    ],
)
def test_what_the_law_allows_is_no_breach(tmp_path: Path, module: str, statement: str) -> None:
    path = tmp_path / module
    path.parent.mkdir(parents=True)
    path.write_text(statement)
    assert breaches(tmp_path) == []


def loaded_after(code: str) -> set[str]:
    """Top-level packages that a new interpreter has loaded after `code`."""
    script = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(ended.stdout.split())


@pytest.mark.timeout(60)
def test_common_loads_no_engine() -> None:
    """Whatever a library drags in counts too."""
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "common").rglob("*.py")
    )
    loaded = loaded_after("import " + ", ".join(modules))
    assert "pyarrow" in loaded  # it did import them
    assert loaded.isdisjoint({"apache_beam", "pyspark", "feast"})


@pytest.mark.timeout(60)
def test_the_command_line_starts_without_an_engine() -> None:
    """Beam takes 2-3 s to import, Feast 5-7 s: `--help` must not wait for them."""
    loaded = loaded_after("import beam_pipelines.cli.main")
    assert "typer" in loaded
    assert loaded.isdisjoint({"apache_beam", "pyspark", "feast", "polars", "pandas", "deltalake"})
