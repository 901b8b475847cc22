"""Personal data leaves here: fields are hashed, masked or dropped by path, before anything is stored."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from common.domain import PiiAction
from common.errors import ConfigError

KEY_VARIABLE = "PIPELINES_PII_KEY"
# A short key can be searched like the phone numbers it protects.
MIN_KEY_BYTES = 16
# Scrubbed values remembered per field: a zipf-popular user is hashed once, and a worker holds at most ~20 MB per field.
CACHE_VALUES = 1 << 16

# Networks kept by mask_ip: a /24 and a /48 are neighbourhoods, not households.
_IPV4_PREFIX, _IPV6_PREFIX = 24, 48


def load_key(key_file: Path | None) -> bytes:
    """The HMAC key: from the environment, else from the file. Never passed in argv or in the pipeline itself.

    Raises:
        ConfigError: there is none, or it is shorter than `MIN_KEY_BYTES`.
    """
    text = os.environ.get(KEY_VARIABLE)
    if text is None and key_file is not None and key_file.exists():
        text = key_file.read_text()
    if text is None:
        raise ConfigError(
            f"no key for personal data: {KEY_VARIABLE} is not set and there is no key file",
            code="no_pii_key",
            hint=f"export {KEY_VARIABLE}=$(openssl rand -hex 32)",
        )
    key = text.strip().encode()
    if len(key) < MIN_KEY_BYTES:
        raise ConfigError(f"the key for personal data is shorter than {MIN_KEY_BYTES} bytes", code="short_pii_key")
    return key


def create_key_file(path: Path) -> None:
    """Writes a random key that only the owner can read; an existing file stays: another key would break all joins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


class Scrubber:
    """Applies a policy of {field path: action} to batches.

    hmac        HMAC-SHA-256 in hex: equal values stay equal, and without the key nobody can try them out
    sha256      SHA-256 in hex: for joins with data that was hashed so elsewhere; guessable, prefer hmac
    mask_email  the domain stays: ***@example.com
    mask_ip     the network stays: IPv4 /24, IPv6 /48
    drop        null

    A value that is not an address becomes null under the masks: what cannot be understood must not pass.
    """

    def __init__(self, policy: Mapping[str, PiiAction], key: bytes) -> None:
        self._replace = {path: _replacement(action, key) for path, action in policy.items()}

    def scrub(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with the policy's fields replaced, in the same schema."""
        columns = batch.columns
        for path, replace in self._replace.items():
            name, *inner = path.split(".")
            index = batch.schema.get_field_index(name)
            columns[index] = _replace_at(columns[index], inner, replace)
        return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


Replacement = Callable[[pa.Array], pa.Array]


def _replacement(action: PiiAction, key: bytes) -> Replacement:
    if action == "drop":
        return lambda column: pa.nulls(len(column), column.type)
    if action == "hmac":
        keyed = hmac.new(key, digestmod=hashlib.sha256)
        return _per_distinct_value(lambda value: _digest(keyed.copy(), value))
    if action == "sha256":
        return _per_distinct_value(lambda value: hashlib.sha256(value.encode()).hexdigest())
    return _per_distinct_value(mask_email if action == "mask_email" else mask_ip)


def _digest(keyed: hmac.HMAC, value: str) -> str:
    keyed.update(value.encode())
    return keyed.hexdigest()


def _per_distinct_value(scrub: Callable[[str], str | None]) -> Replacement:
    """Calls `scrub` once per distinct value: 2 us per HMAC is too much per row and little per user."""
    remembered = lru_cache(CACHE_VALUES)(scrub)

    def replace(column: pa.Array) -> pa.Array:
        encoded = column.dictionary_encode()
        scrubbed = pa.array([remembered(value) for value in encoded.dictionary.to_pylist()], pa.string())
        return scrubbed.take(encoded.indices)

    return replace


def mask_email(value: str) -> str | None:
    """
    >>> mask_email("ann@example.com"), mask_email("not an address")
    ('***@example.com', None)
    """
    name, at, domain = value.rpartition("@")
    return f"***@{domain}" if name and at and domain else None


def mask_ip(value: str) -> str | None:
    """
    >>> mask_ip("203.0.113.77"), mask_ip("2001:db8:1:2::3"), mask_ip("::ffff:203.0.113.77"), mask_ip("x")
    ('203.0.113.0', '2001:db8:1::', '203.0.113.0', None)
    """
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(address), _IPV6_PREFIX), strict=False).network_address)
        # Its /48 would be ::, the same for the whole of IPv4.
        address = address.ipv4_mapped
    return str(ipaddress.ip_network((int(address), _IPV4_PREFIX), strict=False).network_address)


def _replace_at(column: pa.Array, path: list[str], replace: Replacement) -> pa.Array:
    """Replaces the leaf at `path` inside (nested) struct columns; a null struct stays null."""
    if not path:
        return replace(column)
    fields = list(column.type)
    index = column.type.get_field_index(path[0])
    children = [pc.struct_field(column, [i]) for i in range(len(fields))]
    children[index] = _replace_at(children[index], path[1:], replace)
    return pa.StructArray.from_arrays(children, fields=fields, mask=column.is_null() if column.null_count else None)
