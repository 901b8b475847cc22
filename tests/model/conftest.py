"""`stage`: a test that uses it runs twice, without a stop, and stopped and rescaled after every epoch.

In the second run no row stays in memory either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spark_jobs.beam_runner.bundles import spool
from spark_jobs.beam_runner.keyed import grouped
from tests.model.stream import Stage


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "stage" in metafunc.fixturenames:
        modes: list[Any] = ["whole", "restarts"]
        if getattr(metafunc.function, "on_spark", False):
            modes.append(pytest.param("spark", marks=pytest.mark.slow))
        metafunc.parametrize("stage", modes, indirect=True)


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    on_spark = request.param == "spark"
    if request.param == "restarts":
        monkeypatch.setattr(spool, "LEAST_BYTES", 0)
        monkeypatch.setattr(grouped, "OPEN_BYTES", 0)
    return Stage(tmp_path, "spark" if on_spark else "local", restarts=request.param != "whole")


@pytest.fixture
def whole(tmp_path: Path) -> Stage:
    """For tests in which a restart has nothing to lose, or would change what is measured."""
    return Stage(tmp_path)
