"""A streaming job whose checkpoint is on Google Cloud Storage: killed and resumed; two drivers on one checkpoint."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spark_jobs.beam_runner.checkpoint import gcs as gcs_store
from tests.fakes import gcs
from tests.faults.differences import differences
from tests.faults.test_kill_runner import start

PER_SOURCE, SLICE = 2000, 100


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[gcs.Buckets]:
    """gs://bucket of this process and of those that it starts."""
    with gcs.running("bucket") as (address, state):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        gcs_store._client.cache_clear()
        yield state
    gcs_store._client.cache_clear()


def epochs(bucket: gcs.Buckets) -> int:
    """The newest committed epoch, -1 before the first."""
    names = [
        name for name in list(bucket.objects["bucket"]) if name.startswith("job/epochs/") and name.endswith(".json")
    ]
    return max((int(Path(name).stem) for name in names), default=-1)


@pytest.mark.fault
@pytest.mark.slow
def test_a_kill_leaves_exact_results(tmp_path: Path, bucket: gcs.Buckets) -> None:
    first = start(tmp_path, PER_SOURCE, SLICE, "local", "--checkpoint=gs://bucket/job")
    deadline = time.monotonic() + 90
    while epochs(bucket) < 5:
        assert first.poll() is None, (tmp_path / "log").read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    killed_at = epochs(bucket)
    assert killed_at < PER_SOURCE / SLICE - 2, "it was done before it was killed"
    second = start(tmp_path, PER_SOURCE, SLICE, "local", "--checkpoint=gs://bucket/job")
    assert second.wait(120) == 0, (tmp_path / "log").read_text()[-2000:]
    assert epochs(bucket) >= PER_SOURCE / SLICE - 1 > killed_at
    assert differences(tmp_path, PER_SOURCE, "gs://bucket/job") == 0
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.fault
@pytest.mark.slow
def test_of_two_drivers_one_is_fenced_and_the_results_are_exact(tmp_path: Path, bucket: gcs.Buckets) -> None:
    """Both publish to one folder, each epoch to a file of its own: what a fenced one did must not be seen."""
    first = start(tmp_path, PER_SOURCE, SLICE // 2, "local", "--checkpoint=gs://bucket/job")
    second = start(tmp_path, PER_SOURCE, SLICE // 2, "local", "--checkpoint=gs://bucket/job")
    codes = [first.wait(120), second.wait(120)]
    assert sorted(code == 0 for code in codes) == [False, True], (tmp_path / "log").read_text()[-2000:]
    assert "FencedError" in (tmp_path / "log").read_text()
    assert differences(tmp_path, PER_SOURCE, "gs://bucket/job") == 0
