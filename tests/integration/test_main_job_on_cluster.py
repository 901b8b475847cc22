"""The main job on a Spark standalone cluster: its workers have Beam and the libraries, but not the project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.killed_runs import ROOT
from tests.faults.standalone import standalone_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EVENTS = 5_000


def test_a_stream_on_two_workers_adds_up(tmp_path: Path) -> None:
    """`run` itself fails if the counts or the tables do not add up."""
    with standalone_cluster(tmp_path / "spark") as cluster:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "beam_pipelines", "run", f"--events={EVENTS}", f"--state-dir={tmp_path}/state"),
                *("--output=json", "--", f"--spark_master={cluster.master}", "--spark_conf=spark.executor.memory=512m"),
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:] + cluster.logs()
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["consumed"] == EVENTS
    assert report["silver"] > 0.9 * EVENTS
    assert (tmp_path / "state/warehouse/stream/silver").is_dir()
