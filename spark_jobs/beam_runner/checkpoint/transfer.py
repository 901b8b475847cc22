"""Copies of a checkpoint's last epoch, and the way back to an earlier one.

What sinks make of it is decided by the job id: a publisher takes (job, epoch number) for done if it has seen it, or a
later number of that job.

- A *fork* writes elsewhere than the original, which goes on. It gets a job id of its own, and nothing that the last
  epoch staged: the original publishes that, and staged files lie where the original's sinks are.
- A *backup* takes over when the original is gone. It publishes the last epoch under the original's id, since nobody
  knows whether that was done, and what follows under an id of its own: if the original had gone on after the copy was
  made, its sinks have seen the next numbers and would skip them, although they hold other rows now.
- A *rollback* commits an old epoch's manifest anew, under the next free number. Nothing is deleted, a driver that
  still runs is fenced (the rollback is a newer driver of one epoch), and sinks skip nothing because numbers only grow.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum

from spark_jobs.beam_runner.checkpoint.checkpoint import SIDE, STATE, Checkpoint
from spark_jobs.beam_runner.checkpoint.manifest import Manifest
from spark_jobs.beam_runner.checkpoint.progress import manifest_of
from spark_jobs.beam_runner.clock import now_us
from spark_jobs.beam_runner.errors import CheckpointError, way_back

_PARALLEL = 8
_ATTEMPTS = 20  # each follows a newer epoch of a job that runs: a copy may need several epochs' time


class Purpose(StrEnum):
    """What a copy is for."""

    FORK = "fork"
    BACKUP = "backup"


@dataclass(frozen=True)
class Copied:
    """What was copied."""

    epoch: int
    files: int
    bytes: int


def copy(source: Checkpoint, target: Checkpoint, purpose: Purpose) -> Copied:
    """Copies the last committed epoch: its manifest and exactly the files that it names, each checked by its CRC.

    The source may be in use: if one of its files is collected meanwhile, the copy starts over from a newer epoch. A
    copy that is cut short has no manifest, so nobody starts from it.

    Raises CheckpointError if the target has an epoch already, or the source has none or is damaged.
    """
    target.prepare()
    if (there := target.last_epoch()) is not None:
        raise CheckpointError(
            f"{target.url} is a checkpoint already, at epoch {there}; nothing was copied.",
            hint="give a place that is empty",
        )
    done: dict[str, int] = {}
    for _ in range(_ATTEMPTS):
        epoch = _newest(source)
        try:
            manifest = manifest_of(source, epoch)
            files = _copy_files(source, target, manifest, done)
        except CheckpointError:
            if source.last_epoch() == epoch:
                raise  # it is not garbage collection: nothing newer was committed
            continue
        if purpose is Purpose.BACKUP:
            _copy_notes(source, target)
        target.commit_manifest(epoch, _for(manifest, purpose).to_json())
        return Copied(epoch, len(files), sum(done[name] for name in files))
    raise CheckpointError(
        f"{source.url} committed new epochs faster than they could be copied, {_ATTEMPTS} times.",
        hint="stop the job, or give it a longer --epoch_interval_ms, and copy again",
    )


def rollback(checkpoint: Checkpoint, epoch: int, check: Callable[[int], tuple[str, ...]]) -> int:
    """Makes the state of `epoch` the newest; -> the number under which it is committed now.

    `check`: problems of an epoch, as `verify` finds them. Raises CheckpointError if there are any, or no such epoch;
    FencedError if a job committed an epoch at the same moment.
    """
    if epoch not in checkpoint.epochs():
        raise CheckpointError(
            f"{checkpoint.url} cannot go back to epoch {epoch}: it has the manifests of "
            f"{', '.join(map(str, checkpoint.epochs()))}.",
            hint=f"python -m spark_jobs.beam_runner checkpoint verify {checkpoint.url}",
        )
    if problems := check(epoch):
        raise CheckpointError(
            f"{checkpoint.url} cannot go back to epoch {epoch}: {' '.join(problems)}", hint=way_back(checkpoint.url)
        )
    manifest = manifest_of(checkpoint, epoch)
    checkpoint.take_over()
    newest = _newest(checkpoint)
    if epoch == newest:
        return epoch
    # What that epoch staged was published before the next one was committed.
    job = manifest.next_job or manifest.job
    back = replace(manifest, epoch=newest + 1, job=job, next_job="", committed_us=now_us(), staged={})
    checkpoint.commit_manifest(back.epoch, back.to_json())
    return back.epoch


def _newest(checkpoint: Checkpoint) -> int:
    epoch = checkpoint.last_epoch()
    if epoch is None:
        raise CheckpointError(
            f"There is no checkpoint at {checkpoint.url}: no epoch was ever committed.", hint="check the address"
        )
    return epoch


def _for(manifest: Manifest, purpose: Purpose) -> Manifest:
    if purpose is Purpose.FORK:
        return replace(manifest, job=uuid.uuid4().hex, next_job="", staged={})
    return replace(manifest, next_job=uuid.uuid4().hex)


def _copy_files(source: Checkpoint, target: Checkpoint, manifest: Manifest, done: dict[str, int]) -> set[str]:
    state = manifest.state_files()

    def copy_one(name: str) -> None:
        folder = STATE if name in state else SIDE
        data = source.read(folder, name)
        target.store.write(f"{folder}/{name}", data)
        done[name] = len(data)

    files = manifest.live_files()
    with ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(copy_one, sorted(files - done.keys())))
    stale = done.keys() - files  # of an epoch that was given up
    target.store.delete(f"{folder}/{name}" for name in stale for folder in (STATE, SIDE))
    for name in list(stale):
        del done[name]
    return files


def _copy_notes(source: Checkpoint, target: Checkpoint) -> None:
    """Files beside the runner's own, such as whose checkpoint it is: they hold for a backup, not for a fork."""
    for name in source.store.names(""):
        target.store.put_if_absent(name, source.store.read(name))
