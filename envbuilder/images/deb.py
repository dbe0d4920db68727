"""Reading a Debian package (deb(5)): its control file, its maintainer scripts, its files. Nothing is run or unpacked to disk."""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING

from envbuilder.errors import VerificationError
from envbuilder.images.tree import Entry, Kind
from envbuilder.store.debian import paragraphs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_MAGIC = b"!<arch>\n"
_HEADER_BYTES = 60  # ar(5): name 16, mtime 12, uid 6, gid 6, mode 8, size 10, end 2


@dataclass(frozen=True, kw_only=True)
class Deb:
    """An opened package: `control` as text, `fields` of it in lower case, `scripts` and lists by name, and its files."""

    control: str
    fields: Mapping[str, str]
    information: Mapping[str, bytes]
    entries: tuple[Entry, ...]


def read_deb(path: Path) -> Deb:
    """Read a package whole into memory (the largest of ours unpacks to 100 MB). Raises VerificationError if it is none."""
    try:
        members = dict(_members(path.read_bytes()))
        control = _tar(members, "control.tar")
        data = _tar(members, "data.tar")
        information = {
            member.name.removeprefix("./"): _content(control, member).read() for member in control.getmembers() if member.isfile()
        }
        text = information.pop("control").decode()
        entries = tuple(_entry(data, member, path.name) for member in data.getmembers())
    except (KeyError, ValueError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error, UnicodeDecodeError) as error:
        raise VerificationError(
            f"{path.name} cannot be read as a Debian package",
            why=f"{type(error).__name__}: {error}",
            next="Remove it from the store, and run the same command again: it is fetched anew.",
        ) from error
    return Deb(control=text, fields=next(paragraphs(text)), information=information, entries=entries)


def _members(payload: bytes) -> Iterator[tuple[str, memoryview]]:
    if not payload.startswith(_MAGIC):
        raise ValueError("no ar archive")
    view, place = memoryview(payload), len(_MAGIC)
    while place + _HEADER_BYTES <= len(view):
        header = bytes(view[place : place + _HEADER_BYTES])
        size = int(header[48:58])
        place += _HEADER_BYTES
        if place + size > len(view):
            raise EOFError("cut off")
        yield header[:16].decode("ascii").strip().rstrip("/"), view[place : place + size]
        place += size + size % 2


def _tar(members: Mapping[str, memoryview], stem: str) -> tarfile.TarFile:
    name = next((name for name in members if name.startswith(stem)), stem)
    packed = members[name]
    match name.removeprefix(stem):
        case "":
            unpacked = bytes(packed)
        case ".gz":
            unpacked = zlib.decompress(packed, wbits=31)
        case ".xz":
            unpacked = lzma.decompress(packed)
        case ".zst":
            import zstandard  # noqa: PLC0415 - Ubuntu's packages only

            with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)) as reader:
                unpacked = reader.read()
        case other:
            raise ValueError(f"packed in a way that is not known: {other}")
    return tarfile.open(fileobj=io.BytesIO(unpacked))


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo, package: str) -> Entry:
    path = member.name.removeprefix("./").strip("/")
    if ".." in path.split("/"):
        raise ValueError(f"a path that leaves its folder: {member.name}")
    owned = {"path": path, "mode": member.mode & 0o7777, "uid": member.uid, "gid": member.gid}
    if member.isdir():
        return Entry(kind=Kind.FOLDER, **owned)  # type: ignore[arg-type]
    if member.issym():
        return Entry(path=path, kind=Kind.SYMLINK, mode=0o777, uid=member.uid, gid=member.gid, target=member.linkname)
    if member.islnk():
        return Entry(kind=Kind.HARDLINK, target=member.linkname.removeprefix("./"), **owned)  # type: ignore[arg-type]
    if not member.isreg():
        raise ValueError(f"a device or a pipe: {member.name}")
    origin = f"{package}:{path}"
    return Entry(size=member.size, origin=origin, opener=partial(_content, archive, member), **owned)  # type: ignore[arg-type]


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """Return a member's bytes, from the archive in memory: an own view, so that threads do not share a place."""
    stream = archive.fileobj
    assert isinstance(stream, io.BytesIO)  # noqa: S101 - `_tar` made it
    return io.BytesIO(stream.getbuffer()[member.offset_data : member.offset_data + member.size])
