"""Finding the values that are not UTF-8."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.avro.utf8 import invalid_utf8
from tests.unit.avro.reference import binary


def is_invalid(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return True
    return False


@given(st.lists(st.binary(max_size=3) | st.text(max_size=3).map(str.encode), max_size=80))
def test_the_verdict_is_pythons(values: list[bytes]) -> None:
    assert invalid_utf8(binary(values)).tolist() == [is_invalid(value) for value in values]


def test_one_among_many() -> None:
    values = ["é".encode()] * 5_000
    values[4_321] = b"\xc3"
    assert invalid_utf8(binary(values)).nonzero()[0].tolist() == [4_321]
