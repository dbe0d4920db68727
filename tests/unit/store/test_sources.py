"""Sources as they are on bad days: broken off, refusing, talking nonsense, gone."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from envbuilder.console import Console
from envbuilder.errors import FetchError, HashMismatchError, ProgramError
from envbuilder.process import Completed
from envbuilder.store import fetch as room
from envbuilder.store.cache import Store, Wanted
from envbuilder.store.fetch import fetch
from tests.unit.store.sources import CLOSED, NAME, PAYLOAD, SHA, WANTED, Breaking, Files, held, index, listing, many, page, partial

if TYPE_CHECKING:
    import io
    from collections.abc import Callable
    from pathlib import Path

    from pytest_httpserver import HTTPServer

    from envbuilder.store.settings import Place

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
