"""One row per id: against plain Python, across bundles, and as far back as the horizon."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.coders import encode_batch
from beam_pipelines.transforms.dedupe import Dedupe, first_occurrences
from common.domain import Lateness, load_domain
from common.errors import PipelineError
from tests.unit.beam_pipelines.keyed import Harness

HORIZON_MS = 10_000
SCHEMA = pa.schema(
    [
        ("event_id", pa.string()),
        ("event_time", pa.timestamp("ms", "UTC")),
        ("_partition", pa.int32()),
        ("_offset", pa.int64()),
        ("_watermark_ms", pa.int64()),
    ]
)


DOMAIN = replace(
    load_domain(Path(__file__).parents[3] / "feature_repo"), lateness=Lateness(allowed_lateness_ms=HORIZON_MS)
)


@pytest.fixture
def harness() -> Harness:
    dofn = Dedupe(DOMAIN)
    return Harness(dofn, dofn.forget, 0)


def rows(*events: tuple[str, int], at: int = 0) -> pa.RecordBatch:
    """(id, event time) of each row; offsets count from `at`."""
    return pa.RecordBatch.from_pylist(
        [
            {"event_id": id_, "event_time": time, "_partition": 0, "_offset": at + i, "_watermark_ms": 0}
            for i, (id_, time) in enumerate(events)
        ],
        schema=SCHEMA,
    )


def ids(batches: list[pa.RecordBatch]) -> list[str]:
    return [id_ for batch in batches for id_ in batch.column("event_id").to_pylist()]


RECORDS = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 2)), max_size=30)


@given(RECORDS, st.sets(st.sampled_from("abcdef")), st.randoms(use_true_random=False))
def test_the_first_by_partition_and_offset_stays(records: list[tuple[str, int]], seen: set[str], order: Any) -> None:
    placed = [(id_, partition, offset) for offset, (id_, partition) in enumerate(records)]
    order.shuffle(placed)
    batch = pa.RecordBatch.from_pylist(
        [{"event_id": i, "_partition": p, "_offset": o, "event_time": 0, "_watermark_ms": 0} for i, p, o in placed],
        schema=SCHEMA,
    )
    expected: dict[str, tuple[int, int]] = {}
    for id_, partition, offset in sorted(placed, key=lambda each: each[1:]):
        if id_ not in seen:
            expected.setdefault(id_, (partition, offset))
    kept = first_occurrences(batch, "event_id", pa.array(sorted(seen), pa.string()))
    found = {row["event_id"]: (row["_partition"], row["_offset"]) for row in kept.to_pylist()}
    assert found == expected
    assert kept.num_rows == len(expected)
    arrival = [(p, o) for _, p, o in placed if (p, o) in expected.values()]
    assert [(row["_partition"], row["_offset"]) for row in kept.to_pylist()] == arrival


@given(
    st.lists(
        st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6), min_size=1, max_size=3), max_size=5
    )
)
def test_ids_are_unique_across_batches_and_bundles(bundles: list[list[list[str]]]) -> None:
    dofn = Dedupe(DOMAIN)
    harness = Harness(dofn, dofn.forget, 0)
    found = []
    for bundle in bundles:
        found += ids(harness.bundle(*(rows(*((id_, 0) for id_ in batch)) for batch in bundle)))
    assert found == list(dict.fromkeys(id_ for bundle in bundles for batch in bundle for id_ in batch))


def test_an_id_is_known_while_a_copy_can_still_come(harness: Harness) -> None:
    assert ids(harness.bundle(rows(("a", 1_000)))) == ["a"]
    assert ids(harness.bundle(rows(("a", 1_000)), watermark_ms=1_000 + HORIZON_MS)) == []


def test_an_id_is_forgotten_once_a_copy_would_be_too_late(harness: Harness) -> None:
    harness.bundle(rows(("a", 1_000), ("b", 1_001)))
    harness.bundle(watermark_ms=1_001 + HORIZON_MS)
    assert ids(harness.bundle(rows(("a", 1_000), ("b", 1_001)))) == ["a"]


def test_state_is_gone_when_nothing_is_remembered(harness: Harness) -> None:
    harness.bundle(rows(("a", 0), ("b", 5_000)))
    harness.bundle(watermark_ms=10**9)
    assert harness.cell.stored is None
    assert harness.timer.at_ms is None


def test_a_long_backlog_fires_few_timers(harness: Harness) -> None:
    harness.bundle(rows(*((str(hour), hour * 3_600_000) for hour in range(20_000))), watermark_ms=10**12)
    assert harness.firings < 20


def test_state_of_another_format_is_refused(harness: Harness) -> None:
    harness.cell.stored = encode_batch(pa.record_batch({"id": ["a"], "time_ms": [1]}))
    with pytest.raises(PipelineError, match="format") as error:
        harness.bundle(rows(("b", 0)))
    assert error.value.code == "state_format"
