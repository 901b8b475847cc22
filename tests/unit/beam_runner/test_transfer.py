"""Copies that another job goes on from, and the way back: what state says, and what sinks then hold."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from beam_pipelines.io import lake as lake_io
from common.lake import Lake
from spark_jobs.beam_runner.checkpoint.checkpoint import KEEP_MANIFESTS, SIDE, STATE, Checkpoint
from spark_jobs.beam_runner.checkpoint.manifest import Manifest, SidePart
from spark_jobs.beam_runner.checkpoint.progress import manifest_of
from spark_jobs.beam_runner.checkpoint.transfer import Purpose, copy, rollback
from spark_jobs.beam_runner.checkpoint.verification import verify
from spark_jobs.beam_runner.errors import CheckpointError, FencedError
from tests.fakes import gcs
from tests.unit.beam_runner import table_job
from tests.unit.beam_runner.table_job import expected, newest_total, values


def files(checkpoint: Checkpoint) -> set[str]:
    return {name for folder in (STATE, SIDE) for name in checkpoint.store.names(folder)}


def sound(checkpoint: Checkpoint, epoch: int) -> tuple[str, ...]:
    return next(each.problems for each in verify(checkpoint).epochs if each.epoch == epoch)


def go_back(checkpoint: Checkpoint, epoch: int) -> int:
    return rollback(checkpoint, epoch, lambda wanted: sound(checkpoint, wanted))


@pytest.mark.parametrize("place", ["folder", "gs://bucket/copy"])
def test_a_copy_is_the_last_epoch_and_nothing_else(tmp_path: Path, bucket: gcs.Buckets, place: str) -> None:
    source = Checkpoint(tmp_path / "checkpoint")
    target = Checkpoint(tmp_path / "copy" if place == "folder" else place)
    table_job.run(source.url, Lake(str(tmp_path / "lake")), 300, 50)
    (tmp_path / "checkpoint/job.json").write_text("whose it is")
    done = copy(source, target, Purpose.BACKUP)
    newest = source.last_epoch()
    assert target.epochs() == [newest] == [done.epoch]
    assert files(target) == manifest_of(source, done.epoch).live_files() != files(source)
    assert verify(target).is_whole
    assert target.store.read("job.json") == b"whose it is"
    assert done.bytes == sum(each.bytes for each in verify(target).epochs)


def test_copies_go_from_and_to_object_stores_and_are_gone_on_from(tmp_path: Path, bucket: gcs.Buckets) -> None:
    lake = Lake(str(tmp_path / "lake"))
    table_job.run("gs://bucket/a", lake, 100, 50)
    copy(Checkpoint("gs://bucket/a"), Checkpoint(tmp_path / "b"), Purpose.BACKUP)
    table_job.run(tmp_path / "b", lake, 200, 50)
    copy(Checkpoint(tmp_path / "b"), Checkpoint("gs://bucket/c"), Purpose.BACKUP)
    table_job.run("gs://bucket/c", lake, 300, 50)
    assert values(lake) == expected(0, 300)
    assert newest_total(lake) == sum(expected(0, 300))


def test_a_backup_of_an_unpublished_epoch_publishes_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake_io, "LakePublisher", table_job.BreaksWhileTold)
    monkeypatch.setenv("TABLE_IS_DOWN", str(tmp_path / "down"))
    lake, source = Lake(str(tmp_path / "lake")), Checkpoint(tmp_path / "checkpoint")
    (tmp_path / "down").touch()
    with pytest.raises(OSError, match="store is down"):
        table_job.run(source.url, lake, 200, 50)
    (tmp_path / "down").unlink()
    assert source.last_epoch() == 0
    assert not lake.exists("numbers")
    copy(source, Checkpoint(tmp_path / "backup"), Purpose.BACKUP)
    for _ in range(2):
        table_job.run(tmp_path / "backup", lake, 200, 50)
        assert values(lake) == expected(0, 200)


def test_a_backup_that_is_older_than_the_tables_loses_nothing(tmp_path: Path) -> None:
    """The tables have seen later epochs of the original: those rows come twice, but none is taken for a repeat."""
    lake, source = Lake(str(tmp_path / "lake")), Checkpoint(tmp_path / "checkpoint")
    table_job.run(source.url, lake, 100, 50)
    copy(source, Checkpoint(tmp_path / "backup"), Purpose.BACKUP)
    table_job.run(source.url, lake, 300, 50)
    table_job.run(tmp_path / "backup", lake, 400, 70)
    assert values(lake) == expected(0, 400) + expected(100, 300)


def test_a_fork_leaves_the_last_epoch_to_the_original(tmp_path: Path) -> None:
    here, there = Lake(str(tmp_path / "lake")), Lake(str(tmp_path / "other-lake"))
    source, target = Checkpoint(tmp_path / "checkpoint"), Checkpoint(tmp_path / "fork")
    table_job.run(source.url, here, 100, 50)
    (tmp_path / "checkpoint/job.json").write_text("whose it is")
    copy(source, target, Purpose.FORK)
    assert "job.json" not in target.store.names("")
    assert manifest_of(target, 1).job != manifest_of(source, 1).job
    table_job.run(target.url, there, 300, 50)
    table_job.run(source.url, here, 200, 50)
    assert values(there) == expected(100, 300)
    assert newest_total(there) == sum(expected(0, 300)), "state came along"
    assert values(here) == expected(0, 200), "the original does not notice"


def test_a_copy_of_a_running_job_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage collection takes files from under the copy, which then follows a newer epoch."""
    lake, source = Lake(str(tmp_path / "lake")), Checkpoint(tmp_path / "checkpoint")
    table_job.run(source.url, lake, 50, 50)
    job = threading.Thread(target=table_job.run, args=(source.url, lake, 600, 5))
    reads: list[str] = []
    read = Checkpoint.read

    def slow_read(self: Checkpoint, folder: str, name: str, offset: int = 0, length: int = -1) -> bytes:
        if self is source and not reads:  # the job is far ahead when the first file is asked for
            reads.append(name)
            job.start()
            while self.store.names(folder) and name in self.store.names(folder):
                threading.Event().wait(0.01)
        return read(self, folder, name, offset, length)

    monkeypatch.setattr(Checkpoint, "read", slow_read)
    target = Checkpoint(tmp_path / "copy")
    done = copy(source, target, Purpose.FORK)
    job.join()
    assert done.epoch > 0
    assert verify(target).is_whole
    assert files(target) == manifest_of(target, done.epoch).live_files(), "leftovers of the epoch that was given up"
    table_job.run(target.url, Lake(str(tmp_path / "unused")), 600, 100)
    assert newest_total(Lake(str(tmp_path / "unused"))) == sum(expected(0, 600))


