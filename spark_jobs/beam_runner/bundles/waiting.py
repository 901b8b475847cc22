"""Elements that wait for a side input: until its watermark has passed the window that they look at.

What waits is kept in a file of the checkpoint, and holds the stage's input watermark: no timer fires and no window
closes before it was processed. Side inputs that are bounded are complete or not as a whole; those that are not are
looked at window by window, and one with a trigger of its own is ready as soon as it has fired for the window.

Windows of a side input that no element in time can ask for are forgotten. An element that asks nevertheless is later
than its windowing allows: it is dropped and counted, as in front of a grouping, and never sees an empty window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from apache_beam.coders import FastPrimitivesCoder
from apache_beam.utils.windowed_value import WindowedValue

from spark_jobs.beam_runner.beam_internals import last_us
from spark_jobs.beam_runner.bundles.exchange import Row
from spark_jobs.beam_runner.bundles.side_inputs import SideTable
from spark_jobs.beam_runner.bundles.splitting import in_one_window_each
from spark_jobs.beam_runner.bundles.spool import Data, Spool
from spark_jobs.beam_runner.checkpoint.manifest import Waiting
from spark_jobs.beam_runner.clock import MAX_US, MIN_US, micros
from spark_jobs.beam_runner.keyed.grouped import Run, read_block, write_block
from spark_jobs.beam_runner.planning.plan import SidePlan

PORTION_BYTES = 64 << 20
_primitives = FastPrimitivesCoder()
# Main window -> the watermarks that it waits for, by side input; none if all are ready for it; None if one has gone.
ReadyAt = Callable[[Any], Mapping[str, int] | None]


@dataclass(frozen=True)
class Side:
    """A side input as a task sees it in this epoch."""

    plan: SidePlan
    table: SideTable
    watermark_us: int
    is_new: bool  # something was added in this epoch
    left_us: int  # its windows that end before this are forgotten


@dataclass
class Sorted:
    """The outcome of `sort`: rows to process now and rows to put aside, by input of the stage."""

    ready: list[list[Row]]
    aside: list[list[Row]]
    hold_us: int = MAX_US
    ready_us: dict[str, int] = field(default_factory=dict)  # as in Waiting
    dropped: int = 0


def may_be_ready(waiting: Waiting, sides: Iterable[Side]) -> bool:
    """False if it is certain that looking at the rows again would change nothing."""
    return any(
        side.watermark_us > waiting.ready_us.get(side.plan.label, MAX_US) or (side.plan.triggered and side.is_new)
        for side in sides
    )


def sort(rows: list[list[Row]], operations: list[Any], sides: list[Side], floor_us: int, spool: Spool) -> Sorted:
    """`operations`: of the stage's inputs, to decode its rows. `floor_us`: the least time of rows not looked into.

    `spool` holds the rows that are made anew.
    """
    incomplete = [side for side in sides if not side.plan.unbounded and side.watermark_us < MAX_US]
    if incomplete:
        is_any = any(rows)
        ready_us = {side.plan.label: MAX_US - 1 for side in incomplete}
        return Sorted([[] for _ in rows], rows, floor_us if is_any else MAX_US, ready_us)
    windowed = [side for side in sides if side.plan.waits and (side.watermark_us < MAX_US or side.left_us > MIN_US)]
    if not windowed:
        return Sorted(rows, [[] for _ in rows])
    outcome = Sorted([], [])
    ready_at = _ready_at(windowed)
    for operation, some in zip(operations, rows, strict=True):
        now, later = _split(operation, some, ready_at, outcome, spool)
        outcome.ready.append(now)
        outcome.aside.append(later)
    return outcome


def _ready_at(sides: list[Side]) -> ReadyAt:
    known: dict[Any, dict[str, int] | None] = {}

    def ready_at(main_window: Any) -> Mapping[str, int] | None:
        if main_window not in known:
            ends = [(side.plan.label, _end_if_not_ready(side, main_window)) for side in sides]
            waits_for = {label: end for label, end in ends if end is not None}
            known[main_window] = None if any(_is_forgotten(side, main_window) for side in sides) else waits_for
        return known[main_window]

    return ready_at


def _is_forgotten(side: Side, main_window: Any) -> bool:
    return last_us(side.table.window_for(main_window)) < side.left_us


def _end_if_not_ready(side: Side, main_window: Any) -> int | None:
    window = side.table.window_for(main_window)
    end_us = micros(window.max_timestamp())
    if side.watermark_us > end_us or (side.plan.triggered and side.table.has(window)):
        return None
    return end_us


def _split(
    operation: Any, rows: list[Row], ready_at: ReadyAt, outcome: Sorted, spool: Spool
) -> tuple[list[Row], list[Row]]:
    now: list[Row] = []
    later: list[Row] = []
    for group, key, data in rows:
        is_block = operation.key_impl is not None
        runs: Iterable[Run] = read_block(data) if is_block else [(b"", b"", 0, data, None)]
        ready: list[Run] = []
        aside: list[Run] = []
        dropped = outcome.dropped
        for window, user_key, _, encoded, times in runs:
            for elements, part in zip(_sorted(operation, encoded, ready_at, outcome), (ready, aside), strict=True):
                if elements:
                    kept = b"".join(map(operation.windowed_coder_impl.encode_nested, elements))
                    part.append((window, user_key, len(elements), kept, times))
        if not aside and outcome.dropped == dropped:
            now.append((group, key, data))
            continue
        for some, part in ((now, ready), (later, aside)):
            if part:
                some.append((group, key, spool.keep(write_block(part) if is_block else part[0][3])))
    return now, later


def _sorted(
    operation: Any, data: Data, ready_at: ReadyAt, outcome: Sorted
) -> tuple[list[WindowedValue], list[WindowedValue]]:
    ready: list[WindowedValue] = []
    aside: list[WindowedValue] = []
    for element in in_one_window_each(operation.decode(data)):
        waits_for = ready_at(element.windows[0])
        if waits_for is None:
            outcome.dropped += 1
            continue
        if not waits_for:
            ready.append(element)
            continue
        aside.append(element)
        outcome.hold_us = min(outcome.hold_us, micros(element.timestamp))
        for label, end_us in waits_for.items():
            outcome.ready_us[label] = min(end_us, outcome.ready_us.get(label, MAX_US))
    return ready, aside


def portions(rows: list[list[Row]]) -> Iterator[list[list[Row]]]:
    """The rows, in order, as lists of rows that are small enough to be written and read at once."""
    portion, size = [list[Row]() for _ in rows], 0
    for index, some in enumerate(rows):
        for row in some:
            if size > 0 and size + len(row[2]) > PORTION_BYTES:
                yield portion
                portion, size = [list[Row]() for _ in rows], 0
            portion[index].append(row)
            size += len(row[2])
    if any(portion):
        yield portion


def encode_rows(rows: list[list[Row]]) -> bytes:
    return bytes(_primitives.encode([[(n, key, bytes(data)) for n, key, data in some] for some in rows]))


def decode_rows(data: bytes) -> list[list[Row]]:
    rows: list[list[Row]] = _primitives.decode(data)
    return rows
