"""Ports of the loopback interface that are remembered from one start to the next."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable, Mapping

LOOPBACK = "127.0.0.1"
# Below the ranges from which systems take the ports of outgoing connections (Linux 32768, macOS 49152): a port that is
# remembered while its service is down must not be lost to a passing connection.
PORT_RANGE = range(20_000, 32_000)


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` now."""
    with socket.socket() as probe:
        # As servers do: connections of the last run that linger in TIME_WAIT do not count, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def assign(names: Iterable[str], remembered: Mapping[str, int], taken: Iterable[int] = ()) -> dict[str, int]:
    """A free port for each of `names`: the remembered one if it still is free, else a random one not in `taken`."""
    ports: dict[str, int] = {}
    for name in names:
        port = remembered.get(name, 0)
        while not port or port in ports.values() or not is_free(port):
            port = random.choice(PORT_RANGE)
            if port in taken:
                port = 0
        ports[name] = port
    return ports


def accepts(port: int) -> bool:
    """Whether somebody listens on `port`."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1):
            return True
    except OSError:
        return False
