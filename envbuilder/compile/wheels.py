"""Unpacking chosen parts of locked wheels, and of sources, into a workspace."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from envbuilder.compile.sources import read_source
from envbuilder.errors import VerificationError
from envbuilder.files import storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_CHUNK = 1 << 20
_LONG_AGO = 315532800  # 1980-01-01: unpacked a second time, a header is no newer than what was compiled with it


def unpack(wheel: Path, goal: Path, place: Callable[[str], str | None]) -> int:
    """Unpack a wheel's files to where `place` puts them below `goal` (None: not at all); return how many there were.

    Whether a file may be executed is kept; no other mode, and no time. Raises VerificationError for a wheel that is none.
    """
    count = 0
    try:
        with zipfile.ZipFile(wheel) as archive, storage_errors(goal):
            for entry in archive.infolist():
                where = None if entry.is_dir() else place(entry.filename)
                if where is None:
                    continue
                if ".." in PurePosixPath(where).parts or where.startswith("/"):
                    raise VerificationError(
                        f"{wheel.name} has an entry outside itself", why=repr(entry.filename), next="Do not use this file."
                    )
                path = goal / where
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                with archive.open(entry) as source, path.open("wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
                path.chmod(0o755 if entry.external_attr >> 16 & 0o111 else 0o644)
                os.utime(path, (_LONG_AGO, _LONG_AGO))
                count += 1
    except (zipfile.BadZipFile, EOFError) as error:
        raise VerificationError(
            f"{wheel.name} is not a sound wheel", why=str(error), next="Remove it from the store and fetch it again."
        ) from error
    return count


def unpack_source(archive: Path, goal: Path, place: Callable[[str], str | None]) -> int:
    """Do the same with a source's archive, whose paths are below its top folder."""
    count = 0
    with storage_errors(goal):
        for name, content in read_source(archive).items():
            if (where := place(name)) is not None:
                path = goal / where
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                path.chmod(0o644)
                os.utime(path, (_LONG_AGO, _LONG_AGO))
                count += 1
    return count


def below(*prefixes: str) -> Callable[[str], str | None]:
    """Return a placing that keeps what lies below one of the prefixes, at its path below the prefix."""

    def place(name: str) -> str | None:
        return next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), None)

    return place


def whole(*prefixes: str) -> Callable[[str], str | None]:
    """Return a placing that keeps what lies below one of the prefixes, at its own path."""
    return lambda name: name if name.startswith(prefixes) else None
