"""Puts `kills.reached` around the runner's functions, in a driver or a Python worker. They know nothing of it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

from spark_jobs.beam_runner import driver
from spark_jobs.beam_runner.bundles.bundle import StageProcessor
from spark_jobs.beam_runner.checkpoint.checkpoint import STATE, Checkpoint
from spark_jobs.beam_runner.transport import local
from tests.faults import counting_job, kills

LATE_PART = 2  # with two cores it runs after parts 0 and 1 of its level

_random = random.SystemRandom()  # forked workers would share the state of another one


class _Now:
    """The epoch that this process works on: a task knows it by its order, the driver by what it commits."""

    epoch = -1


def _around(owner: Any, name: str, wrapped: Callable[..., Any]) -> None:
    """Replaces `owner.name` by `wrapped(original, *args)`."""
    original = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: wrapped(original, *args, **kwargs))


def patch_tasks() -> None:
    _around(local, "run_level", _run_level)
    _around(counting_job, "event", _event)
    _around(StageProcessor, "run", _run_bundle)
    _around(Checkpoint, "write", _write)
    _around(counting_job, "stage_file", _stage_file)
    _around(counting_job, "slice_length", lambda _, size: _random.randint(size // 2, size))


def patch_spark_worker() -> None:
    """Needs pyspark: only on the Spark transport."""
    from spark_jobs.beam_runner.transport import spark_worker

    patch_tasks()
    _around(spark_worker, "run_level", _run_level)  # it has the function under a name of its own
    _around(spark_worker, "run_task", _run_task)


def patch_driver() -> None:
    _around(Checkpoint, "commit_manifest", _commit_manifest)
    _around(os, "link", _link)
    _around(driver.EpochLoop, "_publish_now", _publish_now)
    _around(counting_job.FolderPublisher, "publish", _publish)


# ---- tasks
def _run_level(original: Any, worker: Any, plan: Any, order: Any, *rest: Any) -> Any:
    _Now.epoch = order.epoch
    result = original(worker, plan, order, *rest)
    kills.reached(kills.AFTER_LEVEL, order.epoch)
    return result


def _event(original: Any, source: int, index: int) -> Any:
    kills.reached(kills.BEFORE_READ, _Now.epoch)
    return original(source, index)


def _run_bundle(original: Any, *args: Any) -> Any:
    result = original(*args)
    if result.deferred:  # only the source's stage leaves something for later
        kills.reached(kills.AFTER_READ, _Now.epoch)
    return result


def _write(original: Any, self: Checkpoint, folder: str, *rest: Any) -> Any:
    if folder == STATE:
        kills.reached(kills.BEFORE_STATE, _Now.epoch)
    name = original(self, folder, *rest)
    if folder == STATE:
        kills.reached(kills.AFTER_STATE, _Now.epoch)
    return name


def _stage_file(original: Any, *args: Any) -> Any:
    path = original(*args)
    kills.reached(kills.AFTER_STAGED, _Now.epoch)
    return path


def _run_task(
    original: Any, worker: Any, plan: Any, order: Any, level: int, part: int, sent: Any, *, last: bool
) -> Iterator[Any]:
    kills.attempted(order.epoch, level, part)
    if last and part >= LATE_PART:
        kills.reached(kills.LATE_TASK, order.epoch)
    yield from original(worker, plan, order, level, part, sent, last=last)
    if last:
        kills.reached(kills.AFTER_RESULT, _Now.epoch)


# ---- driver
def _commit_manifest(original: Any, self: Checkpoint, epoch: int, *rest: Any) -> None:
    _Now.epoch = epoch
    kills.reached(kills.BEFORE_MANIFEST, epoch)
    original(self, epoch, *rest)
    kills.reached(kills.AFTER_MANIFEST, epoch)


def _link(original: Any, *args: Any) -> None:
    original(*args)
    kills.reached(kills.LINKED_MANIFEST, _Now.epoch)


def _publish_now(original: Any, self: Any, epoch: Any, *rest: Any) -> None:
    kills.reached(kills.BEFORE_PUBLISH, epoch.number)
    original(self, epoch, *rest)
    kills.reached(kills.AFTER_PUBLISH, epoch.number)


def _publish(original: Any, self: Any, epoch: Any, *rest: Any) -> Any:
    done = original(self, epoch, *rest)
    # Labels are published in order: quiet, sums, windows. The first is done, the others are not.
    if os.path.basename(self.folder) == "quiet":
        kills.reached(kills.DURING_PUBLISH, epoch.number)
    return done
