"""Writing feature rows to Redis as Feast would, without Feast, at the speed of the server."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import chain, compress
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import redis

from common.domain import FeatureView
from common.errors import PipelineError
from common.online.feast_encoding import (
    decode_timestamps_us,
    encode_entity_keys,
    encode_timestamps,
    encode_values,
    feature_field,
    timestamp_field,
)

PASSWORD_VARIABLE = "PIPELINES_REDIS_PASSWORD"  # noqa: S105
# Requests on the way before replies are read: large enough to hide the round trip, small beside the server's buffers.
CHUNK_ROWS = 8_000


class OnlineStore:
    """A connection to the Redis that Feast's project `project` is served from.

    `url` is `redis://host:port/db` or `rediss://`; a password comes from the environment, PIPELINES_REDIS_PASSWORD.
    Close it, or use it as a context manager. Raises PipelineError `online_unreachable`.
    """

    def __init__(self, url: str, project: str) -> None:
        self._project = project
        self._address = f"{urlsplit(url).hostname}:{urlsplit(url).port}"
        pool = redis.ConnectionPool.from_url(url, password=os.environ.get(PASSWORD_VARIABLE))
        self._connection: Any = pool.make_connection()  # redis-py types its connections in part
        try:
            self._connection.connect()  # type: ignore[no-untyped-call]
        except redis.RedisError as error:
            raise self._unreachable() from error

    def __enter__(self) -> OnlineStore:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.disconnect()

    def write(self, view: FeatureView, rows: pa.Table) -> int:
        """Writes rows of gold/<view>, one per entity, and returns how many were written.

        A row replaces what is stored unless that has a later `event_timestamp`: the newest tile wins, and of one tile
        the last write, so corrections get through and a repeat changes nothing. Compare and write are two steps: one
        writer per view.
        """
        written = unread = 0
        for start in range(0, rows.num_rows, CHUNK_ROWS):
            chunk = rows.slice(start, CHUNK_ROWS)
            keys = encode_entity_keys(chunk[view.key], view.key, self._project)
            commands = _write_commands(view, keys, chunk)
            # The server is still at the last chunk's writes while this one is encoded: half again as many rows/s.
            self._send(_pack_reads(keys, timestamp_field(view.name)))
            stored_us = decode_timestamps_us(self._receive(unread + len(keys))[unread:])
            fresh = pc.cast(chunk["event_timestamp"], pa.int64()).to_numpy() >= stored_us
            self._send(b"".join(chain.from_iterable(compress(commands, fresh.tolist()))))
            unread = int(fresh.sum())
            written += unread
        self._receive(unread)
        return written

    def _send(self, requests: bytes) -> None:
        try:
            self._connection.send_packed_command([requests])
        except redis.RedisError as error:
            raise self._unreachable() from error

    def _receive(self, replies: int) -> list[Any]:
        """The next replies. Any error among them fails the call and closes the connection."""
        try:
            return [self._connection.read_response(disable_decoding=True) for _ in range(replies)]
        except redis.ResponseError as error:
            self.close()  # or the replies still on the way would answer the next request
            raise PipelineError(
                f"Redis at {self._address} refused a command ({type(error).__name__}).",
                code="online_refused",
                hint="Check its memory limit, its user's permissions and that it is no read-only replica.",
            ) from None  # Redis may quote arguments, which are feature values
        except redis.RedisError as error:
            raise self._unreachable() from error

    def _unreachable(self) -> PipelineError:
        return PipelineError(
            f"Redis at {self._address} does not answer.",
            code="online_unreachable",
            hint=f"python -m beam_pipelines doctor; a password is read from {PASSWORD_VARIABLE}.",
        )


def _bulk(data: bytes) -> bytes:
    """A RESP bulk string."""
    return b"$%d\r\n%b\r\n" % (len(data), data)


def _pack_reads(keys: Sequence[bytes], field: bytes) -> bytes:
    """HGET of one field for each key."""
    tail = _bulk(field)
    return b"".join([b"*3\r\n$4\r\nHGET\r\n$%d\r\n%b\r\n%b" % (len(key), key, tail) for key in keys])


def _write_commands(view: FeatureView, keys: Sequence[bytes], rows: pa.Table) -> Iterator[tuple[bytes, ...]]:
    """HSET of timestamp and features for each key, in pieces: columns are framed one by one, then read row by row."""
    columns = [_framed(timestamp_field(view.name), encode_timestamps(rows["event_timestamp"]))]
    for name in view.schema().names:
        columns.append(_framed(feature_field(view.name, name), encode_values(rows[name])))
    head = b"*%d\r\n$4\r\nHSET\r\n" % (2 + 2 * len(columns))
    framed_keys = [b"%b$%d\r\n%b\r\n" % (head, len(key), key) for key in keys]
    return zip(framed_keys, *columns, strict=True)


def _framed(field: bytes, values: Sequence[bytes]) -> list[bytes]:
    head = _bulk(field)
    return [b"%b$%d\r\n%b\r\n" % (head, len(value), value) for value in values]
