"""Functions named in a feature repo's declaration."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigError
from common.repo_functions import repo_function


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "shop_repo"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "numbers_of.py").write_text("from shop_repo.tens import TEN\ndef ten():\n    return TEN\nELEVEN = 11\n")
    (folder / "tens.py").write_text("TEN = 10\n")
    (folder / "broken.py").write_text("import no_such_module_anywhere\n")
    return folder


def test_a_function_is_found_and_may_import_its_neighbours(repo: Path) -> None:
    assert repo_function(repo, "numbers_of:ten")() == 10


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("numbers_of", "is not module:function"),
        ("absent:ten", "there is no module absent"),
        ("numbers_of:absent", "has no function 'absent'"),
        ("numbers_of:ELEVEN", "is not a function"),
    ],
)
def test_what_is_not_there_is_named(repo: Path, reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        repo_function(repo, reference)


def test_a_missing_dependency_is_not_blamed_on_the_repo(repo: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        repo_function(repo, "broken:f")
