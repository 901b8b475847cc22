"""Scrubbing by field path, and the key it needs."""

from __future__ import annotations

import hashlib
import hmac
import stat
from pathlib import Path

import pyarrow as pa
import pytest

from common.domain import PiiAction
from common.errors import ConfigError
from common.pii import KEY_VARIABLE, Scrubber, create_key_file, load_key

KEY = b"0123456789abcdef0123456789abcdef"


def scrub_one(action: PiiAction, *values: str | None) -> list[str | None]:
    batch = pa.record_batch({"field": pa.array(values, pa.string())})
    scrubbed: list[str | None] = Scrubber({"field": action}, KEY).scrub(batch).column("field").to_pylist()
    return scrubbed


def test_hmac_is_the_standard_one_and_null_stays_null() -> None:
    ann, bob = (hmac.new(KEY, value, hashlib.sha256).hexdigest() for value in (b"ann@example.com", b"bob"))
    assert scrub_one("hmac", "ann@example.com", None, "bob", "ann@example.com") == [ann, None, bob, ann]


def test_hmac_depends_on_the_key() -> None:
    batch = pa.record_batch({"field": ["ann"]})
    ours, theirs = (Scrubber({"field": "hmac"}, key).scrub(batch) for key in (KEY, KEY[::-1]))
    assert ours != theirs


def test_sha256_is_the_plain_one() -> None:
    assert scrub_one("sha256", "ann") == [hashlib.sha256(b"ann").hexdigest()]


@pytest.mark.parametrize(
    ("action", "value", "masked"),
    [
        ("mask_email", "ann@example.com", "***@example.com"),
        ("mask_email", "ann", None),
        ("mask_email", "", None),
        ("mask_ip", "203.0.113.77", "203.0.113.0"),
        ("mask_ip", "2001:db8:1:2::3", "2001:db8:1::"),
        ("mask_ip", "::ffff:203.0.113.77", "203.0.113.0"),
        ("mask_ip", "203.0.113.77, proxied for ann", None),
        ("drop", "anything", None),
    ],
)
def test_masks_keep_what_they_promise_and_nothing_they_do_not_understand(
    action: PiiAction, value: str, masked: str | None
) -> None:
    assert scrub_one(action, value) == [masked]


def test_nested_fields_are_replaced_and_their_neighbours_kept() -> None:
    device = pa.array([{"id": "d1", "os": "ios"}, None, {"id": None, "os": "web"}])
    batch = pa.record_batch({"device": device, "user": ["a", "b", "c"]})
    scrubbed = Scrubber({"device.id": "sha256"}, b"").scrub(batch)
    assert scrubbed.column("device").to_pylist() == [
        {"id": hashlib.sha256(b"d1").hexdigest(), "os": "ios"},
        None,
        {"id": None, "os": "web"},
    ]
    assert scrubbed.schema == batch.schema
    assert scrubbed.column("user") == batch.column("user")


def test_each_distinct_value_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("common.pii.mask_email", calls.append)
    scrubber = Scrubber({"field": "mask_email"}, b"")
    for _ in range(3):
        scrubber.scrub(pa.record_batch({"field": ["a@b", "a@b", "c@d"]}))
    assert sorted(calls) == ["a@b", "c@d"]


def test_the_environment_goes_before_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-the-file-0123456789\n")
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert load_key(file) == b"from-the-file-0123456789"
    monkeypatch.setenv(KEY_VARIABLE, "from-the-environment-0123")
    assert load_key(file) == b"from-the-environment-0123"


def test_a_missing_or_short_key_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(ConfigError) as missing:
        load_key(None)
    assert missing.value.code == "no_pii_key"
    monkeypatch.setenv(KEY_VARIABLE, "hunter2")
    with pytest.raises(ConfigError) as short:
        load_key(None)
    assert short.value.code == "short_pii_key"
    assert "hunter2" not in str(short.value)


def test_a_key_file_is_private_random_and_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    first, second = tmp_path / "a" / "key", tmp_path / "b" / "key"
    for file in (first, second):
        create_key_file(file)
    key = load_key(first)
    assert key != load_key(second)
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    create_key_file(first)
    assert load_key(first) == key
