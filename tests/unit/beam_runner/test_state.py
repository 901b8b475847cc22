"""Key-group state: what is written is what is read, by warm and cold workers, and damage is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_jobs.beam_runner.checkpoint import STATE, Checkpoint
from spark_jobs.beam_runner.errors import CheckpointError
from spark_jobs.beam_runner.manifest import Frame
from spark_jobs.beam_runner.state import SNAPSHOT_AFTER_FRAMES, USER, KeyGroup, StateCache, StateWriter

Change = tuple[bytes, bytes | None]
epochs_of_changes = st.lists(
    st.lists(st.tuples(st.binary(max_size=3), st.one_of(st.none(), st.binary(max_size=9))), max_size=5), max_size=20
)


def write_epoch(
    checkpoint: Checkpoint, cache: StateCache, chain: tuple[Frame, ...], epoch: int, changes: list[Change]
) -> tuple[Frame, ...]:
    group = cache.take(checkpoint, "stage", 3, chain)
    for key, value in changes:
        if value is None:
            group.drop(USER, key)
        else:
            group.put(USER, key, value)
    writer = StateWriter(checkpoint, cache, epoch)
    writer.add("stage", 3, chain, group)
    return writer.write()["stage", 3]


@given(epochs=epochs_of_changes)
def test_any_history_is_read_back_by_warm_stale_and_cold_workers(
    tmp_path_factory: pytest.TempPathFactory, epochs: list[list[Change]]
) -> None:
    checkpoint = Checkpoint(tmp_path_factory.mktemp("checkpoint"))
    checkpoint.prepare()
    writers = [StateCache(), StateCache()]  # take turns, as Spark's Python workers do: each is often behind
    chain: tuple[Frame, ...] = ()
    truth: dict[bytes, bytes] = {}
    for number, changes in enumerate(epochs):
        chain = write_epoch(checkpoint, writers[number % 2], chain, number, changes)
        for key, value in changes:
            if value is None:
                truth.pop(key, None)
            else:
                truth[key] = value
        assert StateCache().take(checkpoint, "stage", 3, chain).entries[USER] == truth
        assert len(chain) <= SNAPSHOT_AFTER_FRAMES + 1
    assert writers[0].take(checkpoint, "stage", 3, chain).entries[USER] == truth
    assert (not truth) == (not chain), "an empty group keeps no files"


def test_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.prepare()
    chain = write_epoch(checkpoint, StateCache(), (), 0, [(b"key", b"value")])
    path = tmp_path / STATE / chain[0].file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        StateCache().take(checkpoint, "stage", 3, chain)


@pytest.mark.parametrize("keep", [0, 5, 12])
def test_a_cut_file_is_refused(tmp_path: Path, keep: int) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.prepare()
    chain = write_epoch(checkpoint, StateCache(), (), 0, [(b"key", b"value")])
    path = tmp_path / STATE / chain[0].file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="ends early"):
        StateCache().take(checkpoint, "stage", 3, chain)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.prepare()
    chain = write_epoch(checkpoint, StateCache(), (), 0, [(b"key", b"value")])
    (tmp_path / STATE / chain[0].file).unlink()
    with pytest.raises(CheckpointError, match=chain[0].file):
        StateCache().take(checkpoint, "stage", 3, chain)


def test_a_failed_bundle_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.prepare()
    cache = StateCache()
    chain = write_epoch(checkpoint, cache, (), 0, [(b"key", b"committed")])
    cache.take(checkpoint, "stage", 3, chain).put(USER, b"key", b"lost with the bundle")
    assert cache.take(checkpoint, "stage", 3, chain).entries[USER] == {b"key": b"committed"}


def test_unchanged_groups_write_no_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.prepare()
    cache = StateCache()
    chain = write_epoch(checkpoint, cache, (), 0, [(b"key", b"value")])
    assert write_epoch(checkpoint, cache, chain, 1, []) == chain
    assert len(list((tmp_path / STATE).iterdir())) == 1


def test_dropping_what_is_not_there_changes_nothing() -> None:
    group = KeyGroup()
    group.drop(USER, b"key")
    assert not group.dirty
