"""A bucket to test with: the real client against a fake of the service."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spark_jobs.beam_runner.checkpoint import gcs as gcs_store
from tests.fakes import gcs

BUCKET = "bucket"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[gcs.Buckets]:
    """gs://bucket, empty. What it holds is in `objects["bucket"]`."""
    with gcs.running(BUCKET) as (address, state):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setattr(gcs_store, "RETRY_S", 5.0)
        gcs_store._client.cache_clear()
        gcs_store._block.cache_clear()
        yield state
    gcs_store._client.cache_clear()
