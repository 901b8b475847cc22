"""`stage`: each test that uses it runs twice, without a stop, and stopped and rescaled after every epoch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model.stream import Stage


@pytest.fixture(params=["whole", "restarts"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    return Stage(tmp_path, restarts=request.param == "restarts")


@pytest.fixture
def whole(tmp_path: Path) -> Stage:
    """For tests in which a restart has nothing to lose, or would change what is measured."""
    return Stage(tmp_path)
