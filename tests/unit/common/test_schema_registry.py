"""The registry client against a registry that is a dictionary behind HTTP."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from common import schema_registry
from common.schema_registry import Registry, RegistryError, UnknownSchemaId

SCHEMA = {"type": "record", "name": "R", "fields": [{"name": "a", "type": "long"}]}


class FakeRegistry(ThreadingHTTPServer):
    """Keeps schemas by id; counts the requests it sees."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.schemas: list[str] = []
        self.requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeRegistry

    def do_POST(self) -> None:
        schema = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["schema"]
        if "Refused" in schema:
            self._answer(409, {"error_code": 409, "message": "incompatible"})
            return
        if schema not in self.server.schemas:
            self.server.schemas.append(schema)
        self._answer(200, {"id": self.server.schemas.index(schema) + 1})

    def do_GET(self) -> None:
        schema_id = int(self.path.split("?")[0].rsplit("/", 1)[1])
        if schema_id > len(self.server.schemas):
            self._answer(404, {"error_code": 40403, "message": "Schema not found"})
        else:
            self._answer(200, {"schema": self.server.schemas[schema_id - 1]})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self.server.requests += 1
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    server = FakeRegistry()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_schema_is_registered_once_and_read_once(fake: FakeRegistry) -> None:
    schema_id = Registry(fake.url).register("r-value", SCHEMA)
    assert Registry(fake.url).register("r-value", SCHEMA) == schema_id

    reader = pickle.loads(pickle.dumps(Registry(fake.url)))
    before = fake.requests
    assert [reader.schema(schema_id) for _ in range(3)] == [SCHEMA] * 3
    assert fake.requests == before + 1


def test_an_unknown_id_is_told_from_an_outage(fake: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownSchemaId) as unknown:
        Registry(fake.url).schema(99)
    assert unknown.value.schema_id == 99

    monkeypatch.setattr(schema_registry, "_RETRIES", 0)
    with pytest.raises(RegistryError) as outage:
        Registry("http://127.0.0.1:9").schema(1)
    assert outage.value.code == "registry_unreachable"


def test_a_refused_schema_says_why(fake: FakeRegistry) -> None:
    with pytest.raises(RegistryError, match="refuses to register r-value: incompatible"):
        Registry(fake.url).register("r-value", {**SCHEMA, "name": "Refused"})
