"""The commands on real services, in the order in which somebody types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import PROJECT, Outcome

pytestmark = pytest.mark.slow
EVENTS = 3_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("journey")
    yield folder
    command(folder, "services", "down")


def command(folder: Path, *arguments: str) -> Outcome:
    """As a process of its own, in a folder of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINES_")}
    environment |= {"PYTHONPATH": str(PROJECT), "PIPELINES_REPO": str(PROJECT / "feature_repo")}
    done = subprocess.run(
        [sys.executable, "-m", "beam_pipelines", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_from_services_to_status(folder: Path) -> None:
    up = command(folder, "services", "up", "--output", "json")
    assert up.code == 0, up.err

    ran = command(folder, "run", "--events", str(EVENTS), "--output", "json", "--", "--transport=local")
    assert ran.code == 0, ran.err
    run = json.loads(ran.out.splitlines()[-1])
    assert run["consumed"] == EVENTS

    healthy = command(folder, "doctor", "--output", "json")
    checks = {check["name"]: check for check in healthy.document["checks"]}
    assert healthy.code == 0, healthy.out
    for name, address in zip(("kafka", "registry", "redis"), up.document.values(), strict=True):
        assert address in checks[name]["detail"]
    assert "(0600)" in checks["pii key"]["detail"]

    status = command(folder, "status", "--output", "json")
    found = status.document
    assert status.code == 0, status.err
    assert {service["state"] for service in found["services"].values()} == {"running"}
    assert {name: table["version"] for name, table in found["tables"].items()} == run["tables"]
    assert found["tables"]["bronze"]["rows"] == run["bronze"]
    assert sum(each["rows"] for each in found["dead_letters"]) == run["bronze_dlq"] + run["silver_dlq"]
    assert (found["checkpoint"]["consumed"], found["checkpoint"]["lag"]) == (EVENTS, 0)

    produced = command(folder, "produce", "--events", "500", "--bootstrap-servers", up.document["kafka"])
    assert produced.code == 0, produced.err
    assert command(folder, "status", "--output", "json").document["checkpoint"]["lag"] == 500


def test_deep_runs_a_spark_job(folder: Path) -> None:
    outcome = command(folder, "doctor", "--deep", "--output", "json")
    assert outcome.code == 0, outcome.out
    assert outcome.document["checks"][-1]["name"] == "spark"