def test_what_was_copied_of_an_epoch_that_was_given_up_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = Checkpoint(tmp_path / "source"), Checkpoint(tmp_path / "target")
    source.prepare()
    old, lost, new = (source.write(SIDE, epoch, "rows", b"%d" % epoch) for epoch in (0, 0, 1))
    source.commit_manifest(0, Manifest(epoch=0, sides={"side": (SidePart(old, 0), SidePart(lost, 0))}).to_json())
    read = Checkpoint.read

    def read_while_the_job_goes_on(self: Checkpoint, folder: str, name: str) -> bytes:
        if name == lost:
            while old not in files(target):
                threading.Event().wait(0.01)
            source.store.delete([f"{SIDE}/{old}", f"{SIDE}/{lost}"])
            source.commit_manifest(1, Manifest(epoch=1, sides={"side": (SidePart(new, 0),)}).to_json())
        return read(self, folder, name)

    monkeypatch.setattr(Checkpoint, "read", read_while_the_job_goes_on)
    assert copy(source, target, Purpose.BACKUP).epoch == 1
    assert files(target) == {new}


def test_a_place_that_is_taken_is_refused(tmp_path: Path) -> None:
    source = Checkpoint(tmp_path / "checkpoint")
    table_job.run(source.url, Lake(str(tmp_path / "lake")), 10, 10)
    with pytest.raises(CheckpointError, match="is a checkpoint already, at epoch 0"):
        copy(source, source, Purpose.FORK)
    with pytest.raises(CheckpointError, match="no epoch was ever committed"):
        copy(Checkpoint(tmp_path / "nothing"), Checkpoint(tmp_path / "copy"), Purpose.FORK)


# ---- the way back


def test_rows_after_a_rollback_come_again_and_none_is_lost(tmp_path: Path) -> None:
    lake, checkpoint = Lake(str(tmp_path / "lake")), Checkpoint(tmp_path / "checkpoint")
    table_job.run(checkpoint.url, lake, 300, 50)
    assert go_back(checkpoint, 1) == 6
    table_job.run(checkpoint.url, lake, 500, 70)  # cut into other epochs than the first time
    assert values(lake) == expected(0, 500) + expected(100, 300)
    assert newest_total(lake) == sum(expected(0, 500)), "state went back too"


def test_with_its_table_put_back_a_rollback_is_exact(tmp_path: Path) -> None:
    """As docs/checkpoints.md says: the table's history knows which version an epoch made."""
    lake, checkpoint = Lake(str(tmp_path / "lake")), Checkpoint(tmp_path / "checkpoint")
    table_job.run(checkpoint.url, lake, 300, 50)
    go_back(checkpoint, 1)
    table = lake.open("numbers")
    version = next(entry["version"] for entry in table.history() if entry.get("epoch") == "1")
    table.restore(version)
    assert values(lake) == expected(0, 100)
    table_job.run(checkpoint.url, lake, 500, 70)
    assert values(lake) == expected(0, 500)


