"""What a checkpoint holds, for people and programs: position, watermarks, state per step. Never an element's value."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

from spark_jobs.beam_runner.checkpoint.checkpoint import Checkpoint
from spark_jobs.beam_runner.checkpoint.manifest import Manifest
from spark_jobs.beam_runner.checkpoint.progress import sum_counters
from spark_jobs.beam_runner.clock import MAX_US, MIN_US
from spark_jobs.beam_runner.keyed.state import PANE, TIMER, USER
from spark_jobs.beam_runner.keyed.state_files import StateCache
from spark_jobs.beam_runner.keyed.timers import TimerId
from spark_jobs.beam_runner.keyed.user_state import user_key


@dataclass(frozen=True)
class StepState:
    """`watermark` of its output. `keys` is None if they were not counted."""

    step: str
    watermark: str
    key_groups: int
    bytes: int
    keys: int | None


@dataclass(frozen=True)
class Source:
    """What is left of a source: `parts` open restrictions, and the least watermark that they hold."""

    step: str
    parts: int
    watermark: str


@dataclass(frozen=True)
class Overview:
    """One committed epoch."""

    checkpoint: str
    epoch: int
    job: str
    committed: str
    done: bool
    key_groups: int
    steps: tuple[StepState, ...]
    sources: tuple[Source, ...]
    staged: dict[str, int]  # publisher -> descriptors of this epoch
    side_inputs: dict[str, int]  # label -> files
    counters: dict[str, int]


def overview(checkpoint: Checkpoint, manifest: Manifest, *, count_keys: bool = True) -> Overview:
    """`count_keys` reads all state, one key group at a time."""
    steps = [
        StepState(
            step,
            instant(watermark),
            len(manifest.groups.get(step, ())),
            sum(frame.length for meta in manifest.groups.get(step, {}).values() for frame in meta.chain),
            _keys(checkpoint, manifest, step) if count_keys else None,
        )
        for step, watermark in sorted(manifest.output_us.items())
    ]
    parts = Counter(residual.transform for residual in manifest.residuals)
    return Overview(
        checkpoint=checkpoint.url,
        epoch=manifest.epoch,
        job=manifest.job,
        committed=instant(manifest.committed_us),
        done=manifest.done,
        key_groups=manifest.key_groups,
        steps=tuple(steps),
        sources=tuple(
            Source(step, count, instant(min(r.watermark_us for r in manifest.residuals if r.transform == step)))
            for step, count in sorted(parts.items())
        ),
        staged={label: len(items) for label, items in sorted(manifest.staged.items())},
        side_inputs={label: len(parts) for label, parts in sorted(manifest.sides.items())},
        counters=dict(sorted(sum_counters(manifest.metrics).items())),
    )


def instant(watermark_us: int) -> str:
    """ISO 8601; "start" before anything, "end" when nothing more will come."""
    if watermark_us >= MAX_US:
        return "end"
    if watermark_us <= MIN_US:
        return "start"
    try:
        return datetime.fromtimestamp(watermark_us / 1e6, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):  # a datetime has fewer years than Beam
        return f"{watermark_us} us"


def _keys(checkpoint: Checkpoint, manifest: Manifest, step: str) -> int:
    """Distinct keys that have a pane, state or a timer; a key is in one key group only."""
    return sum(_keys_of_group(checkpoint, step, number, manifest) for number in manifest.groups.get(step, {}))


def _keys_of_group(checkpoint: Checkpoint, step: str, number: int, manifest: Manifest) -> int:
    group = StateCache().take(checkpoint, step, number, manifest.groups[step][number].chain)
    users = {user_key(entry) for window in group.windows(USER) for entry in group.table(USER, window)}
    timers = {TimerId.decode(entry).key for entry in group.table(TIMER)}
    panes = {key for window in group.windows(PANE) for key in group.table(PANE, window)}
    # State and timers encode a key each in its own way, so they cannot be joined: most keys with a timer have state.
    return max(len(panes), len(users), len(timers))
