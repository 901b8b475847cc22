"""How far what the counting job published is from plain arithmetic: elements lost, doubled or wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from spark_jobs.beam_runner.checkpoint.progress import committed_counters
from tests.faults import counting_job


def differences(root: Path, per_source: int, checkpoint: str = "") -> int:
    """Rows lost, doubled and wrong in all three outputs of the counting job in `root`, and in its counter."""
    values = counting_job.expected_values(per_source)
    sums = counting_job.published(root / "out/sums")
    wanted = Counter((key, value) for key, some in values.items() for value in some)
    wrong = _apart(Counter((key, value) for key, value, _ in sums), wanted)
    # Each running sum includes the value it came with; the last one of a key includes all.
    last: dict[int, int] = {}
    for key, _, total in sums:
        last[key] = max(total, last.get(key, 0))
    wrong += sum(last.get(key) != sum(some) for key, some in values.items())

    windows = Counter((key, start, total) for key, start, total in counting_job.published(root / "out/windows"))
    wrong += _apart(windows, Counter((*k, v) for k, v in counting_job.expected_windows(per_source).items()))

    quiet: dict[int, int] = {}
    for key, count in counting_job.published(root / "out/quiet"):
        quiet[key] = max(count, quiet.get(key, 0))
    # Each element sets the timer anew, so once the watermark is there the last report of a key has counted all of them.
    fired = counting_job.watermark_s(per_source) >= counting_job.TIMER_S
    wrong += sum(quiet.get(key) != (len(some) if fired else None) for key, some in values.items())
    counted = committed_counters(checkpoint or str(root / "checkpoint")).get(
        f"counting/{counting_job.SUMMED_COUNTER}", 0
    )
    return wrong + abs(counted - per_source * counting_job.SOURCES)


def _apart(got: Counter[Any], wanted: Counter[Any]) -> int:
    return ((got - wanted) + (wanted - got)).total()
