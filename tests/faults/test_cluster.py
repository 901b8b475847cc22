"""Spark standalone on loopback: pipelines whose code the workers do not have, and executors that die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Note
from tests.faults.killed_runs import ROOT, SLICE, log, run_killed, run_one_after_the_other
from tests.faults.kills import (
    BEFORE_STATE,
    DRIVER_POINTS,
    JVM,
    LATE_TASK,
    ROOT_VARIABLE,
    SELF,
    SPARK_POINTS,
    STALLS,
    STANDALONE_WORKER,
    Kill,
    attempts,
)
from tests.faults.standalone import Standalone, standalone_cluster

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(600)]

PROGRAM = """\
import sys
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from spark_jobs.beam_runner import SparkRunner
import foldered, single, wheeled, zipped

with beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(sys.argv[2:])) as p:
    limit = p | "limit" >> beam.Create([40])
    _ = (
        p
        | "numbers" >> beam.Create(range(100))
        | beam.Map(single.keyed)
        | beam.GroupByKey()
        | beam.Map(zipped.total)
        | beam.Filter(wheeled.more_than, beam.pvalue.AsSingleton(limit))
        | beam.ParDo(foldered.Write(sys.argv[1]))
    )
"""
MODULES = {
    "single.py": "def keyed(n): return n % 7, n\n",
    "zipped.py": "def total(pair): return pair[0], sum(pair[1])\n",
    "wheeled.py": "def more_than(pair, limit): return pair[1] > 17 * limit\n",
    "foldered/__init__.py": """\
import json, os, uuid
import apache_beam as beam

class Write(beam.DoFn):
    def __init__(self, folder): self.folder = folder
    def process(self, pair):
        import common, spark_jobs
        where = [os.path.abspath(__import__(name).__file__) for name in ("single", "zipped", "wheeled", "foldered")]
        found = {"pair": pair, "theirs": where, "ours": [spark_jobs.__file__, common.__file__], "pid": os.getppid()}
        with open(f"{self.folder}/{uuid.uuid4().hex}.json", "w") as file:
            json.dump(found, file)
