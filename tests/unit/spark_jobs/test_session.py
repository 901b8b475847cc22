"""Sessions that the runner makes: what their workers have of the driver."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from beside import double
from spark_jobs.beam_runner import SparkRunner

with beam.Pipeline(runner=SparkRunner(), options=PipelineOptions()) as p:
    p | beam.Create([21]) | beam.Map(double) | beam.Map(print)
"""


@pytest.mark.slow
def test_workers_import_modules_from_beside_the_script(tmp_path: Path) -> None:
    """Wherever it was started."""
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "job.py").write_text(SCRIPT)
    (tmp_path / "script" / "beside.py").write_text("def double(x):\n    return 2 * x\n")
    command = [sys.executable, "script/job.py", "--tasks=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "42" in done.stderr.splitlines()
