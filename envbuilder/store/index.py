"""Asking a source which files it has: a folder, a page of links, or an index (PEP 503 and 691, over HTTP or as files)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pypi_simple
import requests
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuilder.store.settings import Place

_TIMEOUT_S = 30


class SourceUnreachableError(Exception):
    """A source did not answer, or answered nonsense; the reason is the message."""


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
        yield from _named(place, _page(place, "", place.location, session), filename)
    elif path.is_dir():
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
    if path is None:
        page = _page(place, name, f"{place.location.rstrip('/')}/{name}/", session)
    else:
        page = _read_page(name, path / name / "index.html")
    yield from _named(place, page, filename)


def _named(place: Place, page: pypi_simple.ProjectPage, filename: str) -> Iterator[Offer]:
    for package in page.packages:
        if package.filename == filename:
            yield Offer(place=place, location=package.url.partition("#")[0], sha256=package.digests.get("sha256"))


def _page(place: Place, project: str, url: str, session: requests.Session) -> pypi_simple.ProjectPage:
    try:
        response = session.get(url, timeout=_TIMEOUT_S, headers={"Accept": pypi_simple.ACCEPT_JSON_PREFERRED})
        if response.status_code in {404, 410}:
            return pypi_simple.ProjectPage.from_html(project, "")
        response.raise_for_status()
        return pypi_simple.ProjectPage.from_response(response, project)
    except requests.RequestException as error:
        raise SourceUnreachableError(describe(error)) from error
    except (ValueError, KeyError, pypi_simple.UnsupportedContentTypeError, pypi_simple.UnsupportedRepoVersionError) as error:
        raise SourceUnreachableError(f"{place.shown} did not answer as an index: {error}") from error


def _read_page(project: str, path: Path) -> pypi_simple.ProjectPage:
    try:
        html = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return pypi_simple.ProjectPage.from_html(project, "")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceUnreachableError(str(error)) from error
    return pypi_simple.ProjectPage.from_html(project, html, base_url=f"file://{os.path.abspath(path)}")  # noqa: PTH100 - no links resolved: the address is as configured


def describe(error: requests.RequestException) -> str:
    """Say in a few words what went wrong, without the object addresses and retry objects of urllib3's messages."""
    match error:
        case requests.HTTPError() if error.response is not None:
            return f"answered {error.response.status_code} {error.response.reason}"
        case requests.exceptions.SSLError():
            return f"its certificate was not accepted ({_innermost(error)})"
        case requests.exceptions.ProxyError():
            return f"the proxy failed ({_innermost(error)})"
        case requests.ConnectTimeout() | requests.ReadTimeout():
            return f"no answer within {_TIMEOUT_S} s"
        case requests.ConnectionError():
            return f"cannot be reached ({_innermost(error)})"
        case _:
            return _innermost(error)


def _innermost(error: BaseException) -> str:
    while True:
        reason = getattr(error, "reason", None)
        arguments = [argument for argument in getattr(error, "args", ()) if isinstance(argument, BaseException)]
        inner = reason if isinstance(reason, BaseException) else arguments[0] if arguments else None
        if inner is None:
            text = str(error).rpartition(": ")[2] or type(error).__name__
            return text.strip("<>()'")
        error = inner
