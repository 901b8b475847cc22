"""The generator's promises, checked by a pipeline in plain Python that reads its messages one by one with fastavro."""

from __future__ import annotations

import datetime as dt
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fastavro
import pytest

from common.errors import ConfigError
from common.event_source import GenerateOptions
from feature_repo.catalogue import DEFAULT_VIDEOS, Videos
from feature_repo.faults import INVALID_REASONS, MALFORMED, MALFORMED_REASONS
from feature_repo.generator import Generator, generate

REPO = Path(__file__).parents[3] / "feature_repo"
SCHEMAS = [json.loads((REPO / "schemas" / f"engagement_v{version}.avsc").read_text()) for version in (1, 2, 3)]
PARSED = [fastavro.parse_schema(schema) for schema in SCHEMAS]
IDS = [11, 12, 13]
GRACE_MS, ALLOWED_MS, FUTURE_MS = 60_000, 86_400_000, 300_000
TYPES = {"view", "like", "share", "comment", "follow"}

FAULTS = {"duplicates": 90, "malformed": 41, "invalid": 23, "late": 37, "too_late": 19}


def generator(events: int = 3_000, seed: int = 7, partitions: int = 4, **faults: int) -> Generator:
    options = GenerateOptions(events, seed, partitions, GRACE_MS, ALLOWED_MS, FUTURE_MS, faults=faults)
    return generate(SCHEMAS, options)


class Message(NamedTuple):
    key: bytes
    value: bytes | None
    partition: int
    timestamp_ms: int


def messages(source: Generator, start: int = 0, stop: int | None = None) -> list[Message]:
    return [
        Message(*row)
        for batch in source.batches(IDS, start, source.count if stop is None else stop)
        for row in zip(
            batch.keys.to_pylist(),
            batch.values.to_pylist(),
            batch.partitions.tolist(),
            batch.timestamps_ms.tolist(),
            strict=True,
        )
    ]


class Judged(NamedTuple):
    """Counters by name, and the events that reach silver in log order."""

    counts: dict[str, Any]
    silver: list[dict[str, Any]]


def judge(log: list[Message]) -> Judged:
    """Bronze and silver, in plain Python."""
    counts: Counter[str] = Counter()
    bronze_dlq: Counter[str] = Counter()
    silver: list[dict[str, Any]] = []
    newest_ms: dict[int, int] = {}
    seen: set[str] = set()
    for message in log:
        watermark_ms = newest_ms.get(message.partition, -(10**15)) - GRACE_MS
        newest_ms[message.partition] = max(newest_ms.get(message.partition, 0), message.timestamp_ms)
        verdict = decode(message.value)
        if not isinstance(verdict, str):
            verdict = broken_rule(verdict, message.timestamp_ms) or verdict
        if isinstance(verdict, str):
            bronze_dlq[verdict] += 1
            continue
        behind_ms = watermark_ms - millis(verdict)
        if behind_ms > ALLOWED_MS:
            counts["silver_dlq"] += 1
            counts["late"] += 1
        elif verdict["event_id"] in seen:
            counts["duplicates"] += 1
        else:
            seen.add(verdict["event_id"])
            counts["late"] += behind_ms > 0
            silver.append(verdict)
    return Judged({**counts, "bronze_dlq_reasons": dict(bronze_dlq)}, silver)


def decode(value: bytes | None) -> dict[str, Any] | str:
    if value is None or len(value) < 5 or value[0] != 0:
        return "not_confluent_framed"
    schema_id = int.from_bytes(value[1:5], "big")
    if schema_id not in IDS:
        return "unknown_schema_id"
    source = io.BytesIO(value[5:])
    try:
        event: dict[str, Any] = fastavro.schemaless_reader(source, PARSED[IDS.index(schema_id)], PARSED[-1])
    except (EOFError, ValueError, IndexError, OverflowError, MemoryError):  # UnicodeDecodeError is a ValueError
        return "malformed_avro"
    return event if source.tell() == len(value) - 5 else "malformed_avro"


def broken_rule(event: dict[str, Any], timestamp_ms: int) -> str | None:
    if not all(event[name] for name in ("event_id", "event_type", "user_id", "video_id", "session_id")):
        return "missing_required"
    if event["event_type"] not in TYPES:
        return "unknown_event_type"
    if event["watch_ms"] is not None and not 0 <= event["watch_ms"] <= 86_400_000:
        return "out_of_range"
    return "event_time_in_future" if millis(event) > timestamp_ms + FUTURE_MS else None


def millis(event: dict[str, Any]) -> int:
    time: dt.datetime = event["event_time"]
    return round(time.timestamp() * 1000)


