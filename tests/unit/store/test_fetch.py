"""Sources as they are on bad days: real HTTP on loopback, real files, every byte proved."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import socket
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

import pytest
from werkzeug import Request, Response

from envbuilder.console import Console
from envbuilder.errors import FetchError, HashMismatchError, ProgramError, StorageError
from envbuilder.process import Completed
from envbuilder.store import fetch as room
from envbuilder.store.cache import Store, Wanted
from envbuilder.store.fetch import Fetched, fetch
from envbuilder.store.settings import Place, Settings

if TYPE_CHECKING:
    import io
    from collections.abc import Callable
    from pathlib import Path

    from pytest_httpserver import HTTPServer

NAME = "thing-1.0-py3-none-any.whl"
PAYLOAD = random.Random(1).randbytes(700_000)
SHA = hashlib.sha256(PAYLOAD).hexdigest()
WANTED = Wanted(project="thing", filename=NAME, sha256=SHA, size=len(PAYLOAD))
CLOSED = "http://127.0.0.1:9/simple"  # the discard port: nobody listens


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting between attempts is for the real world."""
    real = room.urllib3.Retry
    monkeypatch.setattr(room.urllib3, "Retry", lambda **options: real(**{**options, "backoff_factor": 0}))
    monkeypatch.setattr(room, "_SPARE_BYTES", 0)


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


@pytest.fixture
def files(httpserver: HTTPServer) -> Files:
    served = Files()
    httpserver.expect_request(f"/files/{NAME}").respond_with_handler(served)
    return served


def partial(store: Store, payload: bytes) -> Path:
    """What an interrupted download left."""
    path = store.root / "partial" / SHA
    path.parent.mkdir(parents=True)
    path.write_bytes(payload)
    return path


def held(store: Store) -> bytes:
    return store.path(SHA, NAME).read_bytes()


# -- the good day ------------------------------------------------------------------------------------------------


def test_a_file_comes_in_once_and_is_whole(httpserver: HTTPServer, files: Files, store: Store, console: Console) -> None:
    settings = index(page(httpserver))
    assert fetch([WANTED], store=store, settings=settings, console=console) == Fetched(present=0, added=1, added_bytes=len(PAYLOAD))
    assert held(store) == PAYLOAD
    assert fetch([WANTED], store=store, settings=settings, console=console) == Fetched(present=1, added=0, added_bytes=0)
    assert len(files.asked) == 1
    assert [path.name for path in (store.root / "partial").iterdir()] == [f"{SHA}.lock"]


def test_an_unknown_size_is_no_obstacle(httpserver: HTTPServer, files: Files, store: Store, console: Console) -> None:
    """A lock may not know a file's size; its hash is enough."""
    unknown = Wanted(project="thing", filename=NAME, sha256=SHA)
    assert fetch([unknown], store=store, settings=index(page(httpserver)), console=console).added_bytes == len(PAYLOAD)


def test_an_index_in_json_will_do(httpserver: HTTPServer, files: Files, store: Store, console: Console) -> None:
    """PEP 691, with addresses relative to the page."""
    answer = {
        "meta": {"api-version": "1.1"},
        "name": "thing",
        "versions": ["1.0"],
        "files": [{"filename": NAME, "url": f"../../files/{NAME}", "hashes": {"sha256": SHA}, "size": len(PAYLOAD)}],
    }
    httpserver.expect_request("/simple/thing/").respond_with_json(answer, content_type="application/vnd.pypi.simple.v1+json")
    fetch([WANTED], store=store, settings=index(httpserver.url_for("/simple/")), console=console)
    assert held(store) == PAYLOAD


def test_the_projects_name_is_asked_for_in_its_canonical_form(httpserver: HTTPServer, store: Store, console: Console) -> None:
    name = "Big_Thing-1.0-py3-none-any.whl"
    httpserver.expect_request(f"/files/{name}").respond_with_data(PAYLOAD)
    settings = index(page(httpserver, name, project="big-thing"))
    wanted = Wanted(project="Big.Thing", filename=name, sha256=SHA, size=len(PAYLOAD))
    assert fetch([wanted], store=store, settings=settings, console=console).added == 1


