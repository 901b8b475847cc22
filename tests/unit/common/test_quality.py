"""Which rows break which rule first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from common.domain import Domain, Quality, load_domain
from common.quality import judge, rules_of

KAFKA_MS = 1_700_000_000_000
GOOD: dict[str, Any] = {
    "event_id": "e",
    "event_type": "view",
    "event_time": KAFKA_MS,
    "user_id": "u",
    "device": {"device_id": "d", "os": "ios"},
    "session_id": "s",
    "video_id": "v",
    "watch_ms": 5,
    "duration_ms": None,
}


@pytest.fixture(scope="module")
def domain() -> Domain:
    return load_domain(Path(__file__).parents[3] / "feature_repo")


def verdicts(domain: Domain, *rows: dict[str, Any]) -> dict[int, tuple[str, str]]:
    schema = pa.schema([pa.field(f.name, f.type) for f in domain.event_schema]).append(
        pa.field("_kafka_ts_ms", pa.int64())
    )
    batch = pa.RecordBatch.from_pylist([{**row, "_kafka_ts_ms": KAFKA_MS} for row in rows], schema=schema)
    verdict = judge(rules_of(domain), batch)
    return {int(row): (rule.reason, rule.field) for row, rule in zip(verdict.bad, verdict.rules, strict=True)}


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, None),
        ({"user_id": None}, ("missing_required", "user_id")),
        ({"video_id": ""}, ("missing_required", "video_id")),
        ({"event_time": None}, ("missing_required", "event_time")),
        ({"event_type": "VIEW"}, ("unknown_event_type", "event_type")),
        ({"watch_ms": -1}, ("out_of_range", "watch_ms")),
        ({"watch_ms": 0}, None),
        ({"watch_ms": 86_400_000}, None),
        ({"watch_ms": 86_400_001}, ("out_of_range", "watch_ms")),
        ({"watch_ms": None}, None),
        ({"event_time": KAFKA_MS + 300_000}, None),
        ({"event_time": KAFKA_MS + 300_001}, ("event_time_in_future", "event_time")),
        ({"event_time": 2**63 - 1}, ("event_time_in_future", "event_time")),
        ({"event_time": -1}, ("out_of_range", "event_time")),
        ({"event_time": -(2**63)}, ("out_of_range", "event_time")),
        ({"user_id": None, "event_type": "x", "watch_ms": -1}, ("missing_required", "user_id")),
    ],
)
def test_each_rule_at_its_edge(domain: Domain, change: dict[str, Any], verdict: tuple[str, str] | None) -> None:
    assert verdicts(domain, GOOD, {**GOOD, **change}) == ({} if verdict is None else {1: verdict})


def test_allowed_values_of_a_nested_field(domain: Domain) -> None:
    strict = replace(domain, quality=Quality(one_of={"device.os": ("ios", "web")}))
    android = {**GOOD, "device": {"device_id": "d", "os": "android"}}
    no_device = {**GOOD, "device": None}
    assert verdicts(strict, GOOD, android, no_device) == {1: ("not_one_of", "device.os")}
