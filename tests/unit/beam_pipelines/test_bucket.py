"""Splitting by bucket keeps rows, their order, and equal keys together."""

from __future__ import annotations

import pyarrow as pa
import pytest
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.transforms import bucket
from beam_pipelines.transforms.bucket import SplitByBucket, split_by_bucket
from common.hashing import bucket_of


@given(st.lists(st.sampled_from([f"id{i}" for i in range(40)]), min_size=1), st.integers(1, 20))
def test_each_bucket_has_its_rows_in_order(keys: list[str], buckets: int) -> None:
    rows = pa.record_batch({"id": keys, "n": list(range(len(keys)))})
    home = bucket_of(rows.column("id"), buckets).tolist()
    found = {number: part.column("n").to_pylist() for number, part in split_by_bucket(rows, "id", buckets)}
    assert found == {b: [n for n, at in enumerate(home) if at == b] for b in sorted(set(home))}


def test_a_bundle_leaves_as_one_element_per_bucket() -> None:
    dofn = SplitByBucket("id", 2)
    dofn.start_bundle()
    for start in (0, 50):
        batch = pa.record_batch({"id": [str(n) for n in range(start, start + 50)]})
        assert list(dofn.process(batch, Timestamp(start + 1))) == []
    left = list(dofn.finish_bundle())
    assert [windowed.value[0] for windowed in left] == [0, 1]
    assert sum(windowed.value[1].num_rows for windowed in left) == 100
    assert {windowed.timestamp for windowed in left} == {Timestamp(1)}


def test_a_large_bundle_leaves_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "FLUSH_ROWS", 10)
    dofn = SplitByBucket("id", 1)
    dofn.start_bundle()
    parts = [dofn.process(pa.record_batch({"id": ["a"] * 6}), Timestamp(1)) for _ in range(3)]
    sizes = [windowed.value[1].num_rows for part in [*parts, dofn.finish_bundle()] for windowed in part]
    assert sizes == [12, 6]