def test_a_redirect_is_followed(httpserver: HTTPServer, files: Files, store: Store, console: Console) -> None:
    """Mirrors send to an object store; the page itself may have moved as well, and its links are relative to the new place."""
    new = page(httpserver)
    httpserver.expect_request("/old/thing/").respond_with_response(Response(status=301, headers={"Location": f"{new}/thing/"}))
    fetch([WANTED], store=store, settings=index(httpserver.url_for("/old")), console=console)
    assert held(store) == PAYLOAD


def test_a_local_version_is_found_under_its_escaped_address(httpserver: HTTPServer, store: Store, console: Console) -> None:
    name = "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"
    html = f'<a href="/files/{name.replace("+", "%2B")}">torch-2.13.0+cpu-cp311-cp3..&gt;</a>'
    httpserver.expect_request("/listing/").respond_with_data(html, content_type="text/html")
    httpserver.expect_request(f"/files/{name}").respond_with_data(PAYLOAD)
    wanted = Wanted(project="torch", filename=name, sha256=SHA, size=len(PAYLOAD))
    settings = index(links=(httpserver.url_for("/listing/"),))
    assert fetch([wanted], store=store, settings=settings, console=console).added == 1, "servers that list a folder shorten long names"


def test_an_indexs_login_goes_to_its_own_files(httpserver: HTTPServer, store: Store, console: Console) -> None:
    """Private indexes name their files by whole addresses, without the login that these need too."""
    logins: list[object] = []

    def served(request: Request) -> Response:
        logins.append(request.authorization and request.authorization.password)
        return Response(PAYLOAD)

    host = httpserver.url_for("").removeprefix("http://").rstrip("/")
    html = f'<a href="http://{host}/files/{NAME}">{NAME}</a>'
    httpserver.expect_request("/simple/thing/").respond_with_data(html, content_type="text/html")
    httpserver.expect_request(f"/files/{NAME}").respond_with_handler(served)
    fetch([WANTED], store=store, settings=index(f"http://me:s3cret@{host}/simple"), console=console)
    assert logins == ["s3cret"]


# -- files of this machine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "file address", "the file itself", "page"])
def test_find_links_may_be_a_folder_a_file_or_a_page(tmp_path: Path, store: Store, console: Console, kind: str) -> None:
    wheels = tmp_path / "my wheels ü"
    wheels.mkdir()
    (wheels / NAME).write_bytes(PAYLOAD)
    (wheels / "page.html").write_text(f'<a href="{NAME}">{NAME}</a>')
    location = {
        "folder": str(wheels),
        "file address": wheels.as_uri(),
        "the file itself": str(wheels / NAME),
        "page": str(wheels / "page.html"),
    }[kind]
    fetch([WANTED], store=store, settings=index(links=(location,)), console=console, offline=True)
    assert held(store) == PAYLOAD


def test_an_index_may_be_a_folder(tmp_path: Path, store: Store, console: Console) -> None:
    folder = tmp_path / "simple" / "thing"
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(PAYLOAD)
    (folder / "index.html").write_text(f'<a href="{NAME}#sha256={SHA.upper()}">{NAME}</a>')
    fetch([WANTED], store=store, settings=index((tmp_path / "simple").as_uri()), console=console, offline=True)
    assert held(store) == PAYLOAD


def test_a_wrong_file_in_a_folder_does_not_hide_the_right_one_elsewhere(tmp_path: Path, store: Store, console: Console) -> None:
    """A rebuilt wheel of the same name in someone's folder is common; it must be passed over, and never installed."""
    for name, payload in (("one", b"other bytes"), ("two", PAYLOAD)):
        (tmp_path / name).mkdir()
        (tmp_path / name / NAME).write_bytes(payload)
    fetch([WANTED], store=store, settings=index(links=(str(tmp_path / "one"), str(tmp_path / "two"))), console=console)
    assert held(store) == PAYLOAD


