"""What a checkpoint needs of its place: the same on a file system and on Google Cloud Storage."""

from __future__ import annotations

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from spark_jobs.beam_runner.checkpoint import gcs as gcs_store
from spark_jobs.beam_runner.checkpoint.checkpoint import STATE, Checkpoint
from spark_jobs.beam_runner.checkpoint.store import CheckpointStore, open_store
from spark_jobs.beam_runner.errors import CheckpointError, CheckpointStoreError, FencedError
from tests.fakes import gcs


@pytest.fixture(params=["posix", "gs", "gs, in a folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    if request.param == "posix":
        made = open_store(tmp_path)
    else:
        request.getfixturevalue("bucket")
        made = open_store("gs://bucket" if request.param == "gs" else "gs://bucket/a/b/")
    made.prepare(["epochs", "state"])
    return made


def test_what_was_written_is_read_whole_and_in_parts(store: CheckpointStore) -> None:
    data = os.urandom(3_000_000)  # more than two blocks
    store.write("state/a", data)
    assert store.read("state/a") == data
    for offset, length in ((0, 10), (1_048_570, 12), (999, 2_500_000), (2_999_990, 10), (5, 0)):
        assert store.read("state/a", offset, length) == data[offset : offset + length]
    assert store.read("state/a", 2_999_999, 5) == data[-1:]
    assert store.read("state/a", 3_000_000, 5) == b""
    with pytest.raises(FileNotFoundError):
        store.read("state/b")
    with pytest.raises(FileNotFoundError):
        store.read("state/b", 0, 3)


def test_files_and_their_names_are_durable_when_a_call_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[str] = []

    def noted(name: str) -> None:
        original = getattr(os, name)

        def call(what: Any, *rest: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{what}") if name == "fsync" else os.fspath(what)
            did.append(f"{name} {os.path.relpath(path, tmp_path).partition('.')[0]}")
            return original(what, *rest)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "link", "rename"):
        noted(name)
    place = open_store(tmp_path / "jobs" / "own")
    place.prepare(["epochs", "state"])
    assert sorted(did) == ["fsync ", "fsync jobs", "fsync jobs/own"], "the names of all folders that were made"
    did.clear()
    place.prepare(["epochs", "state"])
    place.write("state/a", b"data")
    assert did == ["fsync jobs/own", "fsync jobs/own/state/a", "rename jobs/own/state/a", "fsync jobs/own/state"]
    did.clear()
    assert place.put_if_absent("epochs/1", b"data")
    assert did == ["fsync jobs/own/epochs/1", "link jobs/own/epochs/1", "fsync jobs/own/epochs"]


def test_large_files_go_in_several_requests(store: CheckpointStore) -> None:
    data = os.urandom(9 << 20)
    store.write("state/large", data)
    assert store.read("state/large") == data


def test_a_name_is_taken_once(store: CheckpointStore) -> None:
    assert store.put_if_absent("epochs/1", b"first")
    assert not store.put_if_absent("epochs/1", b"second")
    assert store.read("epochs/1") == b"first"
    assert store.names("epochs") == ["1"]


def test_of_racing_writers_one_wins(store: CheckpointStore) -> None:
    start = threading.Barrier(6)

    def put(number: int) -> bool:
        start.wait()
        return store.put_if_absent("epochs/1", b"%d" % number)

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(put, range(6)))
    assert sum(won) == 1
    assert store.read("epochs/1") == b"%d" % won.index(True)


def test_names_are_those_of_the_folder(store: CheckpointStore) -> None:
    for name in ("epochs/1", "epochs/2", "epochs/3", "epochs/4", "epochs/5", "state/1"):
        store.write(name, b"")
    store.put_if_absent("job.json", b"{}")
    assert sorted(store.names("epochs")) == ["1", "2", "3", "4", "5"]
    assert store.names("state") == ["1"]
    assert store.names("side") == []
    assert store.names("") == ["job.json"]
    store.delete(["epochs/1", "epochs/2", "epochs/absent"])
    assert sorted(store.names("epochs")) == ["3", "4", "5"]


def test_it_travels_to_tasks_without_a_client(store: CheckpointStore) -> None:
    store.write("state/a", b"there")
    packed = pickle.dumps(store)
    assert len(packed) < 500
    assert pickle.loads(packed).read("state/a") == b"there"


# ---- a file system alone


def test_a_link_whose_answer_was_lost_is_known_as_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS asks again and is told that the name is taken: by itself."""
    link = os.link

    def link_and_ask_again(*args: str) -> None:
        link(*args)
        link(*args)

    monkeypatch.setattr(os, "link", link_and_ask_again)
    checkpoint = Checkpoint(tmp_path)
    checkpoint.prepare()
    checkpoint.commit_manifest(3, b"mine")
    with pytest.raises(FencedError):
        checkpoint.commit_manifest(3, b"mine")
    assert os.listdir(tmp_path / "epochs") == ["000000003.json"]


def test_a_driver_whose_draft_was_collected_is_fenced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, checkpoint = os.link, Checkpoint(tmp_path)

    def link_late(*args: str) -> None:
        """After another driver has come so far, and has cleared up."""
        with monkeypatch.context() as other:
            other.setattr(os, "link", link)
            for epoch in range(1, 13):
                checkpoint.commit_manifest(epoch, b"another's")
            checkpoint.collect_garbage(12, set())
        link(*args)

    checkpoint.prepare()
    monkeypatch.setattr(os, "link", link_late)
    with pytest.raises(FencedError):
        checkpoint.commit_manifest(1, b"mine")


# ---- Google Cloud Storage alone


def once(status: int, method: str, path: str) -> gcs.Rule:
    left = [status]
    return lambda m, p: left.pop() if left and m == method and path in p else None


def test_a_commit_whose_answer_was_lost_is_known_as_our_own(bucket: gcs.Buckets) -> None:
    """The client tries again and is told that the name is taken: by itself."""
    bucket.after = once(503, "POST", "/o")
    Checkpoint("gs://bucket/c").commit_manifest(3, b"mine")
    assert bucket.objects["bucket"]["c/epochs/000000003.json"].data == b"mine"
    assert len([c for c in bucket.calls if c[0] == "POST"]) == 2
    with pytest.raises(FencedError):
        Checkpoint("gs://bucket/c").commit_manifest(3, b"mine")


def test_a_commit_that_lost_to_a_manifest_that_is_gone_is_fenced(bucket: gcs.Buckets) -> None:
    """Garbage collection takes it before it is asked whose it is."""
    checkpoint = Checkpoint("gs://bucket/c")
    checkpoint.commit_manifest(3, b"another's")

    def collect(method: str, path: str) -> None:
        if method == "GET" and path.endswith("3.json"):
            bucket.objects["bucket"].clear()

    bucket.before = collect
    with pytest.raises(FencedError):
        checkpoint.commit_manifest(3, b"mine")


def test_a_data_file_whose_answer_was_lost_is_written_once(bucket: gcs.Buckets) -> None:
    bucket.after = once(502, "POST", "/o")
    checkpoint = Checkpoint("gs://bucket/c")
    assert checkpoint.read(STATE, checkpoint.write(STATE, 1, "kg", b"data")) == b"data"
    assert len(bucket.objects["bucket"]) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_transient_errors_are_tried_again(bucket: gcs.Buckets, status: int) -> None:
    checkpoint = Checkpoint("gs://bucket/c")
    name = checkpoint.write(STATE, 1, "kg", b"data")
    bucket.before = once(status, "GET", name)
    assert checkpoint.read(STATE, name, 1, 2) == b"at"


def test_tries_are_bounded(bucket: gcs.Buckets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs_store, "RETRY_S", 0.5)
    bucket.before = lambda method, path: 503
    with pytest.raises(CheckpointStoreError, match=r"no answer for .*gs://bucket/c") as told:
        Checkpoint("gs://bucket/c").last_epoch()
    assert told.value.hint


def test_a_missing_bucket_is_told_before_anything_runs(bucket: gcs.Buckets) -> None:
    with pytest.raises(CheckpointStoreError, match="no bucket nowhere") as told:
        Checkpoint("gs://nowhere/c").prepare()
    assert told.value.hint == "gcloud storage buckets create gs://nowhere"
    with pytest.raises(CheckpointStoreError, match="no bucket nowhere"):
        Checkpoint("gs://nowhere/c").write(STATE, 1, "kg", b"")


def test_missing_rights_are_told(bucket: gcs.Buckets) -> None:
    bucket.before = lambda method, path: 403
    with pytest.raises(CheckpointStoreError, match="refuses access") as told:
        Checkpoint("gs://bucket/c").prepare()
    assert "objectUser" in str(told.value.hint)


def test_missing_credentials_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    gcs_store._client.cache_clear()
    with pytest.raises(CheckpointStoreError, match="no usable credentials") as told:
        Checkpoint("gs://bucket/c").prepare()
    assert "gcloud auth application-default login" in str(told.value.hint)


def test_a_cold_reader_of_many_frames_asks_once(bucket: gcs.Buckets) -> None:
    checkpoint = Checkpoint("gs://bucket/c")
    name = checkpoint.write(STATE, 1, "kg", bytes(range(200)))
    bucket.calls.clear()
    frames = [checkpoint.read(STATE, name, at, 2) for at in range(0, 200, 2)]
    assert b"".join(frames) == bytes(range(200))
    assert len([path for _, path in bucket.calls if path.endswith(name)]) == 1


def test_a_file_that_is_gone_is_named(bucket: gcs.Buckets) -> None:
    with pytest.raises(CheckpointError, match=r"gs://bucket/c/state/000000001-x\.kg, which is missing"):
        Checkpoint("gs://bucket/c").read(STATE, "000000001-x.kg", 0, 3)


@pytest.mark.parametrize("address", ["s3://bucket/c", "hdfs://host/c"])
def test_other_object_stores_are_refused_by_name(address: str) -> None:
    with pytest.raises(CheckpointStoreError, match=address):
        open_store(address)
