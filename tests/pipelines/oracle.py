"""The ground truth of the short-video pipelines, event by event in plain Python and in SQL.

Nothing here uses the code under test: bodies are decoded by fastavro, rules are written out again, gold is DuckDB's.
"""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import hmac
import io
import ipaddress
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import fastavro
import pyarrow as pa

GRACE_MS, ALLOWED_MS, MAX_FUTURE_MS = 60_000, 86_400_000, 300_000
REQUIRED = ("event_id", "event_type", "event_time", "user_id", "video_id", "session_id")
TYPES = {"view", "like", "share", "comment", "follow"}
REFERENCE_COLUMNS = ("author_id", "category", "language")

Row = dict[str, Any]


@dataclass
class Truth:
    """Rows by layer. `dead` has (step, reason, partition, offset) of each dead letter."""

    bronze: list[Row] = field(default_factory=list)
    silver: list[Row] = field(default_factory=list)
    dead: list[tuple[str, str, int, int]] = field(default_factory=list)
    duplicates: int = 0
    late: int = 0

    def counters(self) -> dict[str, int]:
        layers = Counter(step.split("/")[0] for step, *_ in self.dead)
        return {
            "consumed": len(self.bronze) + layers["bronze"],
            "bronze": len(self.bronze),
            "bronze_dlq": layers["bronze"],
            "silver": len(self.silver),
            "duplicates": self.duplicates,
            "silver_dlq": layers["silver"],
            "late": self.late,
        }


def truth_of(raw: Sequence[Row], writers: Mapping[int, Any], reader: Any, key: bytes, reference: Path) -> Truth:
    """`raw`: records in offset order within each partition. `key`: of the HMAC."""
    truth, seen = Truth(), set()
    newest: dict[int, int] = {}
    videos = {row["video_id"]: row for row in csv.DictReader(reference.open())}
    parsed = {number: fastavro.parse_schema(dict(schema)) for number, schema in writers.items()}
    for record in raw:
        partition, offset, kafka_ms = record["partition"], record["offset"], record["kafka_ts_ms"]
        watermark_ms = newest[partition] - GRACE_MS if partition in newest else None
        newest[partition] = max(kafka_ms, newest.get(partition, kafka_ms))
        try:
            event, schema_id = _decode(record["value"], parsed, fastavro.parse_schema(dict(reader)))
        except _Dead as dead:
            truth.dead.append(("bronze/decode", dead.args[0], partition, offset))
            continue
        if reason := _broken_rule(event, kafka_ms):
            truth.dead.append(("bronze/validate", reason, partition, offset))
            continue
        event["email"] = _hmac(event["email"], key)
        event["device"]["device_id"] = _hmac(event["device"]["device_id"], key)
        event["ip"] = _masked(event["ip"])
        origin = {"_schema_id": schema_id, "pii_scrubbed": True, "_partition": partition, "_offset": offset}
        origin["_kafka_ts_ms"] = kafka_ms
        truth.bronze.append({**event, **origin, **_hour(kafka_ms)})
        behind = 0 if watermark_ms is None else watermark_ms - event["event_time"]
        if behind > ALLOWED_MS:
            truth.dead.append(("silver/lateness", "too_late", partition, offset))
            truth.late += 1
            continue
        if event["event_id"] in seen:
            truth.duplicates += 1
            continue
        seen.add(event["event_id"])
        truth.late += behind > 0
        truth.silver.append({**_refined(event, videos), **origin, **_hour(event["event_time"])})
    return truth


class _Dead(Exception):  # noqa: N818
    """Carries the reason."""


def _decode(value: bytes | None, parsed: Mapping[int, Any], reader: Any) -> tuple[Row, int]:
    if value is None or len(value) < 5 or value[0] != 0:
        raise _Dead("not_confluent_framed")
    schema_id = int.from_bytes(value[1:5], "big")
    if schema_id not in parsed:
        raise _Dead("unknown_schema_id")
    body = io.BytesIO(value[5:])
    try:
        event = fastavro.schemaless_reader(body, parsed[schema_id], reader)
    except (EOFError, UnicodeDecodeError, ValueError, IndexError, OverflowError):
        raise _Dead("malformed_avro") from None
    if body.read():
        raise _Dead("malformed_avro")
    event["event_time"] = round(event["event_time"].timestamp() * 1000)
    return event, schema_id


