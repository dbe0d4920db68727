"""Asking a source which files it has: a folder, a page of links, or an index (PEP 503 and 691, over HTTP or as files)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

import pypi_simple
import requests
import urllib3
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuilder.store.settings import Place

TIMEOUT_S = (10, 60)  # to connect, and of silence: a firewall that drops what it forbids must not cost minutes


class SourceUnreachableError(Exception):
    """A source did not answer; the reason is the message. There is no use in asking it for another file."""


class OddAnswerError(SourceUnreachableError):
    """A source is there, but what it said to this one question is of no use (a mirror may bar a single project)."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A file that a source says it has. `sha256` is what the source says, or None; the file itself is checked later."""

    place: Place
    location: str
    sha256: str | None

    @property
    def path(self) -> Path | None:
        """The file's path, for a file of this machine."""
        return local_path(self.location)


def local_path(location: str) -> Path | None:
    """Return the path that a location means, or None for an address on a network."""
    parts = urlsplit(location)
    match parts.scheme:
        case "file":
            return Path(unquote(parts.path))
        case "":
            return Path(location).expanduser()
        case _:
            return None


def offers_of_links(place: Place, filename: str, session: requests.Session) -> Iterator[Offer]:
    """Yield what a find-links place (a folder, or a page of links) has under a file name."""
    path = local_path(place.location)
    if path is None:
        yield from _named(place, _page("", place.location, session), filename)
    else:
        try:
            yield from _local_links(place, path, filename)
        except OSError as error:
            raise SourceUnreachableError(error.strerror or str(error)) from error


def _local_links(place: Place, path: Path, filename: str) -> Iterator[Offer]:
    if path.is_dir():
        if (path / filename).is_file():
            yield Offer(place=place, location=str(path / filename), sha256=None)
    elif path.name == filename and path.is_file():
        yield Offer(place=place, location=str(path), sha256=None)
    elif path.suffix in {".html", ".htm"}:
        yield from _named(place, _read_page("", path), filename)
    elif not path.exists():
        raise SourceUnreachableError("no such folder")


def offers_of_index(place: Place, project: str, filename: str, session: requests.Session) -> Iterator[Offer]:
    """Yield what an index has under a file name. An index that does not know the project offers nothing."""
    name = canonicalize_name(project)
    path = local_path(place.location)
    address = f"{place.location.rstrip('/')}/{name}/"
    page = _page(name, address, session) if path is None else _read_page(name, path / name / "index.html")
    yield from _named(place, page, filename)


def _named(place: Place, page: pypi_simple.ProjectPage, filename: str) -> Iterator[Offer]:
    for package in page.packages:
        # By the address, as pip has it: servers that list a folder shorten the text of long names.
        if filename in {package.filename, unquote(urlsplit(package.url).path).rpartition("/")[2]}:
            sha256 = package.digests.get("sha256")
            yield Offer(place=place, location=_with_login(package.url.partition("#")[0], place), sha256=sha256 and sha256.lower())


def _with_login(url: str, place: Place) -> str:
    """Return a file's address with the login of its index, where that lies on the same host and the address has none."""
    there, asked = urlsplit(url), urlsplit(place.location)
    _, login, host = asked.netloc.rpartition("@")
    same = (there.scheme, there.netloc) == (asked.scheme, host)
    return urlunsplit(there._replace(netloc=asked.netloc)) if login and same else url


def _page(project: str, url: str, session: requests.Session) -> pypi_simple.ProjectPage:
    try:
        response = session.get(url, timeout=TIMEOUT_S, headers={"Accept": pypi_simple.ACCEPT_JSON_PREFERRED})
        if response.status_code in {404, 410}:
            return pypi_simple.ProjectPage.from_html(project, "")
        response.raise_for_status()
        return pypi_simple.ProjectPage.from_response(response, project)
    except requests.HTTPError as error:
        status = error.response.status_code
        kind = SourceUnreachableError if status >= 500 or status in {401, 407} else OddAnswerError
        raise kind(describe(error)) from error
    except requests.JSONDecodeError as error:
        raise OddAnswerError("did not answer as an index (its JSON is none)") from error
    except requests.RequestException as error:
        raise SourceUnreachableError(describe(error)) from error
    except (ValueError, KeyError, pypi_simple.UnsupportedContentTypeError, pypi_simple.UnsupportedRepoVersionError) as error:
        raise OddAnswerError(f"did not answer as an index ({str(error).partition(chr(10))[0]})") from error


def _read_page(project: str, path: Path) -> pypi_simple.ProjectPage:
    try:
        html = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return pypi_simple.ProjectPage.from_html(project, "")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceUnreachableError(str(error)) from error
    return pypi_simple.ProjectPage.from_html(project, html, base_url=f"file://{os.path.abspath(path)}")  # noqa: PTH100 - no links resolved: the address is as configured


def describe(error: requests.RequestException) -> str:  # noqa: PLR0911 - a table
    """Say in a few words what went wrong, without the object addresses and retry objects of urllib3's messages."""
    match error:
        case requests.HTTPError() if error.response is not None:
            return f"answered {error.response.status_code} {error.response.reason}"
        case requests.exceptions.ChunkedEncodingError():
            return "broke off"
        case requests.exceptions.SSLError():
            return f"its certificate was not accepted ({_innermost(error)})"
        case requests.exceptions.ProxyError():
            return f"the proxy failed ({_innermost(error)})"
        case requests.ConnectTimeout() | requests.ReadTimeout():
            return f"no answer within {TIMEOUT_S[isinstance(error, requests.ReadTimeout)]} s"
        case requests.ConnectionError():
            return f"cannot be reached ({_innermost(error)})"
        case _:
            return _innermost(error)


def never_answered(error: requests.RequestException) -> bool:
    """Whether nobody was there at all, so that asking the same host again is of no use."""
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(error, requests.ConnectTimeout) or isinstance(reason, urllib3.exceptions.NewConnectionError)


def _innermost(error: BaseException) -> str:
    while True:
        reason = getattr(error, "reason", None)
        arguments = [argument for argument in getattr(error, "args", ()) if isinstance(argument, BaseException)]
        inner = reason if isinstance(reason, BaseException) else arguments[0] if arguments else None
        if inner is None:
            text = str(error).rpartition(": ")[2] or type(error).__name__
            return text.strip("<>()'")
        error = inner
