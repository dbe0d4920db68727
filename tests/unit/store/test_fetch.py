"""Files that come in whole or not at all: real HTTP on loopback, real files, every byte proved."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from typing import TYPE_CHECKING

import pytest
from werkzeug import Request, Response

from envbuilder.console import Console
from envbuilder.errors import FetchError, HashMismatchError, StorageError
from envbuilder.store import fetch as room
from envbuilder.store.cache import Store, Wanted
from envbuilder.store.fetch import Fetched, fetch
from tests.unit.store.sources import CLOSED, NAME, PAYLOAD, SHA, WANTED, Files, held, index, many, page

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_httpserver import HTTPServer

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
    httpserver.no_handler_status_code = 404  # with 500 for the others' pages, the index may be given up before it is asked for ours
    with pytest.raises(StorageError, match="the disk is full"):
        fetch([WANTED, *many(20)], store=store, settings=index(page(httpserver)), console=console)
    assert not store.path(SHA, NAME).exists()


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
