"""Schemas by id, from a registry that speaks Confluent's API."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from common.errors import PipelineError

_TIMEOUT_SECONDS = 10
# The client itself waits 1, 2, 4 ... seconds between tries when the registry answers 5xx or not at all.
_RETRIES = 3

T = TypeVar("T")


class RegistryError(PipelineError):
    """The registry cannot be reached, or refuses."""


class UnknownSchemaId(PipelineError):  # noqa: N818  it reads as the fact it states
    """No schema has this id: the message was not written with this registry."""

    def __init__(self, schema_id: int, url: str) -> None:
        super().__init__(f"the schema registry at {url} has no schema with id {schema_id}", code="unknown_schema_id")
        self.schema_id = schema_id


class Registry:
    """A registry's schemas. An id's schema never changes, so each is asked for once.

    Picklable: it travels as its URL, and connects where it is first used.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._client: Any = None
        self._schemas: dict[int, Mapping[str, Any]] = {}

    def __reduce__(self) -> tuple[type[Registry], tuple[str]]:
        return Registry, (self.url,)

    def register(self, subject: str, schema: Mapping[str, Any]) -> int:
        """Registers a version of the subject and gives its id; a known schema keeps its id.

        Raises:
            RegistryError: not reachable, or the schema is not compatible with the subject's versions.
        """
        from confluent_kafka.schema_registry import Schema

        document = Schema(json.dumps(schema), "AVRO")
        schema_id: int = self._ask(lambda client: client.register_schema(subject, document), f"register {subject}")
        self._schemas[schema_id] = schema
        return schema_id

    def schema(self, schema_id: int) -> Mapping[str, Any]:
        """The schema with this id.

        Raises:
            UnknownSchemaId: the registry answers that there is none.
            RegistryError: the registry does not answer; the id may well exist.
        """
        if schema_id not in self._schemas:
            found = self._ask(lambda client: client.get_schema(schema_id), f"read schema {schema_id}", schema_id)
            self._schemas[schema_id] = json.loads(found.schema_str)
        return self._schemas[schema_id]

    def _ask(self, question: Callable[[Any], T], what: str, schema_id: int | None = None) -> T:
        # Imported on use: the import costs ~0.5 s, and most commands never ask.
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        try:
            return question(self._connected())
        except SchemaRegistryError as error:
            if error.http_status_code == 404 and schema_id is not None:
                raise UnknownSchemaId(schema_id, self.url) from None
            raise RegistryError(
                f"the schema registry at {self.url} refuses to {what}: {error.error_message}",
                code="registry_refused",
                hint="compare the schema with the subject's latest version; BACKWARD compatibility needs defaults",
            ) from error
        except OSError as error:
            raise self._unreachable(what) from error
        except Exception as error:
            # The client lets its HTTP library's own exceptions through; they share no base with OSError.
            if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2"):
                raise
            raise self._unreachable(what) from error

    def _unreachable(self, what: str) -> RegistryError:
        return RegistryError(
            f"the schema registry at {self.url} does not answer (asked to {what}, {_RETRIES + 1} times)",
            code="registry_unreachable",
            hint="python -m beam_pipelines doctor",
        )

    def _connected(self) -> Any:
        if self._client is None:
            from confluent_kafka.schema_registry import SchemaRegistryClient

            self._client = SchemaRegistryClient({"url": self.url, "timeout": _TIMEOUT_SECONDS, "max.retries": _RETRIES})
        return self._client
