"""Everything that can be wrong with a message, by name, with the verdict that the pipeline must reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from common.avro.framing import HEADER_BYTES

# No registry gets this far; still a legal id, so only the registry can tell.
UNKNOWN_SCHEMA_ID = 2**31 - 2

# Messages that cannot be decoded: how the bytes of a sound message are spoilt ...
MALFORMED: Mapping[str, Callable[[bytes], bytes | None]] = MappingProxyType(
    {
        "truncated": lambda value: value[: HEADER_BYTES + (len(value) - HEADER_BYTES) // 2],
        "trailing_bytes": lambda value: value + b"\x00\x2a",
        # The body begins with event_id: a length byte, then text.
        "bad_utf8": lambda value: value[: HEADER_BYTES + 1] + b"\xff" + value[HEADER_BYTES + 2 :],
        "negative_length": lambda value: value[:HEADER_BYTES] + b"\x03" + value[HEADER_BYTES + 1 :],
        "huge_length": lambda value: value[:HEADER_BYTES] + b"\xfe\xff\xff\xff\xff\x7f" + value[HEADER_BYTES + 1 :],
        "not_framed": lambda _: b'{"event_type": "view"}',
        "short_header": lambda value: value[: HEADER_BYTES - 1],
        "empty": lambda _: b"",
        "tombstone": lambda _: None,
        "unknown_schema_id": lambda value: b"\x00" + UNKNOWN_SCHEMA_ID.to_bytes(4, "big") + value[HEADER_BYTES:],
    }
)

# ... and the reason in the dead-letter table.
MALFORMED_REASONS: Mapping[str, str] = MappingProxyType(
    {
        "truncated": "malformed_avro",
        "trailing_bytes": "malformed_avro",
        "bad_utf8": "malformed_avro",
        "negative_length": "malformed_avro",
        "huge_length": "malformed_avro",
        "not_framed": "not_confluent_framed",
        "short_header": "not_confluent_framed",
        "empty": "not_confluent_framed",
        "tombstone": "not_confluent_framed",
        "unknown_schema_id": "unknown_schema_id",
    }
)

# Events that decode but break a rule of domain.yaml.
INVALID_REASONS: Mapping[str, str] = MappingProxyType(
    {
        "missing_user_id": "missing_required",
        "missing_video_id": "missing_required",
        "negative_watch_ms": "out_of_range",
        "unknown_event_type": "unknown_event_type",
        "future_event_time": "event_time_in_future",
    }
)
