"""Google Cloud Storage's JSON API, the few calls that checkpoints make, from its documentation. A program too.

Objects have generations; `ifGenerationMatch=0` means "only if absent", and of racing writers one wins; a checksum that
the client sends is checked. `fail(...)` makes calls fail as the real service does, before or after they took effect.
https://cloud.google.com/storage/docs/json_api/v1/objects
"""

from __future__ import annotations

import base64
import email
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

OBJECTS = re.compile(r"/(?:download/|upload/)?storage/v1/b/(?P<bucket>[^/]+)/o(?:/(?P<name>[^?]+))?$")
Rule = Callable[[str, str], int | None]  # (method, path) -> a status to answer with instead


@dataclass
class Object:
    """A live object."""

    data: bytes
    generation: int
    metadata: dict[str, str]

    @property
    def crc32c(self) -> str:
        return base64.b64encode(int(google_crc32c.value(self.data)).to_bytes(4, "big")).decode()


@dataclass
class Buckets:
    """The server's state; `calls` counts requests by method."""

    objects: dict[str, dict[str, Object]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    generation: int = 1_000
    uploads: dict[str, tuple[dict[str, Any], dict[str, list[str]], bytes]] = field(default_factory=dict)
    before: Rule = lambda method, path: None
    after: Rule = lambda method, path: None
    calls: list[tuple[str, str]] = field(default_factory=list)


class _Refused(Exception):  # noqa: N818  it is an answer
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    buckets: Buckets

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _serve(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.buckets.calls.append((self.command, unquote(url.path)))
        try:
            if status := self.buckets.before(self.command, unquote(url.path)):
                raise _Refused(status, "as told")
            found = OBJECTS.match(url.path)
            if found is None:
                raise _Refused(404, f"no such call: {url.path}")
            answer = self._answer(found, parse_qs(url.query), body)
            if status := self.buckets.after(self.command, unquote(url.path)):
                raise _Refused(status, "as told, when it was done")
        except _Refused as refused:
            error = {"error": {"code": refused.status, "message": str(refused), "errors": []}}
            answer = (refused.status, json.dumps(error).encode(), {"Content-Type": "application/json"})
        status, data, headers = answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _answer(self, found: re.Match[str], query: dict[str, list[str]], body: bytes) -> tuple[int, bytes, Any]:
        with self.buckets.lock:
            objects = self.buckets.objects.get(unquote(found["bucket"]))
            if objects is None:
                raise _Refused(404, "The specified bucket does not exist.")
            name = unquote(found["name"]) if found["name"] else None
            if self.command in ("POST", "PUT"):
                return self._upload(objects, query, body)
            if name is None:
                return self._list(objects, query)
            if name not in objects:
                raise _Refused(404, f"No such object: {name}")
            if self.command == "DELETE":
                del objects[name]
                return 204, b"", {}
            if query.get("alt") == ["media"]:
                return self._media(objects[name])
            return self._resource(name, objects[name])

    def _upload(self, objects: dict[str, Object], query: dict[str, list[str]], body: bytes) -> tuple[int, bytes, Any]:
        uploads = self.buckets.uploads
        kind = query["uploadType"][0]
        if kind == "multipart":
            head = b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n"
            message: Any = email.message_from_bytes(head + body)
            fields, data = (part.get_payload(decode=True) for part in message.get_payload())
            return self._create(objects, json.loads(fields), query, data)
        assert kind == "resumable", kind
        if self.command == "POST":
            upload_id = str(len(uploads))
            uploads[upload_id] = (json.loads(body), query, b"")
            where = f"http://{self.headers['Host']}{self.path}&upload_id={upload_id}"
            return 200, b"", {"Location": where}
        upload_id = query["upload_id"][0]
        fields, first_query, data = uploads[upload_id]
        data += body
        uploads[upload_id] = (fields, first_query, data)
        total = self.headers["Content-Range"].rpartition("/")[2]
        if total == "*" or len(data) < int(total):
            return 308, b"", {"Range": f"bytes=0-{len(data) - 1}"}
        return self._create(objects, fields, first_query, data)

    def _create(
        self, objects: dict[str, Object], fields: dict[str, Any], query: dict[str, list[str]], data: bytes
    ) -> tuple[int, bytes, Any]:
        name = fields.get("name") or query["name"][0]
        wanted = query.get("ifGenerationMatch")
        here = objects[name].generation if name in objects else 0
        if wanted is not None and int(wanted[0]) != here:
            raise _Refused(412, "At least one of the pre-conditions you specified did not hold.")
        self.buckets.generation += 1
        made = Object(data, self.buckets.generation, fields.get("metadata") or {})
        if fields.get("crc32c", made.crc32c) != made.crc32c:
            raise _Refused(400, "Provided CRC32C does not match the calculated one.")
        objects[name] = made
        return self._resource(name, made)

    def _resource(self, name: str, found: Object) -> tuple[int, bytes, Any]:
        resource = {
            "kind": "storage#object",
            "name": name,
            "generation": str(found.generation),
            "size": str(len(found.data)),
            "crc32c": found.crc32c,
            "metadata": found.metadata,
        }
        return 200, json.dumps(resource).encode(), {"Content-Type": "application/json"}

    def _media(self, found: Object) -> tuple[int, bytes, Any]:
        headers = {"X-Goog-Hash": f"crc32c={found.crc32c}", "X-Goog-Generation": str(found.generation)}
        asked = re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range") or "")
        if asked is None:
            return 200, found.data, headers
        start, end = int(asked[1]), int(asked[2] or len(found.data) - 1)
        if start >= len(found.data):
            raise _Refused(416, "The requested range cannot be satisfied.")
        part = found.data[start : end + 1]
        whole = {**headers, "Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(found.data)}"}
        return 206, part, whole

    def _list(self, objects: dict[str, Object], query: dict[str, list[str]]) -> tuple[int, bytes, Any]:
        """Pages of two, so that a client that reads the first page only is found out."""
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [None])[0]
        after = query.get("pageToken", [""])[0]
        names = [
            name
            for name in sorted(objects)
            if name.startswith(prefix) and not (delimiter and delimiter in name[len(prefix) :]) and name > after
        ]
        page = {"kind": "storage#objects", "items": [{"name": name} for name in names[:2]]}
        if len(names) > 2:
            page["nextPageToken"] = names[1]
        return 200, json.dumps(page).encode(), {"Content-Type": "application/json"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that was killed is no error of ours."""


@contextmanager
def running(*buckets: str, port: int = 0) -> Iterator[tuple[str, Buckets]]:
    """-> (what STORAGE_EMULATOR_HOST has to be, the server's state)."""
    state = Buckets({bucket: {} for bucket in buckets})
    handler = type("Handler", (_Handler,), {"buckets": state})
    server = _Server(("127.0.0.1", port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", state
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    with running(*sys.argv[2:], port=int(sys.argv[1])) as (address, _):
        print(address, flush=True)
        threading.Event().wait()
