"""Reading a feature repo's domain.yaml, strictly."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from common.domain import Domain, load_domain
from common.errors import ConfigError

REPO = Path(__file__).parents[3] / "feature_repo"


@pytest.fixture
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((REPO / "domain.yaml").read_text())
    return loaded


def load(document: dict[str, Any], folder: Path) -> Domain:
    (folder / "schemas").symlink_to(REPO / "schemas")
    (folder / "domain.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return load_domain(folder)


def test_the_short_video_domain() -> None:
    domain = load_domain(REPO)
    assert domain.event.types == ("view", "like", "share", "comment", "follow")
    assert domain.canonical_schema["name"] == "Engagement"
    assert domain.pii["device.device_id"] == "hmac"
    assert [view.name for view in domain.features] == [
        "user_engagement_1h",
        "video_engagement_1h",
        "session_engagement_1h",
    ]
    assert pickle.loads(pickle.dumps(domain)) == domain


def test_feature_types_follow_from_the_operation_and_the_column() -> None:
    schema = load_domain(REPO).view("user_engagement_1h").schema()
    assert schema.field("views").type == pa.int64()
    assert schema.field("watch_ms").type == pa.int64()
    assert schema.field("mean_watch_ms").type == pa.float64()


def test_silver_is_flat_and_has_the_reference_columns() -> None:
    names = load_domain(REPO).silver_schema.names
    assert {"device_os", "author_id", "_offset", "date"} <= set(names)
    assert "device" not in names


@pytest.mark.parametrize(
    ("path", "value", "message", "hint"),
    [
        (["featurs"], [], "unknown key 'featurs'", "'features'"),
        (["lateness", "grace"], 5, "unknown key 'grace'", "'grace_ms'"),
        (["lateness", "grace_ms"], "1m", "must be a whole number", None),
        (["lateness", "grace_ms"], -1, "must not be negative", None),
        (["event", "id"], "event_ids", "unknown event 'event_ids'", "'event_id'"),
        (["event", "time"], "user_id", "is not an Avro timestamp", None),
        (["pii", "device.devise_id"], "hmac", "unknown pii 'device.devise_id'", "'device.device_id'"),
        (["pii", "email"], "hmca", "unknown pii 'hmca'", "'hmac'"),
        (["pii", "watch_ms"], "hmac", "is not a string", "drop"),
        (["quality", "range", "watch_ms"], [1], "least, greatest", None),
        (["reference", "columns"], ["country"], "same name", "rename"),
        (["normalise", "trim"], ["device.os"], "unknown normalise 'device.os'", "'device_os'"),
        (["features", 0, "key"], "users_id", "unknown key 'users_id'", "'user_id'"),
        (["features", 0, "aggregates", "views", "op"], "cuont", "unknown op 'cuont'", "'count'"),
        (["features", 0, "aggregates", "events"], {"op": "count"}, "name of a gold column", "rename"),
        (["features", 0, "aggregates", "n"], {"op": "sum"}, "count takes no column", None),
        (["features", 0, "aggregates", "n"], {"op": "sum", "column": "country"}, "country is not a number", None),
        (["schemas"], ["schemas/engagement_v9.avsc"], "engagement_v9.avsc is missing", None),
        (["name"], None, "name must be a string", None),
    ],
)
def test_mistakes_are_refused_with_the_place_and_a_suggestion(
    document: dict[str, Any], tmp_path: Path, path: list[Any], value: object, message: str, hint: str | None
) -> None:
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ConfigError, match=message) as error:
        load(document, tmp_path)
    assert hint is None or hint in str(error.value.hint)


def test_a_missing_key_is_named(document: dict[str, Any], tmp_path: Path) -> None:
    del document["event"]["time"]
    with pytest.raises(ConfigError, match=r"event\.time is missing"):
        load(document, tmp_path)


def test_a_folder_without_a_domain_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing") as error:
        load_domain(tmp_path)
    assert "--repo" in str(error.value.hint)


def test_reference_and_features_are_optional(document: dict[str, Any], tmp_path: Path) -> None:
    del document["reference"], document["features"]
    domain = load(document, tmp_path)
    assert domain.reference is None
    assert domain.features == ()
    assert "author_id" not in domain.silver_schema.names
