"""No command prints a secret, wherever it was put and whatever goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli, Outcome

SECRETS = {
    "PIPELINES_KAFKA_SASL_PASSWORD": "kafka-hunter2",
    "PIPELINES_REDIS_PASSWORD": "redis-hunter2",
    "PIPELINES_PII_KEY": "pii-hunter2-0123456789abcdef",
}
COMMANDS = [("config",), ("doctor",), ("status",)]
FORMATS = ["text", "json"]


def assert_no_secret(outcome: Outcome) -> None:
    assert "hunter2" not in outcome.out
    assert "hunter2" not in outcome.err


@pytest.fixture
def secretive(cli: Cli, monkeypatch: pytest.MonkeyPatch, closed_port: int) -> Cli:
    """SASL to a Kafka, and a Redis, that do not answer."""
    settings = {
        "PIPELINES_BOOTSTRAP_SERVERS": f"127.0.0.1:{closed_port}",
        "PIPELINES_REDIS_URL": f"redis://127.0.0.1:{closed_port}",
        "PIPELINES_SECURITY_PROTOCOL": "sasl_plaintext",
        "PIPELINES_SASL_USERNAME": "reader",
    }
    for name, value in (settings | SECRETS).items():
        monkeypatch.setenv(name, value)
    return cli


@pytest.mark.parametrize("output", FORMATS)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_secrets_of_the_environment(secretive: Cli, command: tuple[str, ...], output: str) -> None:
    outcome = secretive(*command, "--output", output)
    assert outcome.code == (1 if command == ("doctor",) else 0)
    assert_no_secret(outcome)


@pytest.mark.parametrize("output", FORMATS)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_credentials_in_addresses(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, closed_port: int, command: tuple[str, ...], output: str
) -> None:
    monkeypatch.setenv("PIPELINES_REGISTRY_URL", f"http://key:hunter2@127.0.0.1:{closed_port}")
    monkeypatch.setenv("PIPELINES_REDIS_URL", f"redis://:hunter2/with@signs@127.0.0.1:{closed_port}/0")
    assert_no_secret(cli(*command, "--output", output))


def test_a_key_that_is_too_short_is_not_quoted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINES_PII_KEY", "hunter2")
    outcome = cli("doctor")
    assert outcome.code == 1
    assert "shorter than" in outcome.out
    assert_no_secret(outcome)


def test_a_password_file_that_is_not_there(secretive: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PIPELINES_KAFKA_SASL_PASSWORD")
    monkeypatch.setenv("PIPELINES_KAFKA_SASL_PASSWORD_FILE", str(tmp_path / "none"))
    outcome = secretive("doctor", "--output", "json")
    [kafka] = [check for check in outcome.document["checks"] if check["name"] == "kafka"]
    assert kafka["state"] == "fail"
    assert "PIPELINES_KAFKA_SASL_PASSWORD_FILE" in kafka["detail"]
    assert_no_secret(outcome)
