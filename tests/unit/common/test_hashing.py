"""The vectorised hash against the same hash written for one key."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.hashing import bucket_of, stable_hash

MASK = (1 << 64) - 1


def scalar_hash(key: bytes) -> int:
    def mix(state: int, multiplier: int) -> int:
        return ((state ^ (state >> 33)) * multiplier) & MASK

    state = 0x9E3779B97F4A7C15 ^ len(key)
    prefix = key[:256]
    for at in range(0, len(prefix), 8):
        state = mix(state ^ int.from_bytes(prefix[at : at + 8], "little"), 0xFF51AFD7ED558CCD)
    state = mix(mix(state, 0xFF51AFD7ED558CCD), 0xC4CEB9FE1A85EC53)
    return state ^ (state >> 33)


@given(st.lists(st.one_of(st.none(), st.binary(max_size=300))))
def test_equals_the_scalar_reference(keys: list[bytes | None]) -> None:
    assert stable_hash(pa.array(keys, pa.binary())).tolist() == [scalar_hash(key or b"") for key in keys]


@given(st.lists(st.text(max_size=20), min_size=3))
def test_a_slice_hashes_like_its_keys(keys: list[str]) -> None:
    whole = pa.array(keys, pa.string())
    assert stable_hash(whole.slice(1)).tolist() == [scalar_hash(key.encode()) for key in keys[1:]]


def test_integers_hash_like_their_text() -> None:
    assert stable_hash(pa.array([7, -12])).tolist() == stable_hash(pa.array(["7", "-12"])).tolist()


def test_values_never_change() -> None:
    # Checkpoints hold state by these numbers: a change here loses it.
    assert stable_hash(pa.array(["a", "event-0001", ""])).tolist() == [
        710949192515109467,
        scalar_hash(b"event-0001"),
        11286133854226296554,
    ]


@pytest.mark.parametrize("pattern", ["user_%d", "%d", "%012d", "session-%d-x", "%d-aaaaaaaaaaaaaaaaaaaa"])
@pytest.mark.parametrize("buckets", [2, 7, 16])
def test_similar_keys_spread_evenly(pattern: str, buckets: int) -> None:
    counts = np.bincount(bucket_of(pa.array([pattern % i for i in range(20_000)]), buckets), minlength=buckets)
    expected = 20_000 / buckets
    assert abs(counts - expected).max() < 5 * expected**0.5


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="double"):
        stable_hash(pa.array([1.5]))
