"""Debian packages: what a lock knows of one, their control files, and where apt is set to look for them.

A lock names a package's path below a mirror, its size and sha256, never a mirror; apt's own configuration has two
spellings (sources.list(5)). mirrors.py gets packages into the store.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

PackageLayer: TypeAlias = Literal["rootfs", "dev"]
APT = Path("/etc/apt")


@dataclass(frozen=True, kw_only=True)
class DebianPackage:
    """One locked package: `path` is below a mirror's root; `layer` says whether every image has it, or `dev` alone."""

    name: str
    version: str
    architecture: str
    path: str
    sha256: str
    size: int
    layer: PackageLayer

    @property
    def filename(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class AptSource:
    """One binary source of apt's: where, which suite and components, and the options that say whom to trust."""

    uri: str
    suite: str
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()

    @property
    def line(self) -> str:
        options = " ".join(f"{name}={value}" for name, value in self.options)
        return f"deb {f'[{options}] ' if options else ''}{self.uri} {self.suite} {' '.join(self.components)}".rstrip()


def apt_sources(apt: Path = APT) -> list[AptSource]:
    """Read apt's sources, the one-line and the deb822 files; those that are switched off, or not of http or file, are left out."""
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*.list"))]
    found = [source for path in files for source in _one_line(_text(path))]
    found += [source for path in sorted((apt / "sources.list.d").glob("*.sources")) for source in _deb822(_text(path))]
    return [source for source in found if source.uri.partition(":")[0] in {"http", "https", "file"}]


def paragraphs(text: str) -> Iterator[dict[str, str]]:
    """Yield the paragraphs of a control file (deb822(5)), keys in lower case, continuation lines joined by newlines."""
    fields: dict[str, str] = {}
    key = ""
    for line in (*text.splitlines(), ""):
        if not line.strip():
            if fields:
                yield fields
            fields, key = {}, ""
        elif line[0] in " \t" and key:
            fields[key] += "\n" + line.strip()
        elif not line.startswith("#"):
            name, _, value = line.partition(":")
            key = name.strip().lower()
            fields[key] = value.strip()


def _deb822(text: str) -> Iterator[AptSource]:
    for fields in paragraphs(text):
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
            continue
        signed_by = fields.get("signed-by", "")
        # A key may stand in the file itself; as an option of one line it cannot be said, and apt's own keys are asked then.
        options = (("signed-by", signed_by),) if signed_by.startswith("/") and "\n" not in signed_by else ()
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield AptSource(uri=uri, suite=suite, components=tuple(fields.get("components", "").split()), options=options)


def _one_line(text: str) -> Iterator[AptSource]:
    for line in text.splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # apt would complain; we only look for mirrors
        if not words or words[0] != "deb":
            continue
        options, rest = _options(words[1:])
        if len(rest) >= 2:
            yield AptSource(uri=rest[0], suite=rest[1], components=tuple(rest[2:]), options=options)


def _options(words: Sequence[str]) -> tuple[tuple[tuple[str, str], ...], Sequence[str]]:
    if not words or not words[0].startswith("["):
        return (), words
    end = next((index for index, word in enumerate(words) if word.endswith("]")), len(words) - 1)
    pairs: Iterable[str] = " ".join(words[: end + 1]).strip("[] ").split()
    kept = tuple((name, value) for name, _, value in (pair.partition("=") for pair in pairs) if name in {"signed-by", "trusted"})
    return kept, words[end + 1 :]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