def _broken_rule(event: Row, kafka_ms: int) -> str | None:
    if any(event[name] in (None, "") for name in REQUIRED):
        return "missing_required"
    if event["event_type"] not in TYPES:
        return "unknown_event_type"
    if any(event[name] is not None and not 0 <= event[name] <= 86_400_000 for name in ("watch_ms", "duration_ms")):
        return "out_of_range"
    return "event_time_in_future" if event["event_time"] > kafka_ms + MAX_FUTURE_MS else None


def _hmac(value: str | None, key: bytes) -> str | None:
    return None if value is None else hmac.new(key, value.encode(), hashlib.sha256).hexdigest()


def _masked(value: str | None) -> str | None:
    if value is None:
        return None
    bits = 24 if ipaddress.ip_address(value).version == 4 else 48
    return str(ipaddress.ip_network(f"{value}/{bits}", strict=False).network_address)


def _hour(time_ms: int) -> Row:
    instant = dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC)
    return {"date": instant.strftime("%Y-%m-%d"), "hour": instant.hour}


def _refined(event: Row, videos: Mapping[str, Row]) -> Row:
    flat = {name: value for name, value in event.items() if name != "device"}
    flat |= {f"device_{name}": value for name, value in event["device"].items()}
    for name in ("device_os", "device_model", "country", "referrer"):
        flat[name] = None if flat[name] is None else flat[name].strip()
    for name in ("device_os", "country"):
        flat[name] = None if flat[name] is None else flat[name].lower()
    video = videos.get(event["video_id"], {})
    return flat | {name: video.get(name) or None for name in REFERENCE_COLUMNS}


GOLD_SQL = {
    "user_engagement_1h": """
        count(*) FILTER (event_type = 'view') AS views, count(*) FILTER (event_type = 'like') AS likes,
        count(*) FILTER (event_type = 'share') AS shares, count(*) FILTER (event_type = 'comment') AS comments,
        count(*) FILTER (event_type = 'follow') AS follows, coalesce(sum(watch_ms), 0)::BIGINT AS watch_ms,
        avg(watch_ms) FILTER (event_type = 'view') AS mean_watch_ms""",
    "video_engagement_1h": """
        count(*) FILTER (event_type = 'view') AS views, count(*) FILTER (event_type = 'like') AS likes,
        count(*) FILTER (event_type = 'share') AS shares, count(*) FILTER (event_type = 'comment') AS comments,
        coalesce(sum(watch_ms), 0)::BIGINT AS watch_ms, max(watch_ms) AS longest_watch_ms""",
    "session_engagement_1h": """
        count(*) AS actions, count(*) FILTER (event_type = 'view') AS views,
        coalesce(sum(watch_ms), 0)::BIGINT AS watch_ms, min(watch_ms) AS shortest_watch_ms,
        max(watch_ms) AS longest_watch_ms""",
}
ENTITY_KEY = {
    "user_engagement_1h": "user_id",
    "video_engagement_1h": "video_id",
    "session_engagement_1h": "session_id",
}


def gold_of(silver: Sequence[Row], view: str) -> list[Row]:
    """The view's row for each (entity, tile), from silver rows (`event_time` in ms)."""
    names = ("event_type", "event_time", "watch_ms", "user_id", "video_id", "session_id", "_kafka_ts_ms")
    events = pa.Table.from_pylist([{name: row[name] for name in names} for row in silver])
    key = ENTITY_KEY[view]
    query = f"""
        SELECT {key}, (event_time // 3600000) * 3600000 AS tile_start_ms, {GOLD_SQL[view]},
               count(*) AS events, max(_kafka_ts_ms) AS version_ms
        FROM events GROUP BY ALL"""
    with duckdb.connect() as db:
        rows: list[Row] = db.register("events", events).sql(query).to_arrow_table().to_pylist()
    return rows
