"""Ratings as events, checked against Python's own csv reader."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import fastavro
import pytest

from common.errors import ConfigError
from feature_repo.replay_movielens import MovieLensLog, open_log

SCHEMA_FOLDER = Path(__file__).parents[3] / "feature_repo" / "schemas"
SCHEMAS = [json.loads((SCHEMA_FOLDER / f"engagement_v{version}.avsc").read_text()) for version in (1, 2, 3)]

RATINGS = """userId,movieId,rating,timestamp
2,10,4.0,1000000002
1,10,3.5,1000000001
1,20,5.0,1000000001
3,10,0.5,1000086401
"""
MOVIES = """movieId,title,genres
10,"American President, The (1995)",Comedy|Drama|Romance
20,"11'09""01 - September 11 (2002)",(no genres listed)
"""


@pytest.fixture
def log(tmp_path: Path) -> MovieLensLog:
    (tmp_path / "ratings.csv").write_text(RATINGS)
    (tmp_path / "movies.csv").write_text(MOVIES)
    return open_log(SCHEMAS, tmp_path / "ratings.csv", partitions=3)


def events(log: MovieLensLog, start: int = 0, stop: int | None = None) -> list[dict[str, Any]]:
    reader = fastavro.parse_schema(SCHEMAS[-1])
    return [
        fastavro.schemaless_reader(io.BytesIO(value[5:]), reader)
        for batch in log.batches([1, 2, 3], start, log.count if stop is None else stop)
        for value in batch.values.to_pylist()
    ]


def test_ratings_become_events_in_order_of_time(log: MovieLensLog) -> None:
    expected = sorted(csv.DictReader(io.StringIO(RATINGS)), key=lambda rating: int(rating["timestamp"]))  # stable
    got = events(log)
    assert [
        (event["user_id"], event["video_id"], event["event_type"], event["properties"], event["event_time"].timestamp())
        for event in got
    ] == [
        (
            f"u{rating['userId']}",
            f"m{rating['movieId']}",
            "like" if float(rating["rating"]) >= 4 else "view",
            {"rating": rating["rating"]},
            float(rating["timestamp"]),
        )
        for rating in expected
    ]
    assert len({event["event_id"] for event in got}) == 4
    assert [event["session_id"] for event in got] == ["u1-2001-09-09"] * 2 + ["u2-2001-09-09", "u3-2001-09-10"]
    assert all(event["watch_ms"] is None and event["email"] is None for event in got)
    assert events(log, 1, 3) == got[1:3]


def test_ties_keep_the_order_of_the_file(tmp_path: Path) -> None:
    movies = [movie * 37 % 101 for movie in range(100)]
    rows = [f"1,{movie},4.0,{1_000_000_000 + position % 2}" for position, movie in enumerate(movies)]
    (tmp_path / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *rows]))
    log = open_log(SCHEMAS, tmp_path / "ratings.csv", partitions=1)
    assert [event["video_id"] for event in events(log)] == [f"m{movie}" for movie in movies[::2] + movies[1::2]]


def test_kafka_timestamps_keys_and_truth(log: MovieLensLog) -> None:
    (batch,) = log.batches([1, 2, 3], 0, log.count)
    assert batch.timestamps_ms.tolist() == [1000000001000, 1000000001000, 1000000002000, 1000086401000]
    assert batch.keys.to_pylist() == [b"u1", b"u1", b"u2", b"u3"]
    assert batch.partitions[0] == batch.partitions[1]
    assert log.truth().as_dict()["silver"] == 4


def test_movies_become_the_reference_table(log: MovieLensLog, tmp_path: Path) -> None:
    assert log.write_reference(tmp_path / "new" / "movielens.csv")
    with (tmp_path / "new" / "movielens.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["video_id"], row["author_id"], row["category"], row["title"]) for row in rows] == [
        ("m10", "movielens", "Comedy", "American President, The (1995)"),
        ("m20", "movielens", "(no genres listed)", "11'09\"01 - September 11 (2002)"),
    ]


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        open_log(SCHEMAS, tmp_path / "absent.csv", 1)
    (tmp_path / "tags.csv").write_text("userId,movieId,tag\n1,2,fun\n")
    with pytest.raises(ConfigError, match="not a MovieLens file"):
        open_log(SCHEMAS, tmp_path / "tags.csv", 1)
