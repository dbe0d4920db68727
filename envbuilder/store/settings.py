"""Where bytes come from: the user's own settings for pip and for uv, read as each of the two reads them.

Locks name files and hashes, never a host; so a mirror, a folder of wheels or a private index needs no change here.
uv ignores pip's settings and pip ignores uv's: a machine that works with one of them must work with envbuilder, so
both are read and every configured place is tried, before the default index (which is left out where either setting
replaces it). Formats: pip's "Configuration" and uv's "Configuration files" pages.
"""

from __future__ import annotations

import configparser
import os
import sys
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

from envbuilder.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_PIP_SECTIONS = ("global", "download", "install")  # later ones win, as for `pip install`, whichever file they stand in
_TRUE = frozenset({"1", "true", "yes", "on", "y", "t"})


@dataclass(frozen=True, kw_only=True)
class Place:
    """One source of files: a folder, a page of links, or an index. `setting` is what the user set, for messages.

    An `explicit` index (uv's word) takes no part in resolving; a file that a lock names by hash may come from it.
    """

    location: str
    setting: str
    explicit: bool = False

    def __post_init__(self) -> None:
        try:
            urlsplit(self.location)
        except ValueError as error:
            raise ConfigurationError("a setting holds no address", why=f"{self.setting}: {error}.") from error

    @property
    def shown(self) -> str:
        """The place without its credentials."""
        parts = urlsplit(self.location)
        if parts.username or parts.password:
            host = parts.netloc.rpartition("@")[2]
            return urlunsplit(parts._replace(netloc=f"****@{host}"))
        return self.location


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that pip and uv were told, in the order in which places are tried."""

    find_links: tuple[Place, ...] = ()
    indexes: tuple[Place, ...] = ()
    default_index: bool = True
    ca_bundle: str | None = None
    proxy: str | None = None

    @property
    def all_indexes(self) -> tuple[Place, ...]:
        """The configured indexes, then the default one unless a setting replaces it."""
        import pypi_simple  # noqa: PLC0415 - a fifth of a second, which a build that fetches nothing need not pay

        default = Place(location=pypi_simple.PYPI_SIMPLE_ENDPOINT, setting="the default index")
        return (*self.indexes, default) if self.default_index else self.indexes


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read pip's and uv's settings from their files and variables. Raises ConfigurationError for a file that is no file of theirs."""
    env = os.environ if environ is None else environ
    uv, pip = _uv_settings(env), _pip_settings(env)
    return Settings(
        find_links=_unique((*uv.find_links, *pip.find_links)),
        indexes=_unique((*uv.indexes, *pip.indexes)),
        default_index=uv.default_index and pip.default_index,
        ca_bundle=pip.ca_bundle or env.get("SSL_CERT_FILE") or env.get("REQUESTS_CA_BUNDLE") or env.get("CURL_CA_BUNDLE"),
        proxy=pip.proxy,
    )


def uv_arguments(settings: Settings) -> tuple[list[str], dict[str, str]]:
    """Say the settings in uv's words: (options for a resolving command, variables).

    Every configured place takes part with its best version, as pip has it: by uv's own rule, the first index that
    knows a name hides all others. Of two indexes with the same version uv takes the first one's files alone, so the
    main index comes before extra ones, which may hold a file for one Python only.
    """
    options = [part for place in settings.find_links for part in ("--find-links", _absolute(place.location))]
    indexes = [place for place in settings.all_indexes[::-1] if not place.explicit]
    options += [part for place in indexes for part in ("--index", place.location)]
    if indexes:
        options += ["--default-index", indexes[0].location, "--index-strategy", "unsafe-best-match"]
    else:
        options += ["--no-index"]
    variables = {"SSL_CERT_FILE": settings.ca_bundle} if settings.ca_bundle else {}
    if settings.proxy:
        variables["ALL_PROXY"] = settings.proxy
    return options, variables


def _absolute(location: str) -> str:
    """Return a folder by its whole path: uv takes a relative one, and `~`, for a part of its project."""
    return location if urlsplit(location).scheme else str(Path(location).expanduser().absolute())


def _home(env: Mapping[str, str]) -> Path:
    """Return the user's home, or a folder that is not there: a container's user may have none."""
    try:
        return Path(env.get("HOME") or Path.home())
    except RuntimeError:
        return Path("/nonexistent")


def _unique(places: Iterable[Place]) -> tuple[Place, ...]:
    return tuple({place.location.rstrip("/"): place for place in reversed(list(places))}.values())[::-1]


# -- pip ---------------------------------------------------------------------------------------------------------


def _pip_settings(env: Mapping[str, str]) -> Settings:
    files = [_read_pip_file(path) for path in _pip_files(env)]
    options = {key: value for section in _PIP_SECTIONS for file in files for key, value in file.get(section, {}).items()}
    for name, value in env.items():
        if name.startswith("PIP_") and value:
            options[name.removeprefix("PIP_").lower().replace("_", "-")] = (value, name)

    def places(key: str) -> tuple[Place, ...]:
        value, setting = options.get(key, ("", ""))
        return tuple(Place(location=word, setting=f"pip's {key} ({setting})") for word in value.split())

    without_index = options.get("no-index", ("", ""))[0].lower() in _TRUE
    main = places("index-url")
    return Settings(
        find_links=places("find-links"),
        indexes=() if without_index else (*places("extra-index-url"), *main),  # the main one last, as uv has it
        default_index=not without_index and not main,
        ca_bundle=options.get("cert", (None, ""))[0],
        proxy=options.get("proxy", (None, ""))[0],
    )


