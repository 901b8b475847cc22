"""The Confluent wire format."""

from __future__ import annotations

import pyarrow as pa

from common.avro.framing import NOT_FRAMED, frame, unframe

BODIES = pa.array([b"one", b"", b"\x00\x01"], pa.binary())


def test_frame_and_unframe() -> None:
    framed = frame(0x01020304, BODIES)
    assert framed[0].as_py() == b"\x00\x01\x02\x03\x04one"
    ids, bodies = unframe(framed)
    assert ids.tolist() == [0x01020304] * 3
    assert bodies.equals(BODIES)


def test_what_is_not_framed() -> None:
    values = pa.array(
        [None, b"", b"\x00\x00\x00\x07", b'{"a": 1}', b"\x00\xff\xff\xff\xffx", b"\x00\x00\x00\x00\x07"], pa.binary()
    )
    ids, bodies = unframe(values)
    assert ids.tolist() == [NOT_FRAMED] * 5 + [7]
    assert bodies[5].as_py() == b""
    assert unframe(values.slice(4)).schema_ids.tolist() == [NOT_FRAMED, 7]
    assert unframe(values.slice(0, 0)).schema_ids.tolist() == []
    assert unframe(pa.nulls(2, pa.binary())).schema_ids.tolist() == [NOT_FRAMED] * 2
