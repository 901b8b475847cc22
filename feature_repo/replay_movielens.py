"""MovieLens ratings as engagement events: a real log, in its real order, on its real clock.

Data: F. M. Harper, J. A. Konstan, "The MovieLens Datasets", ACM TiiS 5 (2015). `ratings.csv` holds userId, movieId,
rating and timestamp (seconds); `movies.csv` beside it becomes the reference table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from common.avro.arrow_types import arrow_schema
from common.errors import ConfigError
from common.event_source import EventWriter, GroundTruth, MessageBatch
from feature_repo.event_log import partition_of

BATCH_ROWS = 20_000

# Four stars or more count as a like; whoever rated less has still seen it.
_LIKED = 4.0

_RATING_COLUMNS = {"userId": pa.int64(), "movieId": pa.int64(), "rating": pa.string(), "timestamp": pa.int64()}
_MOVIE_COLUMNS = {"movieId": pa.int64(), "title": pa.string(), "genres": pa.string()}


def open_log(schemas: Sequence[Mapping[str, Any]], path: Path, partitions: int) -> MovieLensLog:
    """The replay of format `movielens`, as domain.yaml names it.

    Raises:
        ConfigError: the file is missing, or is not a MovieLens ratings file.
    """
    return MovieLensLog(schemas, path, partitions)


class MovieLensLog:
    """All ratings, by time, ties in the order of the file: an `EventSource` without faults."""

    def __init__(self, schemas: Sequence[Mapping[str, Any]], path: Path, partitions: int) -> None:
        self._path = path
        self._partitions = partitions
        self._schemas = schemas
        self._schema = arrow_schema(schemas[-1])
        self._writer = EventWriter(schemas)
        ratings = _read_csv(path, _RATING_COLUMNS)
        order = np.argsort(ratings["timestamp"].to_numpy(), kind="stable")
        self._ratings = ratings.take(pa.array(order)).combine_chunks()

    @property
    def count(self) -> int:
        return len(self._ratings)

    def truth(self) -> GroundTruth:
        """Nothing is lost: ids are unique, and no event arrives before an earlier one."""
        return GroundTruth(consumed=self.count, bronze_dlq={}, duplicates=0, silver_dlq={}, late=0)

    def batches(self, schema_ids: Sequence[int], start: int, stop: int) -> Iterator[MessageBatch]:
        for first in range(start, stop, BATCH_ROWS):
            (ratings,) = self._ratings.slice(first, min(BATCH_ROWS, stop - first)).to_batches()
            events = self._events(ratings)
            newest = np.full(len(ratings), len(self._schemas) - 1, np.int8)
            yield MessageBatch(
                keys=events.column("user_id").cast(pa.binary()),
                values=self._writer.values(events, newest, schema_ids),
                partitions=partition_of(ratings["userId"].to_numpy(), self._partitions),
                timestamps_ms=ratings["timestamp"].to_numpy() * 1000,
            )

    def write_reference(self, path: Path) -> bool:
        movies = _read_csv(self._path.parent / "movies.csv", _MOVIE_COLUMNS)
        genres = pc.split_pattern(movies["genres"], "|")
        table = pa.table(
            {
                "video_id": _prefixed("m", movies["movieId"]),
                "author_id": pa.repeat("movielens", len(movies)),
                "category": pc.list_element(genres, 0),
                "language": pa.repeat("en", len(movies)),
                "title": movies["title"],
            }
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.csv.write_csv(table, path)
        return True

    def _events(self, ratings: pa.RecordBatch) -> pa.RecordBatch:
        """One event per rating, in the canonical schema."""
        count = len(ratings)
        user, video = _prefixed("u", ratings["userId"]), _prefixed("m", ratings["movieId"])
        time = pc.multiply(ratings["timestamp"], 1000).cast(pa.timestamp("ms", "UTC"))
        day = pc.strftime(time, "%Y-%m-%d")
        device = pa.repeat(pa.scalar("unknown"), count)
        device_type = self._schema.field("device").type
        known = {
            "event_id": pc.binary_join_element_wise("ml", user, video, "-"),
            "event_type": pc.if_else(pc.greater_equal(ratings["rating"].cast(pa.float64()), _LIKED), "like", "view"),
            "event_time": time,
            "user_id": user,
            "device": pa.StructArray.from_arrays(
                [pa.nulls(count, field.type) if field.nullable else device for field in device_type],
                fields=list(device_type),
            ),
            "session_id": pc.binary_join_element_wise(user, day, "-"),
            "video_id": video,
            "properties": pa.MapArray.from_arrays(
                pa.array(np.arange(count + 1, dtype=np.int32)),
                pa.repeat("rating", count),
                ratings["rating"],
                type=self._schema.field("properties").type,
            ),
        }
        columns = [known.get(field.name, pa.nulls(count, field.type)) for field in self._schema]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)


def _prefixed(prefix: str, numbers: pa.Array) -> pa.StringArray:
    return pc.binary_join_element_wise(prefix, numbers.cast(pa.string()), "")


def _read_csv(path: Path, columns: Mapping[str, pa.DataType]) -> pa.Table:
    convert = pyarrow.csv.ConvertOptions(column_types=dict(columns), include_columns=list(columns))
    try:
        return pyarrow.csv.read_csv(path, convert_options=convert)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", code="replay_missing", hint="check --replay") from None
    except (pa.ArrowInvalid, KeyError) as error:
        wanted = ", ".join(columns)
        raise ConfigError(
            f"{path} is not a MovieLens file: it needs the columns {wanted}",
            code="replay_format",
            hint="check --replay and --format",
        ) from error
