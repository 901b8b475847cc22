"""Sessions that the runner makes: what their workers have of the driver, and masters that there are not."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from common.errors import ConfigError
from spark_jobs import session
from spark_jobs.beam_runner import SparkRunner

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


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "active_session", lambda: None)
    monkeypatch.setattr(session, "java_home", lambda: pytest.fail("a JVM was started"))


def run_on(master: str) -> None:
    pipeline = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions([f"--spark_master={master}"]))
    _ = pipeline | beam.Create([1])
    pipeline.run()


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("master", ["lcal[2]", "local[", "host:7077", "spark:/host:7077"])
def test_a_mistyped_master_is_named(master: str) -> None:
    with pytest.raises(ConfigError) as refused:
        run_on(master)
    assert refused.value.message == f"--spark_master={master} is no Spark master"


@pytest.mark.usefixtures("nothing_starts")
def test_an_unreachable_master_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
    for address in (f"127.0.0.1:{taken}", "127.0.0.1:port", "no-host.invalid:7077"):
        with pytest.raises(ConfigError) as refused:
            run_on(f"spark://{address}")
        assert refused.value.message.startswith(f"--spark_master=spark://{address} cannot be reached ({address}: ")


def test_a_session_on_another_master_is_not_taken_for_it(caplog: pytest.LogCaptureFixture) -> None:
    conf = SimpleNamespace(getAll=lambda: [("spark.a", "1"), ("spark.b", "2")])
    here: Any = SimpleNamespace(sparkContext=SimpleNamespace(master="local[2]", getConf=lambda: conf))
    with pytest.raises(ConfigError, match=r"spark://far:7077, but this process has a Spark session on local\[2\]"):
        session.require_session(here, "spark://far:7077", {})
    for master in (None, "local[2]"):
        session.require_session(here, master, {"spark.a": "1"})
    assert caplog.text == ""
    session.require_session(here, None, {"spark.a": "1", "spark.b": "3", "spark.c": "4"})
    assert "--spark_conf of spark.b, spark.c has no effect" in caplog.text


def test_one_master_of_several_is_enough() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        session._require_master(f"spark://no-host.invalid:7077,127.0.0.1:{server.getsockname()[1]}")
