"""Values of a key that are decoded late: they behave as the list that they stand for, in little memory."""

from __future__ import annotations

import pickle

import pytest
from apache_beam.coders import FastPrimitivesCoder, VarIntCoder
from apache_beam.coders.coders import IterableCoder

from spark_jobs.beam_runner.bundles import spool as spool_module
from spark_jobs.beam_runner.bundles.exchange import EdgeId, Parcel, Row, open_parcels
from spark_jobs.beam_runner.bundles.spool import Spool
from spark_jobs.beam_runner.checkpoint.manifest import SidePart
from spark_jobs.beam_runner.keyed import values as values_module
from spark_jobs.beam_runner.keyed.values import EncodedValues, Part, ValueDecoder

TRUTH = [0, 300, 7, 7, 1 << 40, -1, *range(50)]


def encoded(size: int, in_memory: int = 1 << 20) -> list[Part]:
    spool, impl = Spool(in_memory), VarIntCoder().get_impl()
    chunks = [TRUTH[at : at + size] for at in range(0, len(TRUTH), size)]
    return [(len(chunk), spool.keep(b"".join(impl.encode_nested(v) for v in chunk))) for chunk in chunks]


@pytest.mark.parametrize("in_memory", [0, 700, 1 << 20])
def test_encoded_values_are_the_list(monkeypatch: pytest.MonkeyPatch, in_memory: int) -> None:
    monkeypatch.setattr(spool_module, "LEAST_BYTES", 1)
    some = EncodedValues(ValueDecoder(VarIntCoder()), encoded(7, in_memory))
    assert list(some) == TRUTH
    assert list(some) == TRUTH, "a second iteration"
    assert [(a, b) for a, b in zip(some, some, strict=True)] == [(v, v) for v in TRUTH], "two iterations at once"
    assert len(some) == len(TRUTH)
    assert some[3] == TRUTH[3]
    assert some[-5:] == TRUTH[-5:]
    assert some == TRUTH
    assert some != TRUTH[:-1]
    assert sorted(some) == sorted(TRUTH)
    assert 300 in some
    assert pickle.loads(pickle.dumps(some)) == TRUTH
    for coder in (FastPrimitivesCoder(), IterableCoder(VarIntCoder())):
        assert list(coder.decode(coder.encode(some))) == TRUTH


def test_few_values_are_a_list_and_many_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = ValueDecoder(VarIntCoder())
    assert decoder.values(encoded(7)) == TRUTH
    assert type(decoder.values(encoded(7))) is list
    monkeypatch.setattr(values_module, "LAZY_BYTES", 20)
    for size in (7, 100):
        assert type(decoder.values(encoded(size))) is EncodedValues
        assert list(decoder.values(encoded(size))) == TRUTH


class Counted:
    alive = most = 0

    def __init__(self, size: int) -> None:
        self.size = size
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)

    def __del__(self) -> None:
        Counted.alive -= 1

    def __reduce__(self) -> tuple[type, tuple[int], dict[str, str]]:
        return Counted, (self.size,), {"filling": "x" * self.size}


def test_large_values_are_decoded_one_by_one() -> None:
    coder = FastPrimitivesCoder()
    data = b"".join(coder.get_impl().encode_nested(Counted(values_module.LARGE_BYTES)) for _ in range(500))
    Counted.most = 0
    assert sum(value.size for value in ValueDecoder(coder).values([(500, data)])) == 500 * values_module.LARGE_BYTES
    assert Counted.most <= 2, "the one that the loop has, and the next"


def test_a_parcel_in_pieces_is_the_parcel_however_they_arrive() -> None:
    def parcel(source: int) -> Parcel:
        rows: dict[EdgeId, list[Row]] = {
            ("s", 0): [(g, b"", bytes([source, g]) * 50) for g in range(9)],
            ("t", 1): [(0, b"", b"x" * 500)],
        }
        return Parcel(source, rows, {"up": source}, {"side": [SidePart(str(source), source)]})

    pieces = [piece for source in (1, 0) for piece in parcel(source).pieces(250)]
    assert len(pieces) > 6
    for piece in pieces:
        rows = [row for some in piece.rows.values() for row in some]
        assert len(rows) == 1 or sum(len(row[2]) for row in rows) <= 250
    assert open_parcels(pieces[::-1]) == open_parcels([parcel(1), parcel(0)])
