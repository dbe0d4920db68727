"""A wheel's files as they stand in an image's environment: the installation of a wheel (PEP 427), without a disk.

What pip would leave to chance is left out: no installer's name, no compiled files, no time. RECORD holds what was added,
so that pip in an image that starts from ours can take a distribution away again.
"""

from __future__ import annotations

import base64
import configparser
import contextlib
import csv
import hashlib
import io
import re
import zipfile
import zlib
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING

from packaging.utils import canonicalize_name

from envbuilder.errors import VerificationError
from envbuilder.images.tree import Entry, file, plain_mode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack
    from pathlib import Path

PREFIX = "opt/venv"
_PROGRAM = """#!/{prefix}/bin/python
import sys

from {module} import {first}

if __name__ == "__main__":
    sys.argv[0] = sys.argv[0].removesuffix(".exe")
    sys.exit({call}())
"""


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel that goes into images: its distribution's canonical name, its hash, its file.

    `without` are the names in the archive that another wheel brings, whose file is there instead.
    """

    name: str
    version: str
    sha256: str
    path: Path
    without: frozenset[str] = frozenset()

    @property
    def filename(self) -> str:
        return self.path.name

    def members(self) -> list[str]:
        """Return the names in the archive; those of a package are its paths below site-packages."""
        with zipfile.ZipFile(self.path) as archive:
            return archive.namelist()


def wheel_entries(wheel: Wheel, python: str, stack: ExitStack) -> list[Entry]:
    """Return the files of an installed wheel; they can be opened as long as `stack` is open.

    `python` is the minor version ("3.11"). Raises VerificationError for a wheel that cannot be read, or that would
    write outside the environment.
    """
    try:
        archive = stack.enter_context(zipfile.ZipFile(wheel.path))
        return list(_Unpacked(wheel, archive, python).entries())
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, configparser.Error) as error:
        raise VerificationError(
            f"{wheel.filename} cannot be read as a wheel",
            why=f"{type(error).__name__}: {error}",
            next="Remove it from the store, and build again: it is fetched anew.",
        ) from error


@contextlib.contextmanager
def sound_wheels(what: str) -> Iterator[None]:
    """Turn what a rotten wheel of the store gives into VerificationError; `what` says what could not be done."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise VerificationError(
            f"{what}: a file of the store is damaged",
            why=f"{type(error).__name__}: {error}",
            next="Remove that wheel from the store (`envbuilder cache status` says where it is), and build again.",
        ) from error


class _Unpacked:
    def __init__(self, wheel: Wheel, archive: zipfile.ZipFile, python: str) -> None:
        self._wheel, self._archive = wheel, archive
        self._site = f"{PREFIX}/lib/python{python}/site-packages"
        self._headers = f"{PREFIX}/include/site/python{python}/{wheel.name}"
        self._info = next(
            name.split("/")[0]
            for name in archive.namelist()
            if re.match(r"[^/]+\.dist-info/WHEEL$", name) and canonicalize_name(name.partition("-")[0]) == wheel.name
        )

    def entries(self) -> Iterator[Entry]:
        record, installed = f"{self._info}/RECORD", []
        for member in self._archive.infolist():
            if member.is_dir() or member.filename in {record, f"{record}.jws", f"{record}.p7s"} or member.filename in self._wheel.without:
                continue
            entry = self._entry(member)
            if member.filename.startswith(f"{self._info.removesuffix('.dist-info')}.data/"):
                installed.append(entry)
            yield entry
        programs = [file(f"{PREFIX}/bin/{name}", text, mode=0o755) for name, text in self._programs()]
        yield from programs
        yield file(f"{self._site}/{record}", self._record(record, [*installed, *programs]))

    def _entry(self, member: zipfile.ZipInfo) -> Entry:
        goal, program = self._goal(member.filename)
        mode = plain_mode(member.external_attr >> 16, executable=program)
        if program:
            with self._archive.open(member) as stream:
                content = stream.read()
            # "Rewrite script shebang" (PEP 427): a script of a wheel begins with `#!python`.
            return file(goal, re.sub(rb"^#!pythonw?\b[^\n]*", f"#!/{PREFIX}/bin/python".encode(), content), mode=mode)
        origin = f"{self._wheel.sha256}:{member.filename}"
        return Entry(path=goal, mode=mode, size=member.file_size, origin=origin, opener=partial(_open, self._archive, member))

    def _goal(self, name: str) -> tuple[str, bool]:
        parts = name.split("/")
        if name.startswith("/") or {"", ".", ".."} & set(parts):
            raise ValueError(f"a path that leaves its folder: {name}")
        if parts[0] != f"{self._info.removesuffix('.dist-info')}.data":
            return f"{self._site}/{name}", False
        rest = "/".join(parts[2:])
        match parts[1]:
            case "purelib" | "platlib":
                return f"{self._site}/{rest}", False
            case "scripts":
                return f"{PREFIX}/bin/{rest}", True
            case "headers":
                return f"{self._headers}/{rest}", False
            case "data":
                return f"{PREFIX}/{rest}", False
            case other:
                raise ValueError(f"an unknown kind of data: {other}")

    def _programs(self) -> Iterator[tuple[str, str]]:
        name = f"{self._info}/entry_points.txt"
        if name not in self._archive.namelist():
            return
        parser = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=False)
        parser.optionxform = str  # type: ignore[method-assign,assignment]  # names keep their case
        parser.read_string(self._archive.read(name).decode())
        for section in ("console_scripts", "gui_scripts"):
            for program, target in sorted(parser.items(section)) if parser.has_section(section) else ():
                module, _, call = target.split("[")[0].strip().partition(":")
                first = call.strip().split(".")[0]
                yield program, _PROGRAM.format(prefix=PREFIX, module=module.strip(), first=first, call=call.strip())

    def _record(self, record: str, added: list[Entry]) -> str:
        """Return RECORD in order, with what the installation itself wrote in place of what it was made from."""
        data = f"{self._info.removesuffix('.dist-info')}.data/"
        rows = {row[0]: row for row in csv.reader(io.StringIO(self._archive.read(record).decode())) if row and not row[0].startswith(data)}
        for entry in added:
            path = _relative(entry.path, self._site)
            rows[path] = [path, *_hash(entry)]
        rows[record] = [record, "", ""]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows[path] for path in sorted(rows))
        return text.getvalue()


def _open(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    return archive.open(member)


def _relative(path: str, site: str) -> str:
    if path.startswith(f"{site}/"):
        return path.removeprefix(f"{site}/")
    return f"../../../{path.removeprefix(f'{PREFIX}/')}"


def _hash(entry: Entry) -> tuple[str, str]:
    with entry.open() as stream:
        digest = hashlib.sha256(stream.read()).digest()
    return f"sha256={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}", str(entry.size)


def shared_paths(owner: Wheel, loser: Wheel) -> frozenset[str]:
    """Return the names, as in the archives, that two wheels both bring."""
    with zipfile.ZipFile(owner.path) as one, zipfile.ZipFile(loser.path) as other:
        return frozenset(one.namelist()) & frozenset(other.namelist())