def _pip_files(env: Mapping[str, str]) -> list[Path]:
    chosen = env.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return []
    home = _home(env)
    files = [base / "pip/pip.conf" for base in _xdg_folders(env)]
    files += [Path("/etc/pip.conf")]
    if not (chosen and Path(chosen).exists()):  # it takes the place of the user's own
        files += [home / ".pip/pip.conf", Path(env.get("XDG_CONFIG_HOME") or home / ".config") / "pip/pip.conf"]
    files += [Path(sys.base_prefix) / "pip.conf"]
    return [path for path in (*files, *([Path(chosen)] if chosen else [])) if path.is_file()]


def _xdg_folders(env: Mapping[str, str]) -> list[Path]:
    """Return the folders of the machine's own settings. Of several, pip lets the last one win; uv reads the first alone."""
    return [Path(base) for base in (env.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":") if base]


def _read_pip_file(path: Path) -> dict[str, dict[str, tuple[str, str]]]:
    """Return {section: {key: (value, where it stands)}}."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{path} is not a configuration of pip", why=str(error), next="Mend it: `pip config debug` shows what pip reads."
        ) from error
    except OSError:
        return {}  # not ours to read; pip would not read it either
    return {
        section: {key.replace("_", "-"): (value, str(path)) for key, value in parser.items(section)}
        for section in _PIP_SECTIONS
        if parser.has_section(section)
    }


# -- uv ----------------------------------------------------------------------------------------------------------


def _uv_settings(env: Mapping[str, str]) -> Settings:
    sources = [] if env.get("UV_NO_CONFIG", "").lower() in _TRUE else [_read_uv_file(path, env) for path in _uv_files(env)]
    sources.append(_uv_variables(env))
    settings = Settings()
    for source in sources:
        settings = _merge(settings, source)
    # No index in one source means none at all, whatever the others name.
    without_index = any(not source.default_index and not source.indexes for source in sources)
    return replace(settings, indexes=()) if without_index else settings


def _merge(lower: Settings, upper: Settings) -> Settings:
    return replace(
        lower,
        find_links=(*upper.find_links, *lower.find_links),
        indexes=(*upper.indexes, *lower.indexes),
        default_index=upper.default_index and lower.default_index,
    )


def _uv_files(env: Mapping[str, str]) -> list[Path]:
    if chosen := env.get("UV_CONFIG_FILE"):
        return [Path(chosen)]
    user = Path(env.get("XDG_CONFIG_HOME") or _home(env) / ".config") / "uv/uv.toml"
    machine = [base / "uv/uv.toml" for base in (*_xdg_folders(env), Path("/etc"))]
    return [*[path for path in machine if path.is_file()][:1], *([user] if user.is_file() else [])]


def _read_uv_file(path: Path, env: Mapping[str, str]) -> Settings:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigurationError(f"{path} is not a configuration of uv", why=str(error), next="Mend it, or set UV_NO_CONFIG=1.") from error
    if isinstance(own := data.get("pip"), dict):
        data |= own
    named = [entry for entry in data.get("index", []) if isinstance(entry, dict) and isinstance(entry.get("url"), str)]
    setting = f"uv's index ({path})"
    indexes = [Place(location=_with_credentials(entry, env), setting=setting, explicit=entry.get("explicit") is True) for entry in named]
    indexes += [
        Place(location=url, setting=f"uv's {key} ({path})") for key in ("index-url", "extra-index-url") for url in _listed(data.get(key))
    ]
    return Settings(
        find_links=tuple(Place(location=url, setting=f"uv's find-links ({path})") for url in _listed(data.get("find-links"))),
        indexes=() if data.get("no-index") else tuple(indexes),
        default_index=not (data.get("no-index") or data.get("index-url") or any(entry.get("default") for entry in named)),
    )


def _uv_variables(env: Mapping[str, str]) -> Settings:
    def places(name: str, separator: str | None = None) -> tuple[Place, ...]:
        words = (word.strip() for word in env.get(name, "").split(separator))
        entries = (
            {"name": word.partition("=")[0], "url": word.partition("=")[2]} if _is_named(word) else {"url": word} for word in words if word
        )
        return tuple(Place(location=_with_credentials(entry, env), setting=f"uv's {name}") for entry in entries)

    default = places("UV_DEFAULT_INDEX") or places("UV_INDEX_URL")
    without_index = env.get("UV_NO_INDEX", "").lower() in _TRUE
    return Settings(
        find_links=places("UV_FIND_LINKS", ","),
        indexes=() if without_index else (*places("UV_INDEX"), *places("UV_EXTRA_INDEX_URL"), *default),
        default_index=not without_index and not default,
    )


def _is_named(word: str) -> bool:
    """Whether an index is given as NAME=URL."""
    name, equals, _ = word.partition("=")
    return bool(equals) and "/" not in name and ":" not in name


def _with_credentials(entry: Mapping[str, Any], env: Mapping[str, str]) -> str:
    """Return an index's address with the credentials that uv takes from UV_INDEX_<NAME>_USERNAME and _PASSWORD."""
    url = str(entry["url"])
    name = str(entry.get("name", "")).upper().replace("-", "_").replace(".", "_")
    user, password = env.get(f"UV_INDEX_{name}_USERNAME"), env.get(f"UV_INDEX_{name}_PASSWORD")
    if not name or not (user or password) or "@" in urlsplit(url).netloc:
        return url
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{quote(user or '', safe='')}:{quote(password or '', safe='')}@{parts.netloc}"))


def _listed(value: object) -> list[str]:
    """Settings are a string or a list of them."""
    return [value] if isinstance(value, str) else [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
