"""What a registry says is not believed, and it learns no more than it must."""

from __future__ import annotations

import hashlib
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
import requests

from envbuilder.errors import FetchError, VerificationError
from envbuilder.images import registry
from envbuilder.images.oci import Descriptor, Layout, parse_manifest
from envbuilder.images.registry import Reference, Registry, RegistryError
from envbuilder.store.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GOOD = {"mediaType": "x", "digest": f"sha256:{'0' * 64}", "size": 1}
Answer = "Callable[[str, str, dict[str, str]], requests.Response]"


def said(status: int, content: bytes = b"", **headers: str) -> requests.Response:
    answer = requests.Response()
    answer.status_code, answer.raw = status, io.BytesIO(content)
    answer.headers.update(headers)
    return answer


class Session:
    """Answers in place of a network."""

    def __init__(self, answer: Callable[[str, str, dict[str, str]], requests.Response]) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.tokens: list[str] = []

    def request(self, method: str, url: str, *, headers: dict[str, str], **_: object) -> requests.Response:
        self.asked.append((method, url, headers))
        return self.answer(method, url, headers)

    def get(self, url: str, **_: object) -> requests.Response:
        self.tokens.append(url)
        return said(200, json.dumps({"token": "secret"}).encode())


def talking_to(session: Session, tmp_path: Path) -> Registry:
    held: Any = session
    return Registry(reference=Reference.parse("a.example/team/x"), settings=Settings(), state=tmp_path, _session=held)


def test_a_login_is_for_the_registry_alone(tmp_path: Path) -> None:
    """It may say that an upload goes elsewhere; a token that went there would let others push in our name."""

    def answer(method: str, url: str, headers: dict[str, str]) -> requests.Response:
        if url.startswith("https://b.example/"):
            return said(201)
        if "Authorization" not in headers:
            return said(401, **{"WWW-Authenticate": 'Bearer realm="https://a.example/token"'})
        return said(404) if method == "HEAD" else said(202, Location="https://b.example/put?x=1")

    session = Session(answer)
    talking_to(session, tmp_path).push_bytes("x", b"content")
    assert {url.partition("/v2")[0].partition("/put")[0]: "Authorization" in headers for _, url, headers in session.asked} == {
        "https://a.example": True,
        "https://b.example": False,
    }


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "credentials", lambda _host: ("me", "secret"))


@pytest.mark.usefixtures("login")
@pytest.mark.parametrize("place", ["https://b.example", "http://b.example", "http://a.example"])
@pytest.mark.parametrize("challenge", ["Basic realm=x", 'Bearer realm="https://b.example/token"', 'Bearer realm="http://b.example/token"'])
def test_who_a_registry_leads_to_cannot_ask_for_its_password(tmp_path: Path, place: str, challenge: str) -> None:
    """Blobs often lie elsewhere; whoever keeps them, or stands in between, would have the password of the registry for asking."""

    def answer(method: str, url: str, headers: dict[str, str]) -> requests.Response:
        if url.startswith("https://a.example/"):
            return said(307, Location=f"{place}/blob")
        return said(401, **{"WWW-Authenticate": challenge})

    session = Session(answer)
    with pytest.raises(RegistryError, match="does not let us in"):
        talking_to(session, tmp_path).manifest("latest")
    assert session.tokens == []
    assert not any("Authorization" in headers for _, _, headers in session.asked)


@pytest.mark.usefixtures("login")
def test_a_login_goes_to_where_tokens_are_given_over_https_alone(tmp_path: Path) -> None:
    """Docker's own registry has them given by another host. Over plain http everybody on the way would read the password."""

    def registry_with(realm: str) -> Session:
        def answer(method: str, url: str, headers: dict[str, str]) -> requests.Response:
            return said(200, b"{}") if "Authorization" in headers else said(401, **{"WWW-Authenticate": f'Bearer realm="{realm}"'})

        return Session(answer)

    session = registry_with("https://auth.example/token")
    assert talking_to(session, tmp_path).manifest("latest")
    assert session.tokens == ["https://auth.example/token"]
    for realm in ("http://auth.example/token", "http://a.example/token", "https:nowhere"):
        session = registry_with(realm)
        with pytest.raises(RegistryError, match="unencrypted"):
            talking_to(session, tmp_path).manifest("latest")
        assert session.tokens == []


