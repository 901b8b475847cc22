"""Manifests: one per epoch, by one driver; what was committed is what is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from spark_jobs.beam_runner.checkpoint.checkpoint import SIDE, STATE, Checkpoint
from spark_jobs.beam_runner.checkpoint.manifest import Frame, KeyGroupMeta, Manifest, Residual, SidePart, Waiting
from spark_jobs.beam_runner.errors import CheckpointError, FencedError

MANIFEST = Manifest(
    epoch=7,
    job="job",
    key_groups=64,
    fingerprint={"sums": "kv(varint)"},
    input_us={"sums": 5},
    output_us={"sums": 4, "read": -3},
    groups={"sums": {3: KeyGroupMeta((Frame("a.kg", 0, 10, True), Frame("b.kg", 10, 5, False)), 1, 2, 3, 4)}},
    residuals=(Residual("read/Process", b"\x00\xff", 9, 0, 1),),
    sides={"side.None": (SidePart("s.rows", 12), SidePart("inline", 13, (b"one", b"two")))},
    dropped_us={"side.None": 11},
    thinned=("side.None",),
    waiting=(Waiting("stage", "w.waiting", 5, {"side": 6}, 1, 2),),
    staged={"publish": (b"{}", b"\xff")},
    metrics={"sums": (b"\x01",)},
    done=False,
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    made = Checkpoint(tmp_path)
    made.prepare()
    return made


def test_a_manifest_reads_back_as_it_was(checkpoint: Checkpoint) -> None:
    checkpoint.commit_manifest(7, MANIFEST.to_json())
    assert checkpoint.last_epoch() == 7
    assert Manifest.from_json(checkpoint.read_manifest(7), "here") == MANIFEST


def test_an_epoch_is_committed_once(checkpoint: Checkpoint) -> None:
    checkpoint.commit_manifest(7, b"first")
    with pytest.raises(FencedError, match="another driver"):
        checkpoint.commit_manifest(7, b"second")
    assert checkpoint.read_manifest(7) == b"first"
    assert not list(checkpoint.root.rglob("*.tmp"))


@pytest.mark.parametrize("raw", [b"", b"{}", b"[1]", b'{"format": 99}', MANIFEST.to_json()[:-9]])
def test_what_is_not_a_manifest_is_refused_by_name(raw: bytes) -> None:
    with pytest.raises(CheckpointError, match="epoch seven"):
        Manifest.from_json(raw, "epoch seven")


def test_garbage_is_what_no_manifest_names(checkpoint: Checkpoint) -> None:
    live, _dead, young = (checkpoint.write(STATE, epoch, "kg", b"x") for epoch in (1, 2, 9))
    side = checkpoint.write(SIDE, 0, "rows", b"x")
    for epoch in range(9):
        checkpoint.commit_manifest(epoch, b"{}")
    checkpoint.collect_garbage(8, {live, side}, keep_manifests=2)
    assert {p.name for p in (checkpoint.root / STATE).iterdir()} == {live, young}
    assert {p.name for p in (checkpoint.root / SIDE).iterdir()} == {side}
    assert sorted(p.name for p in (checkpoint.root / "epochs").iterdir()) == ["000000007.json", "000000008.json"]


def test_collection_leaves_what_is_not_its_own(checkpoint: Checkpoint) -> None:
    """Files of other names, and what another driver is about to commit; drafts of a driver that was killed go."""
    for epoch in range(2):
        checkpoint.commit_manifest(epoch, b"{}")
    for name in ("notes.json", "000000000.json.a.tmp", "000000001.json.b.tmp", "000000002.json.c.tmp"):
        (checkpoint.root / "epochs" / name).touch()
    checkpoint.collect_garbage(1, set(), keep_manifests=1)
    left = sorted(p.name for p in (checkpoint.root / "epochs").iterdir())
    assert left == ["000000001.json", "000000002.json.c.tmp", "notes.json"]


def test_live_files_are_all_that_a_manifest_names() -> None:
    assert MANIFEST.live_files() == {"a.kg", "b.kg", "s.rows", "w.waiting"}


def test_a_driver_that_slept_through_later_epochs_is_fenced_though_its_number_is_free(checkpoint: Checkpoint) -> None:
    for epoch in range(12):
        checkpoint.commit_manifest(epoch, b"{}")
    checkpoint.collect_garbage(11, set(), keep_manifests=2)
    with pytest.raises(FencedError, match="Epoch 11"):
        checkpoint.commit_manifest(6, b"a zombie's")
    assert checkpoint.last_epoch() == 11
    assert sorted(p.name for p in (checkpoint.root / "epochs").iterdir()) == ["000000010.json", "000000011.json"]
    with pytest.raises(FencedError):
        checkpoint.collect_garbage(6, set())
