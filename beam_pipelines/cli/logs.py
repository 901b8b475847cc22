"""Logging of the command line: warnings and worse, on stderr, without the noise of libraries about themselves."""

from __future__ import annotations

import logging
import sys


def set_up() -> None:
    """Called once, before anything heavy is imported."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    handler.addFilter(_is_news)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def _is_news(record: logging.LogRecord) -> bool:
    # Beam warns at import that it was installed without Google's BigQuery client, which nothing here needs.
    return "apitools not found" not in str(record.msg)
