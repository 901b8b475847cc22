"""What the workers of a cluster import: the runner's own packages and the user's modules, through Spark's file server.

Spark copies shipped files to each executor's working folder before its first task. Beam, PySpark and what the pipeline
needs besides must be installed on the workers, in the driver's versions.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ConfigError

if TYPE_CHECKING:
    from pyspark import SparkContext

PROJECT_ROOT = Path(__file__).resolve().parent.parent
OWN_PACKAGES = ("spark_jobs", "common")
DAEMON = PROJECT_ROOT / "spark_jobs" / "beam_worker_daemon.py"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold: equal files give equal archives


def is_local(master: str) -> bool:
    """Whether tasks run in the driver's JVM, whose Python workers see what the driver sees."""
    return master == "local" or master.startswith("local[")


def ship_own_packages(context: SparkContext) -> None:
    """The runner in the driver's version, also where another one is installed. Safe to repeat."""
    _add(context, _zipped("beam_runner", [PROJECT_ROOT / name for name in OWN_PACKAGES]))
    _add(context, DAEMON)


def ship_py_files(context: SparkContext, paths: Iterable[str]) -> None:
    """Makes modules (.py), archives (.zip, pure-Python .whl) and package folders importable in all workers.

    Raises ConfigError, before anything is sent, for a path that is none of these.
    """
    checked = [_checked(Path(path)) for path in paths]
    for path in checked:
        if path.is_dir():
            _add(context, _zipped(path.name, [path]))
        elif path.suffix == ".whl":  # PySpark puts archives on the path by their suffix, and does not know this one
            _add(context, Path(shutil.copy(path, _folder() / f"{path.stem}.zip")))
        else:
            _add(context, path)


def _checked(path: Path) -> Path:
    path = path.resolve()
    if path.is_dir() and (path / "__init__.py").is_file():
        return path
    if path.is_file() and path.suffix in (".py", ".zip"):
        return path
    if path.is_file() and path.suffix == ".whl" and path.stem.endswith("-none-any"):
        return path
    raise ConfigError(
        f"--py_files={path} is no module, archive or package that can be shipped",
        code="bad_py_file",
        hint="Give a .py file, a .zip, a wheel named *-none-any.whl, or a folder with __init__.py; "
        "install what holds compiled code on the workers.",
    )


def _zipped(name: str, packages: list[Path]) -> Path:
    """An archive of package folders, named by its content: Spark takes no second file of a name."""
    draft = _folder() / "draft.zip"
    with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
        for package in packages:
            for file in sorted(f for f in package.rglob("*") if f.is_file() and "__pycache__" not in f.parts):
                info = zipfile.ZipInfo(str(file.relative_to(package.parent)), _EPOCH)
                archive.writestr(info, file.read_bytes(), zipfile.ZIP_DEFLATED)
    return draft.rename(draft.with_name(f"{name}-{sha256(draft.read_bytes()).hexdigest()[:12]}.zip"))


def _folder() -> Path:
    """A new folder that goes away with the Spark context; until then its file server reads from there."""
    from pyspark import SparkFiles

    return Path(tempfile.mkdtemp(dir=SparkFiles.getRootDirectory()))


def _add(context: SparkContext, path: Path) -> None:
    # By name: the same content in another folder is what the workers have already.
    if path.name not in {Path(added).name for added in context.listFiles}:
        context.addPyFile(str(path))