def test_a_rollback_can_be_rolled_back(tmp_path: Path) -> None:
    lake, checkpoint = Lake(str(tmp_path / "lake")), Checkpoint(tmp_path / "checkpoint")
    table_job.run(checkpoint.url, lake, 300, 50)
    go_back(checkpoint, 1)
    go_back(checkpoint, 5)
    table_job.run(checkpoint.url, lake, 400, 50)
    assert values(lake) == expected(0, 400)


def test_a_rollback_fences_a_driver_that_still_runs(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint")
    table_job.run(checkpoint.url, Lake(str(tmp_path / "lake")), 200, 50)
    old = manifest_of(checkpoint, 3)
    go_back(checkpoint, 1)
    with pytest.raises(FencedError):
        checkpoint.commit_manifest(old.epoch + 1, old.to_json())


def test_there_is_a_way_back_after_many_epochs_and_it_costs_little(tmp_path: Path) -> None:
    lake, checkpoint = Lake(str(tmp_path / "lake")), Checkpoint(tmp_path / "checkpoint")
    table_job.run(checkpoint.url, lake, 500, 5)  # 100 epochs
    health = verify(checkpoint)
    assert health.is_whole
    assert health.newest == 99
    assert len(health.epochs) >= KEEP_MANIFESTS
    named = {name for each in health.epochs for name in manifest_of(checkpoint, each.epoch).live_files()}
    assert files(checkpoint) == named, "garbage, or something is missing"
    assert len(named) <= 2 * (len(health.epochs) + 8)
    oldest = health.epochs[0].epoch
    go_back(checkpoint, oldest)
    table_job.run(checkpoint.url, lake, 520, 5)
    assert newest_total(lake) == sum(expected(0, 520))


def test_an_epoch_that_is_not_whole_or_not_there_is_no_way_back(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint")
    table_job.run(checkpoint.url, Lake(str(tmp_path / "lake")), 300, 50)
    with pytest.raises(CheckpointError, match="cannot go back to epoch 77: it has the manifests of 0, 1, 2"):
        go_back(checkpoint, 77)
    name = min(manifest_of(checkpoint, 2).state_files() - manifest_of(checkpoint, 1).state_files())
    (tmp_path / "checkpoint/state" / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}, which is missing"):
        go_back(checkpoint, 2)
    assert checkpoint.last_epoch() == 5


# ---- damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("what", "harm"),
    [("manifest", cut), ("manifest", flip), ("state", cut), ("state", flip), ("state", remove)],
)
def test_damage_is_found_refused_and_there_is_a_way_back(
    tmp_path: Path, what: str, harm: Callable[[Path], None]
) -> None:
    lake, checkpoint = Lake(str(tmp_path / "lake")), Checkpoint(tmp_path / "checkpoint")
    table_job.run(checkpoint.url, lake, 300, 50)
    if what == "manifest":
        path = tmp_path / "checkpoint/epochs/000000005.json"
    else:
        newest, before = (manifest_of(checkpoint, epoch).state_files() for epoch in (5, 4))
        path = tmp_path / "checkpoint/state" / min(newest - before)
    harm(path)

    health = verify(checkpoint)
    assert [each.epoch for each in health.epochs if each.problems] == [5]
    assert health.newest_whole == 4
    told = str(next(each for each in health.epochs if each.problems).problems[0])
    assert (path.name if what == "state" else "manifest of epoch 5") in told

    with pytest.raises(CheckpointError) as refused:
        table_job.run(checkpoint.url, lake, 400, 50)
    assert f"checkpoint verify {checkpoint.url}" in str(refused.value.hint)
    assert checkpoint.last_epoch() == 5, "nothing was committed on damaged state"

    go_back(checkpoint, 4)
    table_job.run(checkpoint.url, lake, 400, 50)
    assert set(values(lake)) == set(expected(0, 400))
    assert newest_total(lake) == sum(expected(0, 400))


def test_a_side_input_with_other_bytes_is_refused(tmp_path: Path) -> None:
    """Its bytes would still decode, to other elements."""
    checkpoint = Checkpoint(tmp_path)
    checkpoint.prepare()
    name = checkpoint.write(SIDE, 0, "rows", b"elements")
    checkpoint.commit_manifest(0, Manifest(epoch=0, sides={"side": (SidePart(name, 0),)}).to_json())
    assert verify(checkpoint).is_whole
    flip(tmp_path / SIDE / name)
    assert name in verify(checkpoint).epochs[0].problems[0]
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        checkpoint.read(SIDE, name)


def test_a_manifest_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint")
    checkpoint.prepare()
    checkpoint.commit_manifest(0, Manifest(epoch=0).to_json().replace(b'"format":3', b'"format":4'))
    with pytest.raises(CheckpointError, match=r"epoch 0 of .* has manifest format 4; this version reads 3"):
        table_job.run(checkpoint.url, Lake(str(tmp_path / "lake")), 1, 1)
