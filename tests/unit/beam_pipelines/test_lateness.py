"""The edge between late and too late."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.io.kafka import NO_WATERMARK_MS
from beam_pipelines.transforms.lateness import DropTooLate
from common.domain import Lateness, load_domain

WATERMARK_MS, ALLOWED_MS = 1_700_000_000_000, 10_000


@pytest.mark.parametrize(
    ("time_ms", "watermark_ms", "passes"),
    [
        (WATERMARK_MS - ALLOWED_MS, WATERMARK_MS, True),
        (WATERMARK_MS - ALLOWED_MS - 1, WATERMARK_MS, False),
        (WATERMARK_MS + 5, WATERMARK_MS, True),
        (0, NO_WATERMARK_MS, True),
    ],
)
def test_a_row_may_be_as_late_as_allowed(time_ms: int, watermark_ms: int, passes: bool) -> None:
    domain = load_domain(Path(__file__).parents[3] / "feature_repo")
    dofn = DropTooLate(replace(domain, lateness=Lateness(allowed_lateness_ms=ALLOWED_MS)))
    rows = pa.record_batch(
        {
            "event_id": ["a", "b"],
            "event_time": pa.array([WATERMARK_MS, time_ms]).cast(pa.timestamp("ms", "UTC")),
            "_watermark_ms": [WATERMARK_MS, watermark_ms],
            "_kafka_ts_ms": [1, 2],
        }
    )
    outputs = list(dofn.process(rows))
    good = [id_ for o in outputs if not isinstance(o, TaggedOutput) for id_ in o.column("event_id").to_pylist()]
    dead = [id_ for o in outputs if isinstance(o, TaggedOutput) for id_ in o.value.column("event_id").to_pylist()]
    assert (good, dead) == ((["a", "b"], []) if passes else (["a"], ["b"]))