""",
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standalone]:
    with standalone_cluster(tmp_path_factory.mktemp("cluster") / "spark") as running:
        yield running


def flags_for(cluster: Standalone, root: Path, tasks: int = 2) -> list[str]:
    """The killing job on the cluster: its workers have neither the project nor the tests."""
    return [
        f"--spark_master={cluster.master}",
        f"--tasks={tasks}",
        "--spark_conf=spark.executor.memory=512m",
        "--py_files=tests",
        "--py_files=beam_pipelines",
        "--py_files=tests/faults/killing_daemon.py",
        "--spark_conf=spark.python.daemon.module=killing_daemon",
        f"--spark_conf=spark.executorEnv.{ROOT_VARIABLE}={root}",
    ]


def test_a_batch_on_workers_that_have_only_beam(tmp_path: Path, cluster: Standalone) -> None:
    """Grouping and a side input, with functions from a module, a zip, a wheel and a package's folder."""
    for name, text in {**MODULES, "program.py": PROGRAM}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for module, archive in (("zipped.py", "code.zip"), ("wheeled.py", "wheeled-1.0-py3-none-any.whl")):
        with zipfile.ZipFile(tmp_path / archive, "w") as file:
            file.write(tmp_path / module, module)
    (tmp_path / "out").mkdir()
    shipped = ["single.py", "code.zip", "wheeled-1.0-py3-none-any.whl", "foldered"]
    flags = [f"--spark_master={cluster.master}", "--spark_conf=spark.executor.memory=512m"]
    done = subprocess.run(
        [sys.executable, "program.py", str(tmp_path / "out"), *flags, *(f"--py_files={path}" for path in shipped)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + cluster.logs()
    found = [json.loads(path.read_text()) for path in (tmp_path / "out").iterdir()]
    totals = {key: sum(n for n in range(100) if n % 7 == key) for key in range(7)}
    assert sorted(tuple(f["pair"]) for f in found) == sorted((k, v) for k, v in totals.items() if v > 17 * 40)
    executors = str(cluster.folder / "worker-")
    for each in found:
        assert all(path.startswith(executors) for path in (*each["theirs"], *each["ours"])), each
    assert len({each["pid"] for each in found}) == 2, "one of the two executors did all the work"


def test_a_stream_whose_executor_dies(tmp_path: Path, cluster: Standalone, note: Note) -> None:
    """State, timers and windows; nobody starts anything again."""
    plan = [Kill(BEFORE_STATE, JVM, 2)]
    outcome = run_killed(tmp_path, plan, 7 * SLICE, SLICE, *flags_for(cluster, tmp_path))
    assert (outcome.kills, outcome.runs, outcome.differences) == (plan, 1, 0), log(tmp_path)
    note("standalone cluster", outcome)


@pytest.mark.matrix
@pytest.mark.parametrize("victim", [SELF, JVM])
def test_workers_and_executors_at_every_point(tmp_path: Path, cluster: Standalone, note: Note, victim: str) -> None:
    outcome = run_one_after_the_other(tmp_path, SPARK_POINTS, victim, *flags_for(cluster, tmp_path))
    assert outcome.runs == 1
    note("standalone cluster", outcome)


@pytest.mark.matrix
def test_executors_while_the_driver_commits(tmp_path: Path, cluster: Standalone, note: Note) -> None:
    outcome = run_one_after_the_other(tmp_path, DRIVER_POINTS, JVM, *flags_for(cluster, tmp_path))
    assert outcome.runs == 1
    note("standalone cluster", outcome)


@pytest.mark.matrix
def test_the_driver_of_a_cluster(tmp_path: Path, cluster: Standalone, note: Note) -> None:
    points = (*DRIVER_POINTS[:3], DRIVER_POINTS[-2])
    outcome = run_one_after_the_other(tmp_path, points, SELF, *flags_for(cluster, tmp_path))
    assert outcome.runs == len(points) + 1
    note("standalone cluster", outcome)


@pytest.mark.matrix
def test_a_machine_is_lost(tmp_path: Path, note: Note) -> None:
    """The standalone worker and, with it, its executor: the other one goes on alone."""
    with standalone_cluster(tmp_path / "spark") as cluster:
        plan = [Kill(BEFORE_STATE, STANDALONE_WORKER, 2)]
        outcome = run_killed(tmp_path, plan, 7 * SLICE, SLICE, *flags_for(cluster, tmp_path))
    assert (outcome.kills, outcome.runs, outcome.differences) == (plan, 1, 0), log(tmp_path)
    note("standalone cluster", outcome)


@pytest.mark.matrix
def test_results_that_are_computed_again_are_not_mixed_with_the_old_ones(
    tmp_path: Path, cluster: Standalone, note: Note
) -> None:
    """With Spark's default of four stage attempts: what two tasks have read is computed again for the other two."""
    plan = [Kill(LATE_TASK, JVM, 2)]
    flags = [*flags_for(cluster, tmp_path, tasks=4), "--spark_conf=spark.stage.maxConsecutiveAttempts=4"]
    outcome = run_killed(tmp_path, plan, 7 * SLICE, SLICE, *flags)
    assert (outcome.kills, outcome.runs, outcome.differences) == (plan, 1, 0), log(tmp_path)
    assert "were lost and computed again" in log(tmp_path)
    note("standalone cluster, stage attempts", outcome)


@pytest.mark.matrix
def test_speculation_is_harmless(tmp_path: Path, cluster: Standalone, note: Note) -> None:
    """A task stands still after its state file is written; a second attempt overtakes it."""
    plan = [Kill(point, STALLS, 2 + 2 * n) for n, point in enumerate(("after state write", "after staged file"))]
    speculation = {"": "true", ".interval": "100ms", ".quantile": "0.5", ".minTaskRuntime": "100ms", ".multiplier": "2"}
    conf = [f"--spark_conf=spark.speculation{name}={value}" for name, value in speculation.items()]
    outcome = run_killed(tmp_path, plan, 8 * SLICE, SLICE, *flags_for(cluster, tmp_path), *conf)
    assert (outcome.kills, outcome.runs, outcome.differences) == (plan, 1, 0), log(tmp_path)
    assert "is run again" not in log(tmp_path)
    assert sum(count > 1 for count in attempts(tmp_path).values()) >= len(plan), "no second attempt was started"
    note("standalone cluster, speculation", outcome)
