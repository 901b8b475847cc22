"""Opening Feast's store of a domain, registering the domain's views, reading features back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import urlsplit

import yaml
from feast import FeatureStore, RepoConfig

from beam_pipelines.serving.declarations import declare, service_name
from common.domain import Domain
from common.errors import PipelineError
from common.online.feast_redis import PASSWORD_VARIABLE

REGISTRY_VARIABLE, REDIS_VARIABLE = "PIPELINES_FEAST_REGISTRY", "PIPELINES_FEAST_REDIS"


def open_store(domain: Domain, *, registry: Path, redis_url: str) -> FeatureStore:
    """The feature store that `<repo>/feature_store.yaml` describes, with its registry file and Redis filled in.

    Raises PipelineError `feast_project` if the two files of the repo disagree on the project.
    """
    registry.parent.mkdir(parents=True, exist_ok=True)
    values = {REGISTRY_VARIABLE: str(registry.absolute()), REDIS_VARIABLE: connection_string(redis_url)}
    document = yaml.safe_load((domain.repo / "feature_store.yaml").read_text())
    if document["project"] != domain.name:
        raise PipelineError(
            f"feature_store.yaml of {domain.repo} serves project {document['project']}, its domain is {domain.name}.",
            code="feast_project",
            hint=f"Set `project: {domain.name}` in feature_store.yaml: online rows are stored under that name.",
        )
    config = RepoConfig(**_substitute(document, values))
    config.repo_path = domain.repo
    return FeatureStore(config=config)


def connection_string(redis_url: str) -> str:
    """`redis[s]://[user@]host:port/db` -> Feast's `host:port,db=…`, with the password from the environment."""
    url = urlsplit(redis_url)
    parts = [f"{url.hostname}:{url.port or 6379}", f"db={url.path.strip('/') or 0}"]
    if url.scheme == "rediss":
        parts.append("ssl=true")
    if url.username:
        parts.append(f"username={url.username}")
    if password := os.environ.get(PASSWORD_VARIABLE):
        parts.append(f"password={password}")
    return ",".join(parts)


def apply(store: FeatureStore, domain: Domain, warehouse: str) -> None:
    """Registers the domain's entities, views and service. Idempotent."""
    store.apply(declare(domain, warehouse).objects())


def read_online(
    store: FeatureStore, domain: Domain, entity_rows: Sequence[Mapping[str, Any]], view: str | None = None
) -> list[dict[str, Any]]:
    """The stored features of each entity row: of one view (`feature`), or of the domain's service (`view__feature`).

    An entity row has the key of every entity asked for: `{"user_id": "u1"}`. Features of unknown entities are None.
    """
    if view is None:
        features: Any = store.get_feature_service(service_name(domain))
    else:
        features = [f"{view}:{name}" for name in domain.view(view).schema().names]
    response = store.get_online_features(
        features=features, entity_rows=[dict(row) for row in entity_rows], full_feature_names=view is None
    )
    columns = response.to_dict()
    return [{name: values[i] for name, values in columns.items()} for i in range(len(entity_rows))]


def _substitute(node: Any, values: Mapping[str, str]) -> Any:
    """Fills `${NAME}` in the strings of a parsed document: after parsing, so that no value can break the YAML."""
    if isinstance(node, dict):
        return {key: _substitute(value, values) for key, value in node.items()}
    return Template(node).substitute(values) if isinstance(node, str) else node
