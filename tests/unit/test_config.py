"""Settings: the order of the four places, where each value is from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config import Settings, load_settings
from common.errors import ConfigError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_defaults_alone_need_no_file_and_no_environment() -> None:
    settings = load_settings({}, environment={})
    assert settings == Settings()
    assert {source for _, _, source in settings.rows()} == {"default"}


def test_flag_beats_environment_beats_file_beats_default(empty_folder: Path) -> None:
    (empty_folder / "pipelines.yaml").write_text("topic: in_file\nbuckets: 4\nredis_url: redis://file\n")
    environment = {"PIPELINES_TOPIC": "in_environment", "PIPELINES_BUCKETS": "8"}

    settings = load_settings({"topic": "in_flag", "warehouse": None}, environment)

    assert (settings.topic, settings.buckets, settings.redis_url) == ("in_flag", 8, "redis://file")
    assert settings.warehouse == ""
    assert {name: source for name, _, source in settings.rows() if source != "default"} == {
        "topic": "flag --topic",
        "buckets": "environment PIPELINES_BUCKETS",
        "redis_url": "file pipelines.yaml",
    }


def test_a_flag_that_was_not_given_does_not_hide_the_environment() -> None:
    settings = load_settings({"bootstrap_servers": None}, {"PIPELINES_BOOTSTRAP_SERVERS": "broker:9092"})
    assert settings.bootstrap_servers == "broker:9092"
    assert settings.missing_services == ("registry", "valkey")


def test_the_file_can_be_named(empty_folder: Path) -> None:
    (empty_folder / "pipelines.yaml").write_text("topic: not_this_one")
    (empty_folder / "production.yaml").write_text("topic: this_one\nstate_dir: ~/state")
    settings = load_settings({}, {"PIPELINES_CONFIG": "production.yaml"})
    assert settings.topic == "this_one"
    assert settings.state_dir == Path.home() / "state"
    assert settings.sources["topic"] == "file production.yaml"


def test_a_named_file_must_be_there() -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml cannot be read"):
        load_settings({}, {"PIPELINES_CONFIG": "absent.yaml"})


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("bukets: 4", "no setting 'bukets'; did you mean 'buckets'"),
        ("sasl_password: hunter2", "no setting 'sasl_password'"),
        ("buckets: many", "buckets must be a whole number, not 'many'"),
        ("- topic", "must hold `setting: value` lines"),
        ("topic: [", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_place(
    empty_folder: Path, document: str, message: str
) -> None:
    (empty_folder / "pipelines.yaml").write_text(document)
    with pytest.raises(ConfigError, match="pipelines.yaml") as raised:
        load_settings({}, {})
    assert message in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_an_empty_file_sets_nothing(empty_folder: Path) -> None:
    (empty_folder / "pipelines.yaml").write_text("# nothing yet\n")
    assert load_settings({}, {}) == Settings()


def test_a_number_from_the_environment_must_be_one() -> None:
    with pytest.raises(ConfigError, match="environment PIPELINES_PARALLELISM: parallelism must be a whole number"):
        load_settings({}, {"PIPELINES_PARALLELISM": "all"})


def test_secrets_are_no_settings() -> None:
    """They are read where they are used, so that nothing that prints settings can show them."""
    secret = {"PIPELINES_PII_KEY": "k3y", "PIPELINES_REDIS_PASSWORD": "pa55", "PIPELINES_KAFKA_SASL_PASSWORD": "w0rd"}
    settings = load_settings({}, secret)
    assert not any(value in repr(settings) + repr(settings.rows()) for value in secret.values())


def test_what_is_found_later_is_noted_with_its_source() -> None:
    before = load_settings({"topic": "t"}, {})
    after = before.with_values("embedded service", bootstrap_servers="127.0.0.1:9092")
    assert after.bootstrap_servers == "127.0.0.1:9092"
    assert after.sources == {"topic": "flag --topic", "bootstrap_servers": "embedded service"}
    assert before.bootstrap_servers == ""  # frozen


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        ({}, ("kafka", "registry", "valkey")),
        ({"redis_url": "redis://cache"}, ("kafka", "registry")),
        ({"bootstrap_servers": "b:1", "registry_url": "http://r", "redis_url": "redis://c"}, ()),
    ],
)
def test_a_service_without_an_address_is_embedded(flags: dict[str, str], missing: tuple[str, ...]) -> None:
    assert load_settings(flags, {}).missing_services == missing


def test_the_key_file_is_below_the_state_folder_unless_it_is_named() -> None:
    assert load_settings({"state_dir": "s"}, {}).key_file == Path("s/secrets/pii.key")
    assert load_settings({"pii_key_file": "/run/secrets/key"}, {}).key_file == Path("/run/secrets/key")
