"""The files of an image, whoever made it: {path: (kind, mode, uid, gid, target of a link, sha256)}; a hard link is the file it leads to."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from envbuilder.images.engines import DockerEngine
    from envbuilder.images.oci import Image, Layout

Files: TypeAlias = "dict[str, tuple[object, ...]]"
_BUFFER = 1 << 20
# What Docker itself lays into every container.
_DOCKER_S = {
    ".dockerenv",
    "dev",
    "dev/console",
    "dev/pts",
    "dev/shm",
    "proc",
    "sys",
    "etc/hostname",
    "etc/hosts",
    "etc/resolv.conf",
    "etc/mtab",
}


def in_tar(stream: IO[bytes], found: Files) -> Files:
    """Read a tar as it comes, over what lower layers had."""
    with tarfile.open(fileobj=stream, mode="r|", bufsize=_BUFFER) as archive:
        for member in archive:
            path = member.name.removeprefix("./").rstrip("/")
            if member.islnk():
                found[path] = found[member.linkname.removeprefix("./")]
            elif path not in {"", "."}:
                found[path] = seen(member, archive.extractfile(member) if member.isreg() else None)
    return found


def seen(member: tarfile.TarInfo, content: IO[bytes] | None) -> tuple[object, ...]:
    digest = hashlib.file_digest(content, "sha256").hexdigest() if content and member.isreg() else ""  # type: ignore[arg-type]
    return (member.type, member.mode & 0o7777, member.uid, member.gid, member.linkname, digest)


def of_layout(layout: Layout, image: Image) -> Files:
    """Read the files of an image as we wrote it: its layers, one over the other."""
    found: Files = {}
    for descriptor in image.layers:
        with layout.blob(descriptor.digest).open("rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed) as plain:
            in_tar(plain, found)
    return found


def of_docker(engine: DockerEngine, tag: str) -> Files:
    container = engine.client.containers.create(tag, command="x")
    try:
        found = in_tar(io.BufferedReader(_Chunks(container.export()), _BUFFER), {})
    finally:
        container.remove()
    return without_docker_s(found)


def without_docker_s(files: Files) -> Files:
    return {path: value for path, value in files.items() if path not in _DOCKER_S}


def of_folder(root: Path) -> Files:
    """Read the files below a folder, where buildah has mounted a container."""
    with subprocess.Popen(["tar", "-C", root, "--numeric-owner", "-c", "."], stdout=subprocess.PIPE) as archive:
        assert archive.stdout is not None
        found = in_tar(archive.stdout, {})
    assert archive.returncode == 0
    return found


class _Chunks(io.RawIOBase):
    """Makes a file of the pieces that Docker's SDK gives."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self._rest = iter(chunks), b""

    def readable(self) -> bool:
        return True

    def readinto(self, goal: Any) -> int:
        self._rest = self._rest or next(self._chunks, b"")
        size = min(len(goal), len(self._rest))
        goal[:size], self._rest = self._rest[:size], self._rest[size:]
        return size
