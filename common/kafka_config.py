"""Settings to librdkafka configuration, for every producer, consumer and admin client of the project."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from common.errors import ConfigError

PASSWORD_VARIABLE = "PIPELINES_KAFKA_SASL_PASSWORD"  # noqa: S105  the name, not the word
PASSWORD_FILE_VARIABLE = "PIPELINES_KAFKA_SASL_PASSWORD_FILE"  # noqa: S105

_PROTOCOLS = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")


class KafkaSettings(Protocol):
    """The settings that decide how Kafka is reached; common.config.Settings has them."""

    @property
    def bootstrap_servers(self) -> str: ...
    @property
    def security_protocol(self) -> str: ...
    @property
    def sasl_mechanism(self) -> str | None: ...
    @property
    def sasl_username(self) -> str | None: ...
    @property
    def ssl_ca_location(self) -> str | None: ...


class Secret(str):
    """A string that clients can use and that a log, a traceback or a printed dict does not show."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'********'"


def kafka_config(settings: KafkaSettings) -> dict[str, str]:
    """What every client needs: addresses, TLS and SASL.

    The password comes from the environment (PIPELINES_KAFKA_SASL_PASSWORD) or from the file that
    PIPELINES_KAFKA_SASL_PASSWORD_FILE names, at the moment of the call: it is never part of the settings.

    Raises:
        ConfigError: an unknown protocol, or SASL without a user name or password.
    """
    protocol = settings.security_protocol.lower()
    if protocol not in _PROTOCOLS:
        raise ConfigError(
            f"security protocol '{settings.security_protocol}' is unknown",
            code="kafka_security",
            hint=f"use one of {', '.join(_PROTOCOLS)}",
        )
    config = {"bootstrap.servers": settings.bootstrap_servers, "security.protocol": protocol}
    if protocol.endswith("ssl") and settings.ssl_ca_location:
        config["ssl.ca.location"] = settings.ssl_ca_location
    if protocol.startswith("sasl"):
        if not settings.sasl_username:
            raise ConfigError("SASL needs a user name", code="kafka_security", hint="set PIPELINES_SASL_USERNAME")
        config["sasl.mechanism"] = settings.sasl_mechanism or "PLAIN"
        config["sasl.username"] = settings.sasl_username
        config["sasl.password"] = _password()
    return config


def _password() -> Secret:
    if password := os.environ.get(PASSWORD_VARIABLE):
        return Secret(password)
    if path := os.environ.get(PASSWORD_FILE_VARIABLE):
        try:
            return Secret(Path(path).read_text().rstrip("\r\n"))
        except OSError as error:
            raise ConfigError(
                f"the password file named by {PASSWORD_FILE_VARIABLE} cannot be read: {error.strerror}",
                code="kafka_security",
            ) from None
    raise ConfigError(
        "SASL needs a password", code="kafka_security", hint=f"export {PASSWORD_VARIABLE} or {PASSWORD_FILE_VARIABLE}"
    )
