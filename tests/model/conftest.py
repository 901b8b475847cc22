"""`stage`: a test that uses it runs twice, without a stop, and stopped and rescaled after every epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.model.stream import Stage


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "stage" in metafunc.fixturenames:
        modes: list[Any] = ["whole", "restarts"]
        if getattr(metafunc.function, "on_spark", False):
            modes.append(pytest.param("spark", marks=pytest.mark.slow))
        metafunc.parametrize("stage", modes, indirect=True)


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    on_spark = request.param == "spark"
    return Stage(tmp_path, "spark" if on_spark else "local", restarts=request.param != "whole")


@pytest.fixture
def whole(tmp_path: Path) -> Stage:
    """For tests in which a restart has nothing to lose, or would change what is measured."""
    return Stage(tmp_path)
