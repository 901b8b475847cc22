"""Kafka settings to librdkafka configuration; the password never shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka import Producer

from common.errors import ConfigError
from common.kafka_config import PASSWORD_FILE_VARIABLE, PASSWORD_VARIABLE, kafka_config


@dataclass(frozen=True)
class Settings:
    bootstrap_servers: str = "127.0.0.1:9092"
    security_protocol: str = "plaintext"
    sasl_mechanism: str | None = None
    sasl_username: str | None = None
    ssl_ca_location: str | None = None


SASL = Settings("broker:9093", "SASL_SSL", "SCRAM-SHA-512", "ada", "/etc/ca.pem")


@pytest.fixture(autouse=True)
def no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    monkeypatch.delenv(PASSWORD_FILE_VARIABLE, raising=False)


def test_plain() -> None:
    assert kafka_config(Settings()) == {"bootstrap.servers": "127.0.0.1:9092", "security.protocol": "plaintext"}


def test_sasl_over_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "s3cret")
    config = kafka_config(SASL)
    assert config == {
        "bootstrap.servers": "broker:9093",
        "security.protocol": "sasl_ssl",
        "ssl.ca.location": "/etc/ca.pem",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "ada",
        "sasl.password": "s3cret",
    }
    assert "s3cret" not in f"{config} {config!r}"


def test_the_client_gets_the_real_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "s3cret")
    password = kafka_config(SASL)["sasl.password"]
    assert str.encode(password) == b"s3cret"
    plain = Settings("127.0.0.1:1", "sasl_plaintext", "PLAIN", "ada")
    Producer(kafka_config(plain))  # accepts it as a string


def test_password_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("from file\n")
    monkeypatch.setenv(PASSWORD_FILE_VARIABLE, str(tmp_path / "password"))
    assert kafka_config(SASL)["sasl.password"] == "from file"
    monkeypatch.setenv(PASSWORD_FILE_VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="cannot be read"):
        kafka_config(SASL)


def test_incomplete_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs a password"):
        kafka_config(SASL)
    with pytest.raises(ConfigError, match="needs a user name"):
        kafka_config(Settings(security_protocol="sasl_plaintext"))
    with pytest.raises(ConfigError, match="'tls' is unknown"):
        kafka_config(Settings(security_protocol="tls"))
