"""Sources for the tests of fetching: good and bad servers on loopback, and one wheel's worth of bytes."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
from typing import TYPE_CHECKING, Any, Self

from werkzeug import Request, Response

from envbuilder.store.cache import Store, Wanted
from envbuilder.store.settings import Place, Settings

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_httpserver import HTTPServer

NAME = "thing-1.0-py3-none-any.whl"
PAYLOAD = random.Random(1).randbytes(700_000)
SHA = hashlib.sha256(PAYLOAD).hexdigest()
WANTED = Wanted(project="thing", filename=NAME, sha256=SHA, size=len(PAYLOAD))
CLOSED = "http://127.0.0.1:9/simple"  # the discard port: nobody listens


def place(location: str) -> Place:
    return Place(location=location, setting="a test")


def index(*locations: str, links: tuple[str, ...] = ()) -> Settings:
    return Settings(indexes=tuple(map(place, locations)), find_links=tuple(map(place, links)), default_index=False)


def page(server: HTTPServer, name: str = NAME, sha256: str | None = SHA, project: str = "thing", folder: str = "") -> str:
    """Serve a project's page (PEP 503) and return the index's address."""
    fragment = f"#sha256={sha256}" if sha256 else ""
    html = f'<!DOCTYPE html><html><body><a href="/files{folder}/{name}{fragment}">{name}</a></body></html>'
    server.expect_request(f"{folder}/simple/{project}/").respond_with_data(html, content_type="text/html")
    return server.url_for(f"{folder}/simple")


class Files:
    """A file server that can break off, and counts what it was asked."""

    def __init__(self, payload: bytes = PAYLOAD) -> None:
        self.payload = payload
        self.asked: list[str | None] = []
        self.statuses: list[int] = []
        self.ranges = True

    def __call__(self, request: Request) -> Response:
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        if self.statuses:
            return Response("no", status=self.statuses.pop(0))
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.payload):
                return Response(status=416)
            return Response(self.payload[start:], status=206, headers={"Content-Range": f"bytes {start}-/{len(self.payload)}"})
        return Response(self.payload)


def partial(store: Store, payload: bytes) -> Path:
    """What an interrupted download left."""
    path = store.root / "partial" / SHA
    path.parent.mkdir(parents=True)
    path.write_bytes(payload)
    return path


def held(store: Store) -> bytes:
    return store.path(SHA, NAME).read_bytes()


def listing(folder: Path, address: str) -> str:
    path = folder / "listing.html"
    path.write_text(f'<a href="{address}/{NAME}">{NAME}</a>')
    return str(path)


class Breaking:
    """A server on a bare socket that closes the connection after `cut` bytes of its answer, the first `times` times."""

    def __init__(self, payload: bytes, *, cut: int, times: int) -> None:
        self.payload, self.cut, self.times = payload, cut, times
        self.ranges: list[str | None] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.thread.join(timeout=5)
        self.socket.close()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                self.answer(connection)

    def answer(self, connection: Any) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (more := connection.recv(4096)):
                return
            head += more
        wanted = next((line[7:] for line in head.decode().split("\r\n") if line.startswith("Range: ")), None)
        self.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        rest = self.payload[start:]
        status = "206 Partial Content" if wanted else "200 OK"
        connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(rest)}\r\nConnection: close\r\n\r\n".encode())
        cut = self.cut if len(self.ranges) <= self.times else len(rest)
        connection.sendall(rest[:cut])


def many(count: int) -> list[Wanted]:
    return [
        Wanted(
            project=f"p{number}", filename=f"p{number}-1-py3-none-any.whl", sha256=hashlib.sha256(str(number).encode()).hexdigest(), size=1
        )
        for number in range(count)
    ]
