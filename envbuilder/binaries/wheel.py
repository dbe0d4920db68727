"""The shared objects of a wheel, unpacked into a temporary folder; a hostile zip costs an error and nothing else."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from envbuilder.errors import VerificationError
from envbuilder.files import disk_full, human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_WANTED = re.compile(r"\.so(\.[0-9]+)*$|\.(cubin|fatbin)$|(^|/)torch/version\.py$")
_MAX_DIRECTORY = 8 << 20  # torch's wheel, 13,000 files: 1.6 MB. zipfile makes an object of half a kB for each entry.
_MAX_RATIO = 64  # compressed to unpacked; real ELF files stay below 12
_MIN_ALLOWANCE = 64 << 20
_CHUNK = 1 << 20
_TAIL = 22 + 0xFFFF + 20


class WheelError(VerificationError):
    """A wheel is not a sound zip file."""

    reference = "wheel"


@contextlib.contextmanager
def unpacked(wheel: Path) -> Iterator[Path]:
    """Give a folder with the wheel's shared objects (and torch/version.py) at their places; it is gone afterwards.

    Raises WheelError: not a zip, cut, entries that climb out, a bomb. Raises StorageError when the disk is too small.
    """
    check_directory(wheel)
    with tempfile.TemporaryDirectory(prefix="envbuilder-wheel-") as name:
        goal = Path(name)
        try:
            with zipfile.ZipFile(wheel) as archive:
                entries = _wanted(archive, wheel)
                for entry in entries:
                    _unpack(archive, entry, goal / entry.filename)
        except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise disk_full(goal) from error
            # An OSError otherwise: an offset before the file's start, a name too long, a file that is also a folder.
            raise WheelError(f"{wheel.name} is not a sound wheel", why=str(error), next="Fetch it again; check its sha256.") from error
        yield goal


def _wanted(archive: zipfile.ZipFile, wheel: Path) -> list[zipfile.ZipInfo]:
    """Return the entries to unpack, after all that can be said of them beforehand."""
    for entry in archive.infolist():
        parts = PurePosixPath(entry.filename)
        if parts.is_absolute() or ".." in parts.parts or "\\" in entry.filename or "\0" in entry.orig_filename:
            raise WheelError(f"{wheel.name} has an entry outside itself", why=repr(entry.filename), next="Do not install this file.")
    wanted = [entry for entry in archive.infolist() if _WANTED.search(entry.filename) and not entry.is_dir()]
    for entry in wanted:
        if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} or entry.flag_bits & 1:
            raise WheelError(f"{wheel.name} is not packed as wheels are", why=f"{entry.filename}: method {entry.compress_type}")
    total = sum(entry.file_size for entry in wanted)
    if total > wheel.stat().st_size * _MAX_RATIO + _MIN_ALLOWANCE:
        raise WheelError(f"{wheel.name} would unpack to {human_size(total)}", why="That is far more than a wheel of its size holds.")
    if total > shutil.disk_usage(tempfile.gettempdir()).free:
        raise disk_full(Path(tempfile.gettempdir()))
    return wanted


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, goal: Path) -> None:
    """Write one entry. zipfile stops at the declared size, which has been summed up before."""
    goal.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as source, goal.open("wb") as file:
        shutil.copyfileobj(source, file, _CHUNK)


def check_directory(wheel: Path) -> None:
    """Refuse a zip whose central directory would fill memory, before zipfile reads it (PKWARE APPNOTE 4.3.14, 4.3.16)."""
    with wheel.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL))
        tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < 22:
        raise WheelError(f"{wheel.name} is not a zip file", why="It has no end record: not a wheel, or cut.", next="Fetch it again.")
    directory: int = struct.unpack_from("<I", tail, at + 12)[0]
    if directory == 0xFFFFFFFF or tail[max(0, at - 20) : at].startswith(b"PK\6\7"):
        raise WheelError(f"{wheel.name} is a zip64 file", why="No wheel needs that: it would be over 4 GiB, or have over 65,535 entries.")
    if directory > _MAX_DIRECTORY:
        raise WheelError(f"{wheel.name} lists far too many files", why=f"Its directory alone takes {human_size(directory)}.")