@pytest.mark.parametrize(("seed", "partitions"), [(7, 4), (8, 1), (9, 500)])
def test_the_truth_is_what_a_plain_pipeline_finds(seed: int, partitions: int) -> None:
    source = generator(seed=seed, partitions=partitions, **FAULTS)
    log, truth = messages(source), source.truth().as_dict()

    counts, silver = judge(log)

    assert truth["consumed"] == len(log) == source.count == 3_000
    assert truth["duplicates"] == counts["duplicates"] == FAULTS["duplicates"]
    assert truth["silver_dlq"] == counts["silver_dlq"] == FAULTS["too_late"]
    assert truth["late"] == counts["late"] == FAULTS["late"] + FAULTS["too_late"]
    assert truth["bronze_dlq_reasons"] == counts["bronze_dlq_reasons"]
    assert truth["bronze_dlq"] == FAULTS["malformed"] + FAULTS["invalid"]
    assert truth["silver"] == len(silver)
    assert truth["bronze"] == truth["silver"] + truth["duplicates"] + truth["silver_dlq"]
    expected = source.expected_events().to_pylist()
    assert [event | {"properties": dict(event["properties"])} for event in expected] == silver


def test_every_kind_of_fault_occurs() -> None:
    assert MALFORMED.keys() == MALFORMED_REASONS.keys()
    reasons = generator(**FAULTS).truth().bronze_dlq
    assert reasons.keys() == {*MALFORMED_REASONS.values(), *INVALID_REASONS.values()}


def test_no_faults_on_request() -> None:
    source = generator(duplicates=0, malformed=0, invalid=0, late=0, too_late=0)
    assert judge(messages(source)).counts == {"bronze_dlq_reasons": {}, "late": 0}
    assert source.truth().silver == 3_000


def test_equal_options_give_equal_bytes_and_parts_make_the_whole() -> None:
    whole = messages(generator())
    again = generator()
    assert messages(again, 0, 1_000) + messages(again, 1_000, 1_001) + messages(again, 1_001) == whole
    assert messages(generator(seed=8)) != whole


def test_the_log_is_plausible() -> None:
    source = generator(**FAULTS)
    log = messages(source)
    silver = judge(log).silver

    by_key = {(message.key, message.partition) for message in log}
    assert len(by_key) == len({key for key, _ in by_key}), "a user's events are in one partition"
    for partition in range(4):
        times = [message.timestamp_ms for message in log if message.partition == partition]
        assert times == sorted(times)
    assert all(0 <= event["watch_ms"] <= event["duration_ms"] for event in silver if event["event_type"] == "view")
    assert all(event["watch_ms"] is None for event in silver if event["event_type"] != "view")
    users_of_session: dict[str, set[str]] = {}
    for event in silver:
        users_of_session.setdefault(event["session_id"], set()).add(event["user_id"])
    assert all(len(users) == 1 for users in users_of_session.values())
    assert 100 < len(users_of_session) < 1_000
    views = Counter(event["video_id"] for event in silver).most_common()
    assert views[0][1] > 10 * views[len(views) // 2][1], "popularity is skewed"
    times = [millis(event) for event in silver]
    assert times != sorted(times), "some events are out of order"


def test_a_session_begins_with_a_view_and_reactions_are_to_the_video_seen_last() -> None:
    source = generator(**dict.fromkeys(FAULTS, 0))
    last_seen: dict[str, str] = {}
    for event in sorted(judge(messages(source)).silver, key=lambda event: event["event_time"]):
        if event["event_type"] == "view":
            last_seen[event["session_id"]] = event["video_id"]
        assert last_seen[event["session_id"]] == event["video_id"]


def versions(log: list[Message]) -> Iterator[int]:
    return (message.value[4] for message in log if message.value and len(message.value) > 5)


def test_schema_versions_are_mixed() -> None:
    seen = Counter(versions(messages(generator(malformed=0))))
    assert set(seen) == set(IDS)
    assert min(seen.values()) > 400


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot hold"):
        generator(events=100, late=80, duplicates=20)
    with pytest.raises(ConfigError, match="no fault 'dupes'"):
        generator(dupes=1)
    with pytest.raises(ConfigError, match="too small"):
        generator(late=-1)


def test_the_committed_reference_table_is_the_default_catalogue(tmp_path: Path) -> None:
    Videos(DEFAULT_VIDEOS).write_csv(tmp_path / "videos.csv")
    committed = REPO / "reference" / "videos.csv"
    assert (tmp_path / "videos.csv").read_bytes() == committed.read_bytes()
    assert committed.stat().st_size < 400_000
    assert not generator().write_reference(tmp_path / "unused.csv")


def test_a_smaller_catalogue_is_the_beginning_of_a_larger() -> None:
    assert Videos(100).table().equals(Videos(DEFAULT_VIDEOS).table().slice(0, 100))
