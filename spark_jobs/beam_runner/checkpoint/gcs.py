"""A checkpoint on Google Cloud Storage: objects below `gs://bucket/path`.

Create-if-absent is `if_generation_match=0`. Object storage is strongly consistent for reads and listings, so nothing
else is needed. Addresses and credentials come from the environment of the process (STORAGE_EMULATOR_HOST,
GOOGLE_APPLICATION_CREDENTIALS, or the machine's service account), never from here.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from spark_jobs.beam_runner.errors import CheckpointStoreError

RETRY_S = 60.0  # transient errors (408, 429, 5xx, broken connections) are tried again for this long
TIMEOUT_S = (5.0, 60.0)  # of one request: connect, and silence while reading
# A cold task reads many small frames of the same few files; a request costs 20-50 ms whatever it brings.
BLOCK_BYTES = 1 << 20
BLOCKS_KEPT = 64
_WRITER = "writer"  # object metadata: which call wrote it
_PARALLEL = 8


@dataclass(frozen=True)
class GcsStore:
    """`url`: gs://bucket/path."""

    url: str

    @property
    def bucket(self) -> str:
        return self.url.removeprefix("gs://").partition("/")[0]

    @property
    def prefix(self) -> str:
        path = self.url.removeprefix("gs://").partition("/")[2].strip("/")
        return f"{path}/" if path else ""

    def prepare(self, folders: Iterable[str]) -> None:  # noqa: ARG002  folders are parts of names here
        """Asks for one name, so that a missing bucket or missing rights are told before anything runs."""
        self.names("")

    def put_if_absent(self, name: str, data: bytes) -> bool:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        writer = uuid.uuid4().hex
        with self._told():
            blob = self._blob(name)
            blob.metadata = {_WRITER: writer}
            try:
                self._upload(blob, data)
                return True
            except PreconditionFailed:
                # Somebody's; or our own first try, whose answer was lost.
                try:
                    blob.reload(timeout=TIMEOUT_S, retry=_retry())
                except NotFound:
                    return False  # the name was taken, and is garbage by now
                return bool((blob.metadata or {}).get(_WRITER) == writer)

    def write(self, name: str, data: bytes) -> None:
        from google.api_core.exceptions import PreconditionFailed

        with self._told():
            try:
                self._upload(self._blob(name), data)
            except PreconditionFailed:
                return  # nobody else uses the name: a try whose answer was lost

    def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        if length < 0:
            return _download(self, name, offset, None)
        blocks = range(offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES + 1) if length else ()
        data = b"".join(_block(self, name, number) for number in blocks)
        start = offset % BLOCK_BYTES
        return data[start : start + length]

    def names(self, folder: str) -> list[str]:
        prefix = f"{self.prefix}{folder}/" if folder else self.prefix
        with self._told():
            found = _client(os.getpid()).list_blobs(
                self.bucket, prefix=prefix, delimiter="/", fields="items(name),nextPageToken", **_bounds()
            )
            return [blob.name.removeprefix(prefix) for blob in found]

    def delete(self, names: Iterable[str]) -> None:
        from google.api_core.exceptions import NotFound

        def delete_one(name: str) -> None:
            with self._told():
                try:
                    self._blob(name).delete(timeout=TIMEOUT_S, retry=_retry())
                except NotFound:
                    return

        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(delete_one, names))

    def _blob(self, name: str) -> Any:
        return _client(os.getpid()).bucket(self.bucket).blob(self.prefix + name)

    def _upload(self, blob: Any, data: bytes) -> None:
        blob.upload_from_string(data, "application/octet-stream", if_generation_match=0, **_bounds())

    @contextmanager
    def _told(self) -> Iterator[None]:
        """The client's errors as ours: where, and what to type."""
        import requests
        from google.api_core import exceptions as api
        from google.auth.exceptions import GoogleAuthError

        def error(message: str, hint: str) -> CheckpointStoreError:
            return CheckpointStoreError(f"{message} (checkpoint {self.url})", hint=hint)

        try:
            yield
        except GoogleAuthError as cause:
            raise error(
                f"There are no usable credentials for Google Cloud Storage: {type(cause).__name__}",
                "gcloud auth application-default login    # or set GOOGLE_APPLICATION_CREDENTIALS to a key file",
            ) from cause
        except (api.Forbidden, api.Unauthorized) as cause:
            raise error(
                f"Bucket {self.bucket} refuses access",
                f"gcloud storage buckets add-iam-policy-binding gs://{self.bucket} "
                "--member=serviceAccount:NAME --role=roles/storage.objectUser",
            ) from cause
        except api.NotFound as cause:
            raise error(
                f"There is no bucket {self.bucket}", f"gcloud storage buckets create gs://{self.bucket}"
            ) from cause
        except (api.RetryError, api.ServerError, api.TooManyRequests, requests.RequestException) as cause:
            raise error(
                f"Google Cloud Storage gave no answer for {RETRY_S:.0f} s: {type(cause).__name__}",
                "curl -sI https://storage.googleapis.com    # then start the job again: it goes on from its last epoch",
            ) from cause


def _download(store: GcsStore, name: str, start: int, end: int | None) -> bytes:
    from google.api_core.exceptions import NotFound, RequestRangeNotSatisfiable

    with store._told():
        try:
            data = store._blob(name).download_as_bytes(start=start or None, end=end, raw_download=True, **_bounds())
            return bytes(data)
        except RequestRangeNotSatisfiable:
            return b""  # past the end
        except NotFound:
            raise FileNotFoundError(f"{store.url}/{name}") from None


@lru_cache(BLOCKS_KEPT)
def _block(store: GcsStore, name: str, number: int) -> bytes:
    """Part of a file that never changes once it is there: data files have names of their own."""
    return _download(store, name, number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES - 1)


@lru_cache(1)
def _client(_pid: int) -> Any:
    """One client a process: it must not be shared over a fork, and is never part of a pickle."""
    from google.cloud import storage

    return storage.Client()


def _retry() -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(RETRY_S)


def _bounds() -> dict[str, Any]:
    return {"timeout": TIMEOUT_S, "retry": _retry()}
