"""What is shipped to a cluster's workers, and which masters are on loopback."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to

from common.errors import ConfigError
from spark_jobs import shipping
from spark_jobs.beam_runner import SparkRunner
from spark_jobs.beam_runner.errors import SHARED_PLACE, CheckpointError, RunnerError
from spark_jobs.session import is_on_loopback


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Spark context that only remembers what it was given."""
    files: list[str] = []
    monkeypatch.setattr("pyspark.SparkFiles.getRootDirectory", lambda: str(tmp_path))
    return SimpleNamespace(listFiles=files, addPyFile=files.append)


def test_the_same_packages_are_shipped_once(context: Any) -> None:
    shipping.ship_own_packages(context)
    shipping.ship_own_packages(context)
    archive, daemon = map(Path, context.listFiles)
    assert archive.name.startswith("beam_runner-")
    assert archive.suffix == ".zip"
    assert daemon.name == "beam_worker_daemon.py"
    names = zipfile.ZipFile(archive).namelist()
    assert {"spark_jobs/beam_runner/transport/spark_worker.py", "common/errors.py"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]


def test_changed_code_gets_another_name(context: Any, tmp_path: Path) -> None:
    package = tmp_path / "mine"
    package.mkdir()
    for text in ("A = 1\n", "A = 1\n", "A = 2\n"):
        (package / "__init__.py").write_text(text)
        shipping.ship_py_files(context, [str(package)])
    assert len(context.listFiles) == 2


def test_a_wheel_is_shipped_as_an_archive_that_pyspark_knows(context: Any, tmp_path: Path) -> None:
    wheel = tmp_path / "mine-1.0-py3-none-any.whl"
    wheel.write_bytes(b"content")
    shipping.ship_py_files(context, [str(wheel)])
    (shipped,) = map(Path, context.listFiles)
    assert shipped.name == "mine-1.0-py3-none-any.zip"
    assert shipped.read_bytes() == b"content"


@pytest.mark.parametrize("name", ["missing.py", "folder", "compiled-1.0-cp311-cp311-linux_x86_64.whl", "notes.txt"])
def test_what_cannot_be_shipped_is_refused_before_anything_is_sent(context: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "good.py").write_text("")
    (tmp_path / "folder").mkdir()
    for file in ("compiled-1.0-cp311-cp311-linux_x86_64.whl", "notes.txt"):
        (tmp_path / file).write_text("")
    with pytest.raises(ConfigError, match=name):
        shipping.ship_py_files(context, [str(tmp_path / "good.py"), str(tmp_path / name)])
    assert context.listFiles == []


@pytest.mark.parametrize(
    ("master", "local", "loopback"),
    [
        ("local", True, True),
        ("local[4]", True, True),
        ("local[2,4]", True, True),
        ("local-cluster[2,1,1024]", False, True),
        ("spark://127.0.0.1:7077", False, True),
        ("spark://localhost:7077", False, True),
        ("spark://127.0.0.1:7077,head-2:7077", False, False),
        ("spark://head:7077", False, False),
        ("yarn", False, False),
        ("k8s://https://127.0.0.1:6443", False, False),
    ],
)
def test_where_a_master_is(master: str, local: bool, loopback: bool) -> None:
    assert (shipping.is_local(master), is_on_loopback(master)) == (local, loopback)


@pytest.mark.parametrize("is_mine", [True, False], ids=["own session", "by flag"])
def test_a_stream_on_a_cluster_needs_a_checkpoint_that_workers_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_mine: bool
) -> None:
    """Said before a session is started, or anything is run in it. Leaves nothing."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("spark_jobs.session.active_session", lambda: None)
    monkeypatch.setattr("spark_jobs.session.spark_session", lambda **_: pytest.fail("a session was started"))
    session: Any = SimpleNamespace(sparkContext=SimpleNamespace(master="spark://head:7077"))
    flags = ["--streaming"] if is_mine else ["--streaming", "--spark_master=spark://head:7077"]
    pipeline = beam.Pipeline(runner=SparkRunner(session if is_mine else None), options=PipelineOptions(flags))
    _ = pipeline | beam.Create([1])
    with pytest.raises(RunnerError) as refused:
        pipeline.run()
    assert not list(tmp_path.glob("beam-checkpoint-*"))
    assert refused.value.message == "A stream on spark://head:7077 has no --checkpoint that its workers could share."


@pytest.mark.parametrize(("count", "fits"), [(10, True), (3000, False)])
def test_a_batch_on_a_cluster_without_a_checkpoint_may_have_small_side_inputs(
    monkeypatch: pytest.MonkeyPatch, count: int, fits: bool
) -> None:
    """One machine plays the cluster: in a batch nothing but a large side input is written to files."""
    monkeypatch.setattr(SparkRunner, "_is_on_one_machine", lambda *_: False)
    pipeline = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(["--transport=local"]))
    large = pipeline | "large" >> beam.Create(["x" * 1000] * count)
    keyed = pipeline | "keyed" >> beam.Create([("a", 1), ("a", 2)])
    read = keyed | beam.CombinePerKey(sum) | beam.Map(lambda pair, seen: (*pair, len(seen)), beam.pvalue.AsList(large))
    assert_that(read, equal_to([("a", 3, count)]))
    if fits:
        pipeline.run()
        return
    with pytest.raises(CheckpointError, match="more than travels with the job") as refused:
        pipeline.run()
    assert refused.value.hint == SHARED_PLACE
