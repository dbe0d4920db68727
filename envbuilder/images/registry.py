"""Talking to an OCI registry (OCI Distribution Specification 1.1): only what is missing goes over the wire, and goes on after a break.

Credentials are those of docker and podman (`docker login`, `podman login`, a credential helper); none is asked for, and
none is written anywhere.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import requests

from envbuilder.errors import FetchError, StepError, UsageError, VerificationError
from envbuilder.files import sha256_file, storage_errors, write_json
from envbuilder.images.oci import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from envbuilder.store.fetch import new_session
from envbuilder.store.index import TIMEOUT_S, describe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from envbuilder.images.oci import Layout
    from envbuilder.store.settings import Settings

_CHUNK = 8 << 20  # of an upload: what is lost at most when a connection drops
_ATTEMPTS = 5
_LEADS = 10  # a request goes on at most so often: to where it is led, or with a login
_REFERENCE = re.compile(
    r"^(?P<host>[\w.-]+(?::\d+)?|\[[0-9a-f:]+\](?::\d+)?)/(?P<path>[a-z0-9][a-z0-9._/-]*)(?::(?P<tag>[\w][\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?$"
)
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


class RegistryError(StepError):
    """A registry refused, or could not be reached."""

    reference = "registry"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """host/path[:tag][@digest]. Names without a host are refused: which registry is meant would be a guess."""

    host: str
    path: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        match = _REFERENCE.match(text)
        if match is None or not ({".", ":"} & set(match["host"]) or match["host"] == "localhost"):
            raise UsageError(f"not the name of an image in a registry: {text!r}", next="Write it whole: host[:port]/path[:tag].")
        return cls(host=match["host"], path=match["path"], tag=match["tag"] or "", digest=match["digest"] or "")

    @property
    def url(self) -> str:
        name = self.host.rpartition(":")[0] if re.search(r":\d+$", self.host) else self.host
        loopback = name in {"localhost", "[::1]"} or re.fullmatch(r"127(\.\d+){3}", name) is not None
        return f"{'http' if loopback else 'https'}://{self.host}"

    def tagged(self, tag: str) -> str:
        return f"{self.host}/{self.path}:{tag}"


@dataclass
class Registry:
    """One repository of a registry. `state` is a folder in which interrupted uploads are remembered."""

    reference: Reference
    settings: Settings
    state: Path
    sent_bytes: int = 0
    _session: requests.Session | None = None
    _authorization: str = ""
    _tried: set[str] = field(default_factory=set)

    # -- pushing -------------------------------------------------------------------------------------------------

    def push(self, layout: Layout, names: Mapping[str, str]) -> list[tuple[str, str]]:
        """Push images: {name in the layout: tag}. Return (reference, digest) of each. Raises RegistryError."""
        pushed = []
        for image in layout.images():
            if image.name in names:
                for blob in image.blobs:
                    self._push_blob(layout.blob(blob.digest), blob)
                tag = names[image.name]
                self.push_manifest(MANIFEST_TYPE, layout.blob(image.descriptor.digest).read_bytes(), tag=tag)
                pushed.append((self.reference.tagged(tag), image.descriptor.digest))
        return pushed

    def push_manifest(self, media_type: str, payload: bytes, *, tag: str = "") -> tuple[Descriptor, bool]:
        """Push a manifest, whose blobs are there, under a tag or its digest alone; return whether the registry lists it for its subject."""
        digest = f"sha256:{hashlib.sha256(payload).hexdigest()}"
        answer = self._ask("PUT", f"manifests/{tag or digest}", data=payload, headers={"Content-Type": media_type}, ok=(201,))
        return Descriptor(media_type=media_type, digest=digest, size=len(payload)), "OCI-Subject" in answer.headers

    def push_bytes(self, media_type: str, payload: bytes) -> Descriptor:
        """Push a small blob, in one piece."""
        blob = Descriptor(media_type=media_type, digest=f"sha256:{hashlib.sha256(payload).hexdigest()}", size=len(payload))
        if self._ask("HEAD", f"blobs/{blob.digest}", ok=(200, 404)).status_code != requests.codes.ok:
            location, _ = self._begun()
            headers = {"Content-Type": "application/octet-stream"}
            answer = self._request("PUT", _with_digest(location, blob.digest), data=payload, headers=headers)
            self._require(answer, (201,), f"{blob.digest}, {blob.size} bytes,")
            self.sent_bytes += blob.size
        return blob

    def _push_blob(self, path: Path, blob: Descriptor) -> None:
        if self._ask("HEAD", f"blobs/{blob.digest}", ok=(200, 404)).status_code == requests.codes.ok:
            return
        remembered = self.state / f"{blob.digest.removeprefix('sha256:')}.json"
        location, have = self._resumed(remembered) or self._begun()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._send(path, blob, location, have, remembered)
                break
            except requests.RequestException as error:
                if attempt == _ATTEMPTS:
                    raise self._failure(f"the registry broke off {attempt} times", describe(error)) from error
                location, have = self._resumed(remembered) or self._begun()
        remembered.unlink(missing_ok=True)

    def _begun(self) -> tuple[str, int]:
        return self._location(self._ask("POST", "blobs/uploads/", headers={"Content-Length": "0"}, ok=(202,))), 0

    def _resumed(self, remembered: Path) -> tuple[str, int] | None:
        """Return where an interrupted upload goes on, if the registry still knows of it."""
        try:
            record = json.loads(remembered.read_bytes())
            if (record["registry"], record["path"]) != (self.reference.url, self.reference.path):
                return None
            answer = self._request("GET", record["location"])
        except (OSError, ValueError, KeyError, requests.RequestException):
            return None
        if answer.status_code != requests.codes.no_content:
            return None
        _, _, last = answer.headers.get("Range", "0-0").partition("-")
        have = int(last) + 1 if last.isdigit() and int(last) else 0
        return self._location(answer), have

    def _send(self, path: Path, blob: Descriptor, location: str, have: int, remembered: Path) -> None:
        with path.open("rb") as file:
            file.seek(have)
            while chunk := file.read(_CHUNK):
                headers = {"Content-Type": "application/octet-stream", "Content-Range": f"{have}-{have + len(chunk) - 1}"}
                answer = self._request("PATCH", location, data=chunk, headers=headers)
                self._require(answer, (202, 204), "an upload")
                have += len(chunk)
                self.sent_bytes += len(chunk)
                location = self._location(answer)
                write_json(remembered, {"location": location, "registry": self.reference.url, "path": self.reference.path})
        answer = self._request("PUT", _with_digest(location, blob.digest), headers={"Content-Length": "0"})
        self._require(answer, (201,), f"{blob.digest}, after {have} of {blob.size} bytes,")

    def _location(self, answer: requests.Response) -> str:
        return urljoin(f"{self.reference.url}/", answer.headers["Location"])

    # -- pulling -------------------------------------------------------------------------------------------------

    def manifest(self, tag: str) -> tuple[Descriptor, bytes] | None:
        """Return a manifest and what points at it; None where there is no such image."""
        accept = f"{MANIFEST_TYPE}, {INDEX_TYPE}, application/vnd.docker.distribution.manifest.v2+json"
        answer = self._ask("GET", f"manifests/{tag}", headers={"Accept": accept}, ok=(200, 404))
        if answer.status_code == requests.codes.not_found:
            return None
        digest = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
        if tag.startswith("sha256:") and digest != tag:
            raise VerificationError(f"{self.reference.tagged(tag)} is not what its digest says", why=f"It has the digest {digest}.")
        media_type = answer.headers.get("Content-Type", MANIFEST_TYPE).partition(";")[0]
        return Descriptor(media_type=media_type, digest=digest, size=len(answer.content)), answer.content

    def referrers(self, digest: str) -> bytes | None:
        """Return the registry's list of what refers to a manifest; None where it keeps none (before OCI Distribution 1.1)."""
        answer = self._ask("GET", f"referrers/{digest}", headers={"Accept": INDEX_TYPE}, ok=(200, 400, 404, 405))
        return answer.content if answer.status_code == requests.codes.ok else None

    def blob(self, blob: Descriptor) -> bytes:
        """Return a small blob, proved by its digest."""
        content = self._ask("GET", f"blobs/{blob.digest}", ok=(200,)).content
        if (found := f"sha256:{hashlib.sha256(content).hexdigest()}") != blob.digest:
            raise _other_bytes(blob, found)
        return content

    def pull_blob(self, layout: Layout, blob: Descriptor) -> int:
        """Bring a blob into a layout, unless it is there and right; return the bytes that were received."""
        return self.pull_to(layout.blob(blob.digest), blob) if layout.check(blob) else 0

    def pull_to(self, goal: Path, blob: Descriptor) -> int:
        """Bring a blob to a path, proved by its digest; return the bytes that were received. Goes on after a break."""
        partial = goal.with_name(f".{goal.name}.partial")
        with storage_errors(goal):
            goal.parent.mkdir(parents=True, exist_ok=True)
            resumed = partial.exists()
            received = self._receive_all(partial, blob)
            found = f"sha256:{sha256_file(partial)}"
            if found != blob.digest and resumed:
                # What was there may be damaged, or another registry's: only a blob that came in one piece tells of this one.
                partial.unlink()
                received += self._receive_all(partial, blob)
                found = f"sha256:{sha256_file(partial)}"
            if found != blob.digest:
                partial.unlink()
                raise _other_bytes(blob, found)
            partial.replace(goal)
        return received

    def _receive_all(self, partial: Path, blob: Descriptor) -> int:
        received = 0
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                received += self._receive(partial, blob)
                break
            except requests.RequestException as error:
                if attempt == _ATTEMPTS:
                    raise FetchError(
                        f"the registry broke off {attempt} times", why=describe(error), next="Run the same command again."
                    ) from error
        return received

    def _receive(self, partial: Path, blob: Descriptor) -> int:
        have = partial.stat().st_size if partial.exists() else 0
        if have >= blob.size:
            return 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        answer = self._ask("GET", f"blobs/{blob.digest}", headers=headers, ok=(200, 206), stream=True)
        goes_on = answer.status_code == requests.codes.partial_content
        received, wanted = 0, blob.size - (have if goes_on else 0)
        with partial.open("ab" if goes_on else "wb") as file:
            for chunk in answer.iter_content(1 << 20):
                file.write(chunk)
                received += len(chunk)
                if received > wanted:
                    partial.unlink()
                    raise _other_bytes(blob, f"more than its {blob.size} bytes")
        if partial.stat().st_size < blob.size:
            raise requests.ConnectionError("cut off")
        return received

    # -- asking --------------------------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, *, ok: tuple[int, ...], **options: Any) -> requests.Response:  # noqa: ANN401 - as requests has it
        try:
            answer = self._request(method, f"{self.reference.url}/v2/{self.reference.path}/{path}", **options)
        except requests.RequestException as error:
            if options.get("stream"):
                raise
            raise self._failure("the registry cannot be asked", describe(error)) from error
        self._require(answer, ok, path)
        return answer

    def _request(self, method: str, url: str, *, headers: Mapping[str, str] | None = None, **options: Any) -> requests.Response:  # noqa: ANN401
        if self._session is None:
            self._session = new_session(self.settings)
        for _ in range(_LEADS):
            # What a registry says may lead elsewhere (an upload's place, a blob's): a login is for its own host alone.
            own = url.startswith(f"{self.reference.url}/")
            login = {"Authorization": self._authorization} if own and self._authorization else {}
            answer = self._session.request(
                method, url, headers={**(headers or {}), **login}, timeout=TIMEOUT_S, allow_redirects=False, auth=_as_it_is, **options
            )
            if answer.is_redirect and method in {"GET", "HEAD"}:
                url = urljoin(url, answer.headers["Location"])
            elif answer.status_code != requests.codes.unauthorized or not own or not self._authorize(answer):
                break
            answer.close()
        return answer

    def _authorize(self, answer: requests.Response) -> bool:
        """Do what a 401 asks for; return whether there is something new to try."""
        challenge = answer.headers.get("WWW-Authenticate", "")
        kind, _, rest = challenge.partition(" ")
        login = credentials(self.reference.host)
        if kind.lower() == "basic" and login:
            authorization = f"Basic {base64.b64encode(':'.join(login).encode()).decode()}"
        elif kind.lower() == "bearer":
            authorization = self._token(dict(_CHALLENGE.findall(rest)), login)
        else:
            return False
        if not authorization or (challenge + authorization) in self._tried:
            return False
        self._tried.add(challenge + authorization)
        self._authorization = authorization
        return True

    def _token(self, challenge: Mapping[str, str], login: tuple[str, str] | None) -> str:
        """Ask for a token where a registry says that they are given; that may be another host, as Docker's own registry has it.

        Raises RegistryError where the login would have to go there unencrypted.
        """
        assert self._session is not None  # noqa: S101 - it brought the challenge
        realm = challenge.get("realm", "")
        if login and not realm.startswith(("https://", f"{self.reference.url}/")):
            raise RegistryError(
                f"{self.reference.host} wants its login sent elsewhere, unencrypted",
                why=f"It says that tokens are given at {realm!r}; nothing was sent there.",
                next="Have the registry name an https:// address as its token realm.",
            )
        wanted = {key: challenge[key] for key in ("service", "scope") if key in challenge}
        answer = self._session.get(realm, params=wanted, auth=login or _as_it_is, timeout=TIMEOUT_S, allow_redirects=False)
        if answer.status_code != requests.codes.ok:
            return ""
        document = answer.json()
        return f"Bearer {document.get('token') or document.get('access_token', '')}"

    def _require(self, answer: requests.Response, ok: tuple[int, ...], what: str) -> None:
        if answer.status_code in ok:
            return
        said = " ".join(_messages(answer))
        if answer.status_code in {401, 403}:
            raise RegistryError(
                f"{self.reference.host} does not let us in ({answer.status_code})",
                why=said or f"It asks for a login to {self.reference.path}.",
                next=f"Run `docker login {self.reference.host}` (or podman login), or mend the login that is there; then run the same command again.",
            )
        raise self._failure(f"the registry refused {what} with {answer.status_code} {answer.reason}", said)

    def _failure(self, what: str, why: str) -> RegistryError:
        return RegistryError(
            f"{self.reference.host}: {what}", why=why, next="Run the same command again: what has arrived is not sent twice."
        )


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Authenticate nothing: without a word on it, requests would put what ~/.netrc has for a host in the place of our own login."""
    return request


def _messages(answer: requests.Response) -> Iterator[str]:
    with contextlib.suppress(ValueError, AttributeError, TypeError, requests.RequestException):
        for error in answer.json().get("errors", []):
            yield f"{error.get('code', '')}: {error.get('message', '')}"


def _with_digest(location: str, digest: str) -> str:
    return f"{location}{'&' if urlsplit(location).query else '?'}digest={digest}"


def _other_bytes(blob: Descriptor, found: str) -> VerificationError:
    return VerificationError(
        f"{blob.digest} is not what the registry sent", why=f"It sent {found}.", next="Do not use that registry's copy."
    )


# -- credentials -------------------------------------------------------------------------------------------------


def credentials(host: str, environ: Mapping[str, str] | None = None) -> tuple[str, str] | None:
    """Return (user, password) for a registry from docker's or podman's files, or from a credential helper that they name."""
    from docker import auth, errors  # noqa: PLC0415 - only who is asked for a login needs to know how docker keeps them

    env = os.environ if environ is None else environ
    for path in _auth_files(env):
        if not path.is_file():
            continue
        with contextlib.suppress(errors.DockerException, ValueError):  # no such helper, or a file that is none
            login = auth.load_config(config_path=str(path)).resolve_authconfig(host)
            if login and login.get("username"):
                return login["username"], login.get("password", "")
    return None


def _auth_files(env: Mapping[str, str]) -> list[Path]:
    home = Path(env.get("HOME") or Path.home())
    named = [Path(env["REGISTRY_AUTH_FILE"])] if env.get("REGISTRY_AUTH_FILE") else []
    runtime = [Path(env["XDG_RUNTIME_DIR"]) / "containers/auth.json"] if env.get("XDG_RUNTIME_DIR") else []
    return [*named, Path(env.get("DOCKER_CONFIG") or home / ".docker") / "config.json", *runtime, home / ".config/containers/auth.json"]
