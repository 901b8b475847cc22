"""Ports stay the same from start to start, unless another program has taken one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from common.services.ports import LOOPBACK, PORT_RANGE, accepts, assign, is_free


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java's and Valkey's servers do
        server.bind((LOOPBACK, 0))
        server.listen()
        yield server


def test_new_ports_are_free_and_distinct() -> None:
    ports = assign("abcdefgh", {})
    assert len(set(ports.values())) == 8
    assert all(port in PORT_RANGE and is_free(port) for port in ports.values())


def test_remembered_ports_are_kept() -> None:
    ports = assign(["a", "b"], {})
    assert assign(["a", "b"], ports, taken=ports.values()) == ports


def test_a_port_that_another_program_took_is_replaced(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.services.ports.PATIENCE_S", 0.05)
    taken = listener.getsockname()[1]
    ports = assign(["a"], {"a": taken})
    assert ports["a"] != taken
    assert is_free(ports["a"])


def test_a_port_that_is_about_to_be_free_is_awaited(listener: socket.socket) -> None:
    timer = threading.Timer(0.1, listener.close)
    timer.start()
    port = listener.getsockname()[1]
    assert assign(["a"], {"a": port}) == {"a": port}
    timer.join()


def test_ports_of_other_services_are_not_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter([20_001, 20_001, 20_002])
    monkeypatch.setattr("random.choice", lambda _: next(draws))
    assert assign(["a"], {}, taken=[20_001]) == {"a": 20_002}


def test_a_port_that_has_just_been_used_is_free_again(listener: socket.socket) -> None:
    """Connections in TIME_WAIT must not cost a restarted service its port."""
    address = listener.getsockname()
    with socket.create_connection(address):
        connection, _ = listener.accept()
        connection.close()  # the server's end closes first: it is the one that waits
    assert accepts(address[1])
    listener.close()
    assert not accepts(address[1])
    assert is_free(address[1])