def test_a_folder_that_is_not_there_is_said(tmp_path: Path, store: Store, console: Console) -> None:
    with pytest.raises(FetchError) as caught:
        fetch([WANTED], store=store, settings=index(links=(str(tmp_path / "none"),)), console=console)
    assert "none: no such folder" in caught.value.why


def test_the_users_file_is_copied_not_moved(tmp_path: Path, store: Store, console: Console) -> None:
    (tmp_path / NAME).write_bytes(PAYLOAD)
    fetch([WANTED], store=store, settings=index(links=(str(tmp_path),)), console=console)
    assert (tmp_path / NAME).read_bytes() == PAYLOAD
    assert not store.path(SHA, NAME).is_symlink()


# -- interrupted and resumed -------------------------------------------------------------------------------------


def test_a_download_goes_on_where_it_broke_off(httpserver: HTTPServer, files: Files, store: Store, console: Console) -> None:
    partial(store, PAYLOAD[:400_000])
    fetch([WANTED], store=store, settings=index(page(httpserver)), console=console)
    assert held(store) == PAYLOAD
    assert files.asked == ["bytes=400000-"]


def test_a_server_that_knows_no_ranges_sends_all_again(httpserver: HTTPServer, files: Files, store: Store, console: Console) -> None:
    """Its 200 must not be added to what is there."""
    files.ranges = False
    partial(store, PAYLOAD[:400_000])
    fetch([WANTED], store=store, settings=index(page(httpserver)), console=console)
    assert held(store) == PAYLOAD


def test_a_whole_file_that_was_not_yet_renamed_is_not_fetched_again(
    httpserver: HTTPServer, files: Files, store: Store, console: Console
) -> None:
    partial(store, PAYLOAD)
    fetch([WANTED], store=store, settings=index(page(httpserver)), console=console)
    assert held(store) == PAYLOAD
    assert files.asked == []


@pytest.mark.parametrize("left", [b"of another source", PAYLOAD[:1000] + b"\0" * 1000, PAYLOAD + b"more"])
def test_what_was_left_and_does_not_belong_is_fetched_anew(
    httpserver: HTTPServer, files: Files, store: Store, console: Console, left: bytes
) -> None:
    """Joined to the rest it has a wrong hash; without a second look that would be called a tampered file."""
    partial(store, left)
    fetch([WANTED], store=store, settings=index(page(httpserver)), console=console)
    assert held(store) == PAYLOAD
    assert files.asked[-1] is None


def test_half_a_file_is_resumed_at_once(store: Store, console: Console, tmp_path: Path) -> None:
    """The connection breaks in the middle, as long downloads do: the next attempt goes on there."""
    with Breaking(PAYLOAD, cut=300_000, times=1) as server:
        fetch([WANTED], store=store, settings=index(links=(listing(tmp_path, server.address),)), console=console)
    assert held(store) == PAYLOAD
    assert server.ranges == [None, f"bytes={room._CHUNK}-"]


def test_half_a_file_time_and_again_is_an_error_that_keeps_what_came(store: Store, console: Console, tmp_path: Path) -> None:
    payload = PAYLOAD + PAYLOAD[::-1]
    wanted = Wanted(project="thing", filename=NAME, sha256=(sha := hashlib.sha256(payload).hexdigest()), size=len(payload))
    with Breaking(payload, cut=300_000, times=99) as server, pytest.raises(FetchError) as caught:
        fetch([wanted], store=store, settings=index(links=(listing(tmp_path, server.address),)), console=console)
    assert "broke off after 1.0 MB of 1.4 MB" in caught.value.why
    assert caught.value.exit_code == 4
    assert (store.root / "partial" / sha).read_bytes() == payload[: 4 * room._CHUNK]
    assert not store.path(sha, NAME).exists()


def test_a_server_from_which_nothing_comes_is_given_up_at_once(store: Store, console: Console, tmp_path: Path) -> None:
    with Breaking(PAYLOAD, cut=10, times=99) as server, pytest.raises(FetchError, match="no source has") as caught:
        fetch([WANTED], store=store, settings=index(links=(listing(tmp_path, server.address),)), console=console)
    assert caught.value.why.endswith(": broke off")
    assert len(server.ranges) == 1


