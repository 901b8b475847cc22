"""Key-group state: what is written is what is read, by warm and cold workers, and damage is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_jobs.beam_runner.checkpoint.checkpoint import STATE, Checkpoint
from spark_jobs.beam_runner.checkpoint.manifest import Frame
from spark_jobs.beam_runner.clock import MAX_US, NEVER_US
from spark_jobs.beam_runner.errors import CheckpointError
from spark_jobs.beam_runner.keyed.schedule import Schedule
from spark_jobs.beam_runner.keyed.state import ELEMENTS, TIMER, TIMES, USER, KeyGroup
from spark_jobs.beam_runner.keyed.state_files import SNAPSHOT_AFTER_FRAMES, StateCache, StateWriter

WINDOW = b"window"
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
            group.drop(USER, WINDOW, key)
        else:
            group.put(USER, WINDOW, key, value)
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
        assert StateCache().take(checkpoint, "stage", 3, chain).table(USER, WINDOW) == truth
        assert len(chain) <= SNAPSHOT_AFTER_FRAMES + 1
    assert writers[0].take(checkpoint, "stage", 3, chain).table(USER, WINDOW) == truth
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
    cache.take(checkpoint, "stage", 3, chain).put(USER, WINDOW, b"key", b"lost with the bundle")
    assert cache.take(checkpoint, "stage", 3, chain).table(USER, WINDOW) == {b"key": b"committed"}


def test_unchanged_groups_write_no_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.prepare()
    cache = StateCache()
    chain = write_epoch(checkpoint, cache, (), 0, [(b"key", b"value")])
    assert write_epoch(checkpoint, cache, chain, 1, []) == chain
    assert len(list((tmp_path / STATE).iterdir())) == 1


def test_dropping_what_is_not_there_changes_nothing() -> None:
    group = KeyGroup()
    group.drop(USER, WINDOW, b"key")
    group.drop_window(USER, WINDOW)
    assert not group.dirty


operations = st.tuples(
    st.sampled_from(["put", "append", "drop", "drop_window"]),
    st.sampled_from([b"", b"w1", b"w2"]),
    st.binary(max_size=1),
    st.binary(max_size=5),
)


@given(epochs=st.lists(st.lists(operations, max_size=8), max_size=12))
def test_appended_values_and_dropped_windows_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, epochs: list[list[tuple[str, bytes, bytes, bytes]]]
) -> None:
    checkpoint = Checkpoint(tmp_path_factory.mktemp("checkpoint"))
    checkpoint.prepare()
    writers = [StateCache(), StateCache()]
    chain: tuple[Frame, ...] = ()
    truth: dict[tuple[bytes, bytes], bytes] = {}
    for number, some in enumerate(epochs):
        group = writers[number % 2].take(checkpoint, "stage", 3, chain)
        for what, window, key, value in some:
            if what == "put":
                group.put(ELEMENTS, window, key, value)
                truth[window, key] = value
            elif what == "append":
                group.append(ELEMENTS, window, key, value)
                truth[window, key] = truth.get((window, key), b"") + value
            elif what == "drop":
                group.drop(ELEMENTS, window, key)
                truth.pop((window, key), None)
            else:
                group.drop_window(ELEMENTS, window)
                truth = {slot: kept for slot, kept in truth.items() if slot[0] != window}
        writer = StateWriter(checkpoint, writers[number % 2], number)
        writer.add("stage", 3, chain, group)
        chain = writer.write()["stage", 3]
        for cache in (StateCache(), *writers):
            read = cache.take(checkpoint, "stage", 3, chain)
            assert {(w, k): v for w in read.windows(ELEMENTS) for k, v in read.table(ELEMENTS, w).items()} == truth
            assert read.entries == len(truth)
            if chain:
                cache.keep(checkpoint, "stage", 3, chain[-1], read)


def test_an_append_writes_only_what_is_new(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.prepare()
    cache = StateCache()
    chain: tuple[Frame, ...] = ()
    for epoch in range(3):
        group = cache.take(checkpoint, "stage", 3, chain)
        group.append(ELEMENTS, WINDOW, b"key", bytes(10_000))
        if not epoch:
            for other in range(5):  # else a snapshot costs no more than the delta
                group.append(ELEMENTS, WINDOW, b"%d" % other, b"")
        writer = StateWriter(checkpoint, cache, epoch)
        writer.add("stage", 3, chain, group)
        chain = writer.write()["stage", 3]
    assert [10_000 < frame.length < 11_000 for frame in chain] == [True, True, True]
    assert StateCache().take(checkpoint, "stage", 3, chain).get(ELEMENTS, WINDOW, b"key") == bytes(30_000)


def test_state_of_an_older_format_is_refused_as_such(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.prepare()
    chain = write_epoch(checkpoint, StateCache(), (), 0, [(b"key", b"value")])
    path = tmp_path / STATE / chain[0].file
    path.write_bytes(b"KGF1" + path.read_bytes()[4:])
    with pytest.raises(CheckpointError, match="format KGF1; this version reads KGF2"):
        StateCache().take(checkpoint, "stage", 3, chain)


@given(
    changes=st.lists(
        st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(-5, 30)), st.integers(-5, 30)), max_size=40
    )
)
def test_times_of_a_group_are_those_of_its_entries(changes: list[tuple[int, int | None, int]]) -> None:
    group = KeyGroup()
    times = group.times(TIMER)
    truth: dict[bytes, tuple[int, int]] = {}
    for number, event, hold in changes:
        key = b"%d" % number
        if event is None:
            group.drop(TIMER, b"", key)
            truth.pop(key, None)
        else:
            group.put(TIMER, b"", key, TIMES.pack(hold, event, NEVER_US) + b"timer")
            truth[key] = (event, hold)
        assert times.events.least() == min((e for e, _ in truth.values()), default=NEVER_US)
        assert times.holds.least() == min((h for _, h in truth.values()), default=MAX_US)
        assert times.reals.least() == NEVER_US
    due = [key for _, key in times.events.take_due(10)]
    assert sorted(due) == sorted(key for key, (event, _) in truth.items() if event <= 10)
    assert [truth[key][0] for key in due] == sorted(truth[key][0] for key in due)
    assert times.events.least() == min((e for e, _ in truth.values() if e > 10), default=NEVER_US)


def test_a_schedule_that_is_set_often_stays_small() -> None:
    schedule: Schedule[int] = Schedule(NEVER_US)
    for at in range(100_000):
        schedule.set(at % 3, at)
    assert len(schedule._heap) < 5_000
    assert schedule.take_due(200_000) == [0, 1, 2][99_997 % 3 :] + [0, 1, 2][: 99_997 % 3]
