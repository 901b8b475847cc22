"""Settings: each of the four places outdoes the one before it, and each value knows its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config import Settings, load_settings
from common.errors import ConfigError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_later_place_outdoes_an_earlier_one(empty_folder: Path) -> None:
    (empty_folder / "pipelines.yaml").write_text("topic: of-the-file\nwarehouse: of-the-file\nbuckets: 8\n")
    environment = {"PIPELINES_WAREHOUSE": "of-the-environment", "PIPELINES_BUCKETS": "4"}
    settings = load_settings({"buckets": 2, "repo": None}, environment)
    assert (settings.buckets, settings.warehouse, settings.topic) == (2, "of-the-environment", "of-the-file")
    assert settings.repo == Path("feature_repo")
    sources = {name: source for name, _, source in settings.rows()}
    assert sources["buckets"] == "flag --buckets"
    assert sources["warehouse"] == "environment PIPELINES_WAREHOUSE"
    assert sources["topic"] == "file pipelines.yaml"
    assert sources["repo"] == "default"


def test_without_any_place_there_are_the_defaults() -> None:
    settings = load_settings({}, {})
    assert settings == Settings()
    assert {source for _, _, source in settings.rows()} == {"default"}
    assert settings.missing_services == ("kafka", "registry", "valkey")


@pytest.mark.parametrize(
    ("setting", "left"),
    [
        ("bootstrap_servers", ("registry", "valkey")),
        ("registry_url", ("kafka", "valkey")),
        ("redis_url", ("kafka", "registry")),
    ],
)
def test_a_service_with_an_address_is_not_embedded(setting: str, left: tuple[str, ...]) -> None:
    assert load_settings({setting: "there"}, {}).missing_services == left


def test_the_environment_names_another_file(empty_folder: Path) -> None:
    (empty_folder / "pipelines.yaml").write_text("topic: not-this-one")
    (empty_folder / "other.yaml").write_text("topic: other")
    settings = load_settings({}, {"PIPELINES_CONFIG": "other.yaml"})
    assert (settings.topic, settings.sources["topic"]) == ("other", "file other.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bukets: 8", "did you mean 'buckets'"),
        ("sources: {}", "there is no setting 'sources'"),
        ("buckets: [8]", "buckets must be a whole number"),
        ("- topic", "must hold `setting: value` lines"),
        ("topic: [", "cannot be read"),
    ],
)
def test_a_file_that_is_wrong_is_refused(empty_folder: Path, text: str, message: str) -> None:
    (empty_folder / "pipelines.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")) as caught:
        load_settings({}, {})
    assert "pipelines.yaml" in caught.value.message


def test_an_empty_file_says_nothing(empty_folder: Path) -> None:
    (empty_folder / "pipelines.yaml").write_text("# nothing yet\n")
    assert load_settings({}, {}) == Settings()


def test_a_file_that_is_named_must_exist() -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        load_settings({}, {"PIPELINES_CONFIG": "missing.yaml"})


def test_variables_of_others_are_left_alone() -> None:
    """Secrets have the prefix too, and are no settings."""
    settings = load_settings({}, {"PIPELINES_KAFKA_SASL_PASSWORD": "hunter2", "PIPELINES_PII_KEY": "hunter2"})
    assert settings == Settings()
    assert "hunter2" not in repr(settings)


def test_replaced_values_know_who_replaced_them() -> None:
    settings = load_settings({"topic": "t"}, {}).with_values("embedded", redis_url="redis://here")
    assert settings.sources == {"topic": "flag --topic", "redis_url": "embedded"}
    assert settings.missing_services == ("kafka", "registry")