def test_a_server_that_refuses_every_range_ends_the_download_not_the_stack(httpserver: HTTPServer, store: Store, console: Console) -> None:
    httpserver.expect_request(f"/files/{NAME}").respond_with_data(status=416)
    partial(store, PAYLOAD[:10])
    with pytest.raises(FetchError, match="no source has") as caught:
        fetch([WANTED], store=store, settings=index(page(httpserver)), console=console)
    assert "416" in caught.value.why


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


# -- wrong bytes -------------------------------------------------------------------------------------------------


def test_wrong_bytes_are_refused_and_not_kept(httpserver: HTTPServer, files: Files, store: Store, console: Console) -> None:
    files.payload = PAYLOAD[:-1] + b"!"
    with pytest.raises(HashMismatchError, match=f"{NAME} is not the file in the lock") as caught:
        fetch([WANTED], store=store, settings=index(page(httpserver)), console=console)
    assert hashlib.sha256(files.payload).hexdigest() in caught.value.why
    assert SHA in caught.value.why
    assert caught.value.exit_code == 1
    assert not store.path(SHA, NAME).exists()
    assert not (store.root / "partial" / SHA).exists(), "what is wrong must not be resumed"


def test_a_right_name_with_another_declared_hash_is_not_even_fetched(
    httpserver: HTTPServer, files: Files, store: Store, console: Console
) -> None:
    settings = index(page(httpserver, sha256="0" * 64))
    with pytest.raises(HashMismatchError) as caught:
        fetch([WANTED], store=store, settings=settings, console=console)
    assert "sha256:" + "0" * 64 in caught.value.why
    assert files.asked == []


def test_a_stream_without_end_is_cut_off(httpserver: HTTPServer, files: Files, store: Store, console: Console) -> None:
    """A size is locked: a source that sends more cannot fill the disk."""
    files.payload = PAYLOAD + b"\0" * 5_000_000
    with pytest.raises(HashMismatchError) as caught:
        fetch([WANTED], store=store, settings=index(page(httpserver)), console=console)
    assert "it sent 786.4 kB" in caught.value.why


def test_wrong_bytes_of_one_source_do_not_hide_the_right_ones_of_another(httpserver: HTTPServer, store: Store, console: Console) -> None:
    httpserver.expect_request(f"/files/bad/{NAME}").respond_with_data(b"other")
    httpserver.expect_request(f"/files/good/{NAME}").respond_with_data(PAYLOAD)
    settings = index(page(httpserver, folder="/bad", sha256=None), page(httpserver, folder="/good"))
    fetch([WANTED], store=store, settings=settings, console=console)
    assert held(store) == PAYLOAD


# -- sources that fail -------------------------------------------------------------------------------------------


def test_an_index_without_the_project_is_said_and_the_next_one_asked(
    httpserver: HTTPServer, files: Files, store: Store, console: Console
) -> None:
    httpserver.expect_request("/empty/thing/").respond_with_data("", status=404)
    fetch([WANTED], store=store, settings=index(httpserver.url_for("/empty"), page(httpserver)), console=console)
    assert held(store) == PAYLOAD


def test_nobody_has_it(httpserver: HTTPServer, store: Store, console: Console) -> None:
    """The message has the file, its hash, what each source said, and the settings that help."""
    httpserver.expect_request("/simple/thing/").respond_with_data("", status=404)
    with pytest.raises(FetchError, match=f"no source has {NAME}") as caught:
        fetch([WANTED], store=store, settings=index(httpserver.url_for("/simple"), CLOSED), console=console)
    assert f"{NAME} (sha256:{SHA})" in caught.value.why
    assert "/simple: has no such file" in caught.value.why
    assert f"{CLOSED}: cannot be reached (" in caught.value.why
    assert "Connection refused" in caught.value.why
    assert "0x" not in caught.value.why, "the address of an object helps nobody"
    assert "PIP_FIND_LINKS" in caught.value.next
    assert "UV_INDEX" in caught.value.next


