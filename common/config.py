"""Settings: default < file < environment < flag. One frozen object, and every value knows where it came from."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml

from common.errors import ConfigError

CONFIG_FILE = "pipelines.yaml"
ENVIRONMENT_PREFIX = "PIPELINES_"


@dataclass(frozen=True)
class Settings:
    """What the commands need to know. An empty address means: the embedded service."""

    state_dir: Path = Path(".pipelines")  # services' data, checkpoints, warehouses, secrets
    repo: Path = Path("feature_repo")  # the domain
    topic: str = ""  # empty: the domain's
    bootstrap_servers: str = ""
    registry_url: str = ""
    redis_url: str = ""  # without a password: that one is read from PIPELINES_REDIS_PASSWORD
    warehouse: str = ""  # path, s3://… or gs://…; empty: below the state folder
    checkpoint: str = ""  # empty: below the state folder
    buckets: int = 16  # spread of keyed state; fixed for the life of a checkpoint
    parallelism: int = 0  # tasks per level; 0: the number of cores
    pii_key_file: Path | None = None  # empty: below the state folder
    security_protocol: str = "plaintext"  # plaintext, ssl, sasl_plaintext, sasl_ssl
    sasl_mechanism: str | None = None
    sasl_username: str | None = None
    ssl_ca_location: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)  # setting -> where its value is from

    @property
    def missing_services(self) -> tuple[str, ...]:
        """The services that have no address and so run embedded."""
        addresses = {"kafka": self.bootstrap_servers, "registry": self.registry_url, "valkey": self.redis_url}
        return tuple(name for name, address in addresses.items() if not address)

    @property
    def key_file(self) -> Path:
        return self.pii_key_file or self.state_dir / "secrets" / "pii.key"

    def warehouse_of(self, mode: str) -> str:
        """Where the tables of a mode (stream, batch) are."""
        return self.warehouse or str((self.state_dir / "warehouse" / mode).absolute())

    def checkpoint_of(self, mode: str) -> str:
        return self.checkpoint or str((self.state_dir / "checkpoints" / mode).absolute())

    def with_values(self, source: str, **values: Any) -> Settings:
        """A copy with some values replaced, and `source` noted as where they are from."""
        return replace(self, **values, sources={**self.sources, **dict.fromkeys(values, source)})

    def rows(self) -> list[tuple[str, str, str]]:
        """(setting, value, source) of every setting, for people to read: an address without its credentials."""
        return [
            (name, "" if value is None else without_credentials(str(value)), self.sources.get(name, "default"))
            for name, value in ((f.name, getattr(self, f.name)) for f in fields(self) if f.name != "sources")
        ]


def without_credentials(address: str) -> str:
    """A URL without its user, password and query; anything else as it is.

    >>> without_credentials("https://key:secret@registry.example:443/v1?token=x"), without_credentials("/home/a@b")
    ('https://registry.example:443/v1', '/home/a@b')
    """
    if "://" not in address:
        return address
    url = urlsplit(address)
    return urlunsplit((url.scheme, url.netloc.rpartition("@")[2], url.path, "", ""))


def load_settings(flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from all four places; a flag that is None was not given.

    The file is the one named by PIPELINES_CONFIG, else ./pipelines.yaml if it exists.
    Raises ConfigError for an unknown key (with a suggestion) or a value of the wrong type.
    """
    known = {f.name: f for f in fields(Settings) if f.name != "sources"}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def add(name: str, value: Any, source: str) -> None:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise ConfigError(
                f"{source}: there is no setting '{name}'" + (f"; did you mean '{close[0]}'?" if close else ""),
                code="unknown_setting",
                hint="python -m beam_pipelines config",
            )
        values[name], sources[name] = _typed(name, str(known[name].type), value, source), source

    for name, value in _file_values(environment).items():
        add(name, value, f"file {environment.get('PIPELINES_CONFIG', CONFIG_FILE)}")
    for name in known:
        if (value := environment.get(ENVIRONMENT_PREFIX + name.upper())) is not None:
            add(name, value, f"environment {ENVIRONMENT_PREFIX}{name.upper()}")
    for name, value in flags.items():
        if value is not None:
            add(name, value, f"flag --{name.replace('_', '-')}")
    _check(values, sources)
    return Settings(**values, sources=sources)


def _check(values: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    """What would fail only after services have started, or leak."""

    def refuse(name: str, why: str, hint: str) -> None:
        raise ConfigError(f"{sources[name]}: {name} {why}", code="bad_setting", hint=hint)

    for name, least in (("buckets", 1), ("parallelism", 0)):
        if values.get(name, least) < least:
            refuse(name, f"must be {least} or more", f"--{name} {max(least, 2)}")
    if "://" in (checkpoint := values.get("checkpoint", "")) and not checkpoint.startswith("gs://"):
        refuse("checkpoint", "must be a folder on a local or shared file system, or gs://bucket/path", _CHECKPOINT_HINT)
    for name in ("registry_url", "redis_url"):
        if urlsplit(values.get(name, "")).password is not None:
            refuse(name, "must not hold a password: settings are shown and shipped to workers", _PASSWORD_HINT[name])


_CHECKPOINT_HINT = "--checkpoint /mnt/checkpoints/job"
_PASSWORD_HINT = {
    "registry_url": "registries with passwords are not supported yet",
    "redis_url": "export PIPELINES_REDIS_PASSWORD=...",
}


def _file_values(environment: Mapping[str, str]) -> dict[str, Any]:
    named = environment.get("PIPELINES_CONFIG")
    path = Path(named or CONFIG_FILE)
    if not named and not path.exists():
        return {}
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", code="bad_config_file") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must hold `setting: value` lines", code="bad_config_file")
    return {str(name): value for name, value in document.items()}


def _typed(name: str, declared: str, value: Any, source: str) -> Any:
    if "Path" in declared:
        return Path(str(value)).expanduser()
    if declared == "int":
        try:
            return int(value)
        except (TypeError, ValueError):
            raise ConfigError(f"{source}: {name} must be a whole number, not '{value}'", code="bad_setting") from None
    return str(value)
