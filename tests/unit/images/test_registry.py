"""What a registry says is not believed, and it learns no more than it must."""

from __future__ import annotations

import hashlib
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
import requests

from envbuilder.errors import FetchError, VerificationError
from envbuilder.images.oci import Descriptor, parse_manifest
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

    def request(self, method: str, url: str, *, headers: dict[str, str], **_: object) -> requests.Response:
        self.asked.append((method, url, headers))
        return self.answer(method, url, headers)

    def get(self, url: str, **_: object) -> requests.Response:
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