def test_no_source_at_all_is_said(store: Store, console: Console) -> None:
    with pytest.raises(FetchError) as caught:
        fetch([WANTED], store=store, settings=index(), console=console)
    assert "no source is configured" in caught.value.why


def test_a_passing_fault_of_the_server_is_waited_out(httpserver: HTTPServer, files: Files, store: Store, console: Console) -> None:
    files.statuses = [503, 500, 429]
    fetch([WANTED], store=store, settings=index(page(httpserver)), console=console)
    assert held(store) == PAYLOAD


def test_a_lasting_fault_is_said_by_its_status(httpserver: HTTPServer, files: Files, store: Store, console: Console) -> None:
    files.statuses = [500] * 50
    with pytest.raises(FetchError) as caught:
        fetch([WANTED], store=store, settings=index(page(httpserver)), console=console)
    assert "answered 500" in caught.value.why
    assert len(files.asked) == 4


def test_a_retry_after_of_an_hour_is_not_waited_for(httpserver: HTTPServer, store: Store, console: Console) -> None:
    httpserver.expect_request("/simple/thing/").respond_with_data("", status=429, headers={"Retry-After": "3600"})
    with pytest.raises(FetchError, match="no source has") as caught:
        fetch([WANTED], store=store, settings=index(httpserver.url_for("/simple")), console=console)
    assert "429" in caught.value.why


NONSENSE = {
    "a login page": ("<html><body><a href='/login'>Log in</a></body></html>", "text/html", "has no such file"),
    "json that is none": ("{", "application/vnd.pypi.simple.v1+json", "did not answer as an index"),
    "json of something else": ('{"a": 1}', "application/vnd.pypi.simple.v1+json", "did not answer as an index"),
    "an image": ("\x89PNG", "image/png", "did not answer as an index"),
    "an index of the future": ('{"meta": {"api-version": "9.0"}, "name": "x", "files": []}', "application/vnd.pypi.simple.v1+json", "9"),
}


@pytest.mark.parametrize("kind", NONSENSE, ids=lambda kind: kind.replace(" ", "-"))
def test_nonsense_from_an_index_is_said_in_one_line(httpserver: HTTPServer, store: Store, console: Console, kind: str) -> None:
    body, content_type, said = NONSENSE[kind]
    httpserver.expect_request("/simple/thing/").respond_with_data(body, content_type=content_type)
    with pytest.raises(FetchError) as caught:
        fetch([WANTED], store=store, settings=index(httpserver.url_for("/simple")), console=console)
    answers = caught.value.why.splitlines()[1:]
    assert len(answers) == 1
    assert said in answers[0]


def many(count: int) -> list[Wanted]:
    return [
        Wanted(
            project=f"p{number}", filename=f"p{number}-1-py3-none-any.whl", sha256=hashlib.sha256(str(number).encode()).hexdigest(), size=1
        )
        for number in range(count)
    ]


