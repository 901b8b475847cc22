"""Ports of the loopback interface that are remembered from one start to the next."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Collection, Iterable, Mapping

LOOPBACK = "127.0.0.1"
# Below the ranges from which systems take the ports of outgoing connections (Linux 32768, macOS 49152): a port that is
# remembered while its service is down must not be lost to a passing connection.
PORT_RANGE = range(20_000, 32_000)
# A killed process counts as ended while the last of its threads, and with them its sockets, still are (milliseconds).
PATIENCE_S = 2.0


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


def assign(names: Iterable[str], remembered: Mapping[str, int], taken: Collection[int] = ()) -> dict[str, int]:
    """A port for each of `names`: the remembered one if it is free or soon will be, else a new one not in `taken`."""
    ports: dict[str, int] = {}
    for name in names:
        known = remembered.get(name)
        ports[name] = known if known and _gets_free(known) else _new({*taken, *ports.values()})
    return ports


def _gets_free(port: int) -> bool:
    """Whether `port` is free within `PATIENCE_S`."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_free(port):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def _new(taken: Collection[int]) -> int:
    """A free port at random, so that commands with other state folders seldom draw the same."""
    while (port := random.choice(PORT_RANGE)) in taken or not is_free(port):  # noqa: S311 - not a secret
        pass
    return port


def accepts(port: int) -> bool:
    """Whether somebody listens on `port`."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1):
            return True
    except OSError:
        return False
