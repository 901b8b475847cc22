"""Who and what exists: users with their devices, and videos. The same for every seed, so one reference table fits all.

Entity k is a function of k alone: a catalogue of 1,000 videos is the beginning of one of 5,000.
"""

from __future__ import annotations

import datetime as dt
from enum import IntEnum, auto
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from feature_repo.draws import I64, choose, decimal_ids, hex_ids, integers, uniform

DEFAULT_USERS = 20_000
DEFAULT_VIDEOS = 5_000

_AUTHORS = 800
_SHORTEST_MS, _LONGEST_MS = 5_000, 180_000
_FIRST_PUBLISHED = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
_PUBLISHING_SECONDS = 360 * 86_400

_CATEGORIES = ("comedy", "dance", "food", "music", "news", "pets", "science", "sports", "style", "travel")
_LANGUAGES = ("en", "en", "en", "de", "es", "fr", "hi", "ja", "pt", "ar")
_SUBJECTS = ("Cats", "A café", "Night train", "Street food", "Penalty kick", "Lo-fi beats", "Zürich", "東京", "One pan")
_FORMS = ("in 30 seconds", "explained", "live", "but slower", "for beginners", "part 2", "(official)", "unboxed")

# Untidy on purpose: silver lower-cases and trims.
_OPERATING_SYSTEMS = ("iOS", "ios", "Android", "android ", "Web")
_OS_VERSIONS = ("14", "15", "16.1", "17.2", "17.5.1")
_APP_VERSIONS = ("5.0.3", "5.1.0", "5.1.1", "5.2.0")
_MODELS = ("iPhone 15", "iPhone SE", "Pixel 8", " Pixel 8", "Galaxy S24", "Redmi Note 13", "Chrome")
_LOCALES = ("en-US", "en-GB", "de-DE", "es-MX", "fr-FR", "hi-IN", "ja-JP", "pt-BR", None)
_COUNTRIES = ("US", "GB", "DE", "MX", "FR", "IN", "JP", "BR", "us ", None)


class _Stream(IntEnum):
    """One stream of draws per attribute."""

    EMAIL = auto()
    IP = auto()
    DEVICE = auto()
    OS = auto()
    OS_VERSION = auto()
    APP_VERSION = auto()
    MODEL = auto()
    LOCALE = auto()
    COUNTRY = auto()
    AUTHOR = auto()
    CATEGORY = auto()
    LANGUAGE = auto()
    DURATION = auto()
    SUBJECT = auto()
    FORM = auto()
    PUBLISHED = auto()


class Users:
    """Columns of n users, one entry per user: `id`, `email`, `ip`, `country` and the `device` fields by name."""

    def __init__(self, count: int) -> None:
        numbers = np.arange(count)
        self.count = count
        self.id = decimal_ids(numbers, "u", 6)
        addresses = pc.binary_join_element_wise(self.id, "@example.com", "")
        self.email = pc.if_else(pa.array(uniform(_Stream.EMAIL, numbers) < 0.8), addresses, None)
        self.ip = _ip_addresses(numbers)
        self.country = choose(_Stream.COUNTRY, numbers, _COUNTRIES)
        self.device = {
            "device_id": hex_ids(_Stream.DEVICE, numbers, "d-", 16),
            "os": choose(_Stream.OS, numbers, _OPERATING_SYSTEMS),
            "os_version": choose(_Stream.OS_VERSION, numbers, _OS_VERSIONS),
            "app_version": choose(_Stream.APP_VERSION, numbers, _APP_VERSIONS),
            "model": choose(_Stream.MODEL, numbers, _MODELS),
            "locale": choose(_Stream.LOCALE, numbers, _LOCALES),
        }


class Videos:
    """Columns of n videos: `id`, and `duration_ms` int64[n]."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._numbers = np.arange(count)
        self.id = decimal_ids(self._numbers, "v", 5)
        # Most videos are short: the square of a uniform draw leans to the low end.
        spread = uniform(_Stream.DURATION, self._numbers) ** 2 * (_LONGEST_MS - _SHORTEST_MS)
        self.duration_ms: I64 = (_SHORTEST_MS + spread).astype(np.int64)

    def table(self) -> pa.Table:
        """The reference table: one row per video."""
        seconds = integers(_Stream.PUBLISHED, self._numbers, 0, _PUBLISHING_SECONDS)
        published = np.datetime64(_FIRST_PUBLISHED.replace(tzinfo=None), "s") + seconds
        subject, form = choose(_Stream.SUBJECT, self._numbers, _SUBJECTS), choose(_Stream.FORM, self._numbers, _FORMS)
        return pa.table(
            {
                "video_id": self.id,
                "author_id": decimal_ids(integers(_Stream.AUTHOR, self._numbers, 0, _AUTHORS - 1), "a", 4),
                "category": choose(_Stream.CATEGORY, self._numbers, _CATEGORIES),
                "language": choose(_Stream.LANGUAGE, self._numbers, _LANGUAGES),
                "duration_ms": self.duration_ms,
                "title": pc.binary_join_element_wise(subject, form, " "),
                "published_at": pa.array(np.datetime_as_string(published, timezone="UTC"), pa.string()),
            }
        )

    def write_csv(self, path: Path) -> None:
        """Writes the reference table; the parent folder is made if need be. No value needs quotes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.csv.write_csv(self.table(), path, pyarrow.csv.WriteOptions(quoting_style="none"))


def _ip_addresses(numbers: I64) -> pa.StringArray:
    """Addresses from the ranges reserved for documentation (RFC 5737, RFC 3849); a few users have none."""
    host = decimal_ids(integers(_Stream.IP, numbers, 100, 250), "", 3)
    kind = pa.array(uniform(_Stream.IP + 1_000, numbers))
    v4 = pc.binary_join_element_wise("203.0.113.", host, "")
    v6 = pc.binary_join_element_wise("2001:db8::", host, "")
    return pc.if_else(pc.less(kind, 0.7), v4, pc.if_else(pc.less(kind, 0.95), v6, None))