def test_a_source_that_is_not_there_is_asked_by_each_worker_at_most_once(
    tmp_path: Path, store: Store, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 files times a timeout would be an hour of waiting for nothing."""
    for number, item in enumerate(many(40)):
        (tmp_path / item.filename).write_text(str(number))
    asked = Counter[str]()
    real = room.offers_of_index

    def counted(source: Place, *rest: Any) -> Any:
        asked[source.location] += 1
        return real(source, *rest)

    monkeypatch.setattr(room, "offers_of_index", counted)
    wanted = [Wanted(project=it.project, filename=it.filename, sha256=it.sha256, size=len(str(n))) for n, it in enumerate(many(40))]
    local = tmp_path / "simple"
    for item in wanted:
        (local / item.project).mkdir(parents=True)
        (local / item.project / "index.html").write_text(f'<a href="../../{item.filename}">{item.filename}</a>')
    fetch(wanted, store=store, settings=index(CLOSED, str(local)), console=console)
    assert asked[CLOSED] <= room._WORKERS
    assert asked[str(local)] == 40


def test_one_barred_project_does_not_condemn_its_index(httpserver: HTTPServer, files: Files, store: Store, console: Console) -> None:
    """Company mirrors answer 403 for what they do not allow, and serve all else."""
    httpserver.expect_request("/simple/aaa/").respond_with_data("barred", status=403)
    settings = index(page(httpserver))
    barred = Wanted(project="aaa", filename="aaa-1-py3-none-any.whl", sha256="0" * 64, size=10**6)
    with pytest.raises(FetchError, match="no source has aaa-1") as caught:
        fetch([barred], store=store, settings=settings, console=console)
    assert "403" in caught.value.why
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_WORKERS", 1)
        with pytest.raises(FetchError, match="no source has aaa-1"):
            fetch([barred, WANTED], store=store, settings=settings, console=console)
    assert held(store) == PAYLOAD


def test_many_missing_files_are_counted_not_listed(store: Store, console: Console) -> None:
    with pytest.raises(FetchError, match="no source has 40 files") as caught:
        fetch(many(40), store=store, settings=index(CLOSED), console=console)
    assert "… and 37 more files" in caught.value.why
    assert len(caught.value.why.splitlines()) == 7


def test_offline_asks_nobody_but_folders(httpserver: HTTPServer, store: Store, console: Console) -> None:
    with pytest.raises(FetchError) as caught:
        fetch([WANTED], store=store, settings=index(page(httpserver)), console=console, offline=True, torch_backend="cpu")
    assert "not asked (--offline)" in caught.value.why
    assert "Run once without --offline" in caught.value.next
    assert httpserver.log == []


def test_a_failed_file_does_not_lose_the_others(httpserver: HTTPServer, files: Files, store: Store, console: Console) -> None:
    httpserver.expect_request("/simple/p0/").respond_with_data("", status=404)
    with pytest.raises(FetchError):
        fetch([*many(1), WANTED], store=store, settings=index(page(httpserver)), console=console)
    assert held(store) == PAYLOAD


def test_no_message_shows_a_password(httpserver: HTTPServer, store: Store, console: Console, said: io.StringIO) -> None:
    host = httpserver.url_for("").removeprefix("http://").rstrip("/")
    places = (f"http://me:s3cret@{host}/simple", "http://me:s3cret@127.0.0.1:9/simple")
    httpserver.expect_request("/simple/thing/").respond_with_data("", status=401)
    with pytest.raises(FetchError) as caught:
        fetch([WANTED], store=store, settings=index(*places), console=console)
    assert "s3cret" not in caught.value.why + caught.value.what + caught.value.next + said.getvalue()
    assert "****@" in caught.value.why


# -- the disk ----------------------------------------------------------------------------------------------------


def test_a_disk_without_room_is_said_before_anything_is_fetched(
    httpserver: HTTPServer, files: Files, store: Store, console: Console
) -> None:
    huge = Wanted(project="thing", filename=NAME, sha256=SHA, size=10**16)
    with pytest.raises(StorageError, match="not enough room") as caught:
        fetch([huge], store=store, settings=index(page(httpserver)), console=console)
    assert "ENVBUILDER_CACHE" in caught.value.next
    assert files.asked == []


def test_a_cache_that_cannot_be_made_is_said(tmp_path: Path, console: Console) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        fetch([WANTED], store=Store(tmp_path / "file" / "cache"), settings=index(CLOSED), console=console)


def test_a_disk_that_fills_in_the_middle_stops_all_workers(
    httpserver: HTTPServer, files: Files, store: Store, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(room._Fetcher, "_write", room.storage_errors(store.root)(full))
    with pytest.raises(StorageError, match="the disk is full"):
        fetch([WANTED, *many(20)], store=store, settings=index(page(httpserver)), console=console)
    assert not store.path(SHA, NAME).exists()


# -- PyTorch's own index, through uv -----------------------------------------------------------------------------


TORCH = "torch-2.13.0+cpu-cp312-cp312-manylinux_2_28_x86_64.whl"


@pytest.fixture
def torch() -> Wanted:
    return Wanted(project="torch", filename=TORCH, sha256=SHA, size=len(PAYLOAD))


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[list[str]]]:
    """Put an answer (PEP 751) in uv's mouth; returns the calls it got."""

    def set_answer(text: str) -> list[list[str]]:
        calls: list[list[str]] = []

        def fake(arguments: list[object], **_: object) -> Completed:
            calls.append([str(argument) for argument in arguments])
            if not text:
                raise ProgramError("x", why="first line\nerror: no network")
            return Completed(stdout=text, seconds=0.1)

        monkeypatch.setattr(room, "run_uv", fake)
        return calls

    return set_answer


def pylock(url: str, sha256: str = SHA) -> str:
    return f"""
lock-version = "1.0"
[[packages]]
name = "torch"
version = "2.13.0+cpu"
wheels = [
  {{ url = "{url.replace("cp312", "cp313")}", hashes = {{ sha256 = "{"1" * 64}" }} }},
  {{ url = "{url}", hashes = {{ sha256 = "{sha256}" }} }},
]
"""


def test_pytorchs_index_is_asked_for_the_right_python_when_nobody_else_has_the_file(
    httpserver: HTTPServer, store: Store, console: Console, torch: Wanted, answer: Any
) -> None:
    httpserver.expect_request(f"/whl/{TORCH}").respond_with_data(PAYLOAD)
    calls = answer(pylock(httpserver.url_for(f"/whl/{TORCH.replace('+', '%2B')}")))
    assert fetch([torch], store=store, settings=index(CLOSED), console=console, torch_backend="cpu").added == 1
    assert calls[0][calls[0].index("--python-version") + 1] == "3.12"
    assert calls[0][calls[0].index("--torch-backend") + 1] == "cpu"


def test_pytorchs_index_is_not_asked_when_someone_has_the_file_or_it_is_not_torchs(
    tmp_path: Path, store: Store, console: Console, torch: Wanted, answer: Any
) -> None:
    calls = answer("")
    (tmp_path / TORCH).write_bytes(PAYLOAD)
    fetch([torch], store=store, settings=index(links=(str(tmp_path),)), console=console, torch_backend="cpu")
    with pytest.raises(FetchError):
        fetch([WANTED], store=store, settings=index(), console=console, torch_backend="cpu")
    assert calls == []


@pytest.mark.parametrize(
    "case",
    [
        ("", FetchError, "error: no network"),
        ('lock-version = "1.0"\n', FetchError, "has no such file"),
        (pylock("https://host.invalid/" + TORCH, "2" * 64), HashMismatchError, "has the name with sha256:" + "2" * 64),
    ],
)
def test_what_pytorchs_index_says_is_in_the_message(store: Store, torch: Wanted, answer: Any, case: tuple[str, Any, str]) -> None:
    text, kind, words = case
    answer(text)
    with pytest.raises(kind) as caught:
        fetch([torch], store=store, settings=index(), console=Console(), torch_backend="cpu")
    assert f"torch-backend:cpu: {words}" in caught.value.why


# -- two at once -------------------------------------------------------------------------------------------------


def _in_a_process(root: Path, address: str) -> int:
    return fetch([WANTED], store=Store(root), settings=index(address), console=Console(stream=open(os.devnull, "w"))).added  # noqa: PTH123


def test_two_processes_that_want_the_same_file_fetch_it_once(httpserver: HTTPServer, files: Files, store: Store) -> None:
    """Two builds at once: without the lock they would write into the same partial file."""
    address = page(httpserver)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.starmap(_in_a_process, [(store.root, address)] * 4)
    assert held(store) == PAYLOAD
    assert len(files.asked) == 1


def test_two_names_of_one_content_in_one_fetch(tmp_path: Path, store: Store, console: Console) -> None:
    other = Wanted(project="thing", filename="thing-1.0-1-py3-none-any.whl", sha256=SHA, size=len(PAYLOAD))
    for name in (NAME, other.filename):
        (tmp_path / name).write_bytes(PAYLOAD)
    assert fetch([WANTED, other], store=store, settings=index(links=(str(tmp_path),)), console=console).added == 2