def test_netrc_does_not_take_the_place_of_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ~/.netrc has for a host would be sent in place of the token: the registry then says no, whatever `docker login` said."""
    (tmp_path / "netrc").write_text("default login other password wrong\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    heard: list[tuple[str, str]] = []

    class Adapter(requests.adapters.BaseAdapter):
        def send(self, request: requests.PreparedRequest, **_: object) -> requests.Response:  # type: ignore[override]
            heard.append((str(request.url), request.headers.get("Authorization", "")))
            answer = self.answer(*heard[-1])
            answer.request, answer.url = request, str(request.url)
            return answer

        def answer(self, url: str, login: str) -> requests.Response:
            if "/token" in url:
                return said(200, b'{"token": "good"}')
            if "/elsewhere" in url:
                return said(200, b"{}")
            place = f"https://{'a' if len(heard) < 4 else 'b'}.example/elsewhere"
            return (
                said(302, Location=place)
                if login == "Bearer good"
                else said(401, **{"WWW-Authenticate": 'Bearer realm="https://a.example/token"'})
            )

        def close(self) -> None:
            pass

    session = requests.Session()
    session.mount("https://", Adapter())
    asking = talking_to(session, tmp_path)  # type: ignore[arg-type]
    for _ in range(2):
        assert asking.manifest("latest")
    assert [login for _, login in heard] == ["", "", "Bearer good", "Bearer good", "Bearer good", ""]


@pytest.mark.parametrize("error", [requests.ReadTimeout, requests.ConnectionError, requests.exceptions.ChunkedEncodingError])
def test_a_registry_that_falls_silent_is_an_error_with_a_remedy(tmp_path: Path, error: type[requests.RequestException]) -> None:
    def answer(method: str, url: str, headers: dict[str, str]) -> requests.Response:
        raise error("silence")

    registry = talking_to(Session(answer), tmp_path)
    with pytest.raises(FetchError, match="broke off 5 times"):
        registry.pull_to(tmp_path / "goal", Descriptor(media_type="x", digest=GOOD["digest"], size=1))  # type: ignore[arg-type]
    with pytest.raises(RegistryError, match="cannot be asked"):
        registry.manifest("latest")


def test_a_registry_that_does_not_stop_sending_is_stopped(tmp_path: Path) -> None:
    """Else it could fill the disk: how many bytes there are was said before."""
    content = b"x" * (3 << 20)
    blob = Descriptor(media_type="x", digest=f"sha256:{hashlib.sha256(content[:100]).hexdigest()}", size=100)
    registry = talking_to(Session(lambda *_: said(200, content)), tmp_path)
    with pytest.raises(VerificationError, match="is not what the registry sent"):
        registry.pull_to(tmp_path / "goal", blob)
    assert list(tmp_path.iterdir()) == []


def test_a_registry_that_ignores_the_range_is_heard_out(tmp_path: Path) -> None:
    """Half of it was there; a registry may send the whole all the same."""
    content = b"0123456789"
    blob = Descriptor(media_type="x", digest=f"sha256:{hashlib.sha256(content).hexdigest()}", size=10)
    (tmp_path / ".goal.partial").write_bytes(content[:5])
    assert talking_to(Session(lambda *_: said(200, content)), tmp_path).pull_to(tmp_path / "goal", blob) == 10
    assert (tmp_path / "goal").read_bytes() == content


@pytest.mark.parametrize("rotten", [b"01X34", b"01234X6789", b"01234567890"])
def test_what_was_left_of_a_download_may_be_damaged(tmp_path: Path, rotten: bytes) -> None:
    """The registry would be blamed for it, with the advice not to use its copy; or nothing would be said at all."""
    content = b"0123456789"
    blob = Descriptor(media_type="x", digest=f"sha256:{hashlib.sha256(content).hexdigest()}", size=10)

    def answer(method: str, url: str, headers: dict[str, str]) -> requests.Response:
        have = int(headers["Range"].removeprefix("bytes=").rstrip("-")) if "Range" in headers else 0
        return said(206 if have else 200, content[have:])

    layout = Layout(tmp_path)
    goal = layout.blob(blob.digest)
    goal.parent.mkdir(parents=True)
    goal.with_name(f".{goal.name}.partial").write_bytes(rotten)
    goal.write_bytes(b"0123456X89")
    assert talking_to(Session(answer), tmp_path).pull_blob(layout, blob) >= 10
    assert goal.read_bytes() == content
    assert talking_to(Session(answer), tmp_path).pull_blob(layout, blob) == 0
    assert [path.name for path in goal.parent.iterdir()] == [goal.name]


@pytest.mark.parametrize(
    "manifest",
    [b"no JSON", b"[]", b"7", {}, {"config": GOOD}, {"config": GOOD, "layers": []}, {"config": GOOD, "layers": [1]}, {"manifests": []}]
    + [{"config": GOOD, "layers": [{**GOOD, key: value}]} for key, value in (("digest", "sha256:../../x"), ("digest", 7), ("size", "1"))],
)
def test_what_is_no_manifest_is_refused(manifest: object) -> None:
    payload = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    with pytest.raises(VerificationError, match=r"a\.example/x"):
        parse_manifest(payload, "a.example/x")
    assert parse_manifest(json.dumps({"config": GOOD, "layers": [GOOD]}).encode(), "x")["config"] == GOOD
