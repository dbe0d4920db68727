"""Layers: a tree as a normalised tar, compressed, kept in the store under the hash of what it was made from.

<root>/layers/blobs/<sha256>   a compressed layer, whole: it got this name by a rename
<root>/layers/<key>.json       which blob the inputs with that key make, and what must still be true of it
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import secrets
import struct
import tarfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any

import zstandard

from envbuilder.errors import ConfigurationError, VerificationError
from envbuilder.files import digest_of, storage_errors, write_json
from envbuilder.images.tree import EPOCH, Kind
from envbuilder.images.wheels import sound_wheels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from envbuilder.images.tree import Entry

REVISION = 1  # raised when the same inputs come to make other bytes
MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar+zstd"
_BUFFER = 1 << 20
_TYPES = {Kind.FILE: tarfile.REGTYPE, Kind.FOLDER: tarfile.DIRTYPE, Kind.SYMLINK: tarfile.SYMTYPE, Kind.HARDLINK: tarfile.LNKTYPE}


@dataclass(frozen=True, kw_only=True)
class Compression:
    """The compressor of a lock: the same version of its library, at the same level, makes the same bytes."""

    level: int
    library: str

    def check(self) -> None:
        """Raise ConfigurationError where this process has another version than the lock names."""
        here = ".".join(map(str, zstandard.ZSTD_VERSION))
        if here != self.library:
            raise ConfigurationError(
                f"the lock's images are compressed with libzstd {self.library}; here is {here}",
                why="Another version writes other bytes, and images would have other digests.",
                next="Use the envbuilder that locked, or run `envbuilder lock --images`.",
            )


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A written layer: digests as `sha256:…`, of the compressed bytes and of the tar; `size` and `unpacked` in bytes."""

    digest: str
    size: int
    diff_id: str
    unpacked: int
    files: int
    media_type: str = MEDIA_TYPE


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer to be: `inputs` (JSON) is all that its bytes depend on, `make` gives its tree, readable until the stack closes.

    Or one that is there already and stays as it is (`ready`): its blob is in the store, and nothing is made.
    """

    name: str
    inputs: Any
    make: Callable[[ExitStack], Mapping[str, Entry]] = lambda _: {}
    ready: Blob | None = None

    def key(self, compression: Compression) -> str:
        return digest_of({"revision": REVISION, "epoch": EPOCH, "zstd": [compression.level, compression.library], "inputs": self.inputs})


@dataclass(frozen=True)
class LayerStore:
    """The layers of a store, shared by every build of this user."""

    root: Path

    def path(self, digest: str) -> Path:
        return self.root / "layers" / "blobs" / digest.removeprefix("sha256:")

    def find(self, key: str) -> Blob | None:
        """Return what was made of these inputs, if its blob is there and nobody wrote to it since."""
        try:
            record = json.loads((self.root / "layers" / f"{key}.json").read_bytes())
            blob = Blob(**record["blob"])
            state = self.path(blob.digest).stat()
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return blob if (state.st_size, state.st_mtime_ns) == (blob.size, record["mtime_ns"]) else None

    def get(self, layer: Layer, compression: Compression) -> tuple[Blob, bool]:
        """Return a layer's blob, and whether it had to be made."""
        if layer.ready:
            return layer.ready, False
        key = layer.key(compression)
        if blob := self.find(key):
            return blob, False
        with storage_errors(self.root), ExitStack() as stack:
            (self.root / "layers" / "blobs").mkdir(parents=True, exist_ok=True)
            with sound_wheels(f"layer {layer.name!r} cannot be made"):
                blob, mtime = self._write(layer.make(stack).values(), compression)
            write_json(self.root / "layers" / f"{key}.json", {"layer": layer.name, "blob": asdict(blob), "mtime_ns": mtime})
        return blob, True

    def _write(self, entries: Iterable[Entry], compression: Compression) -> tuple[Blob, int]:
        """Write a layer; return it and its time, taken before it has a name by which somebody could write to it or remove it."""
        temporary = self.root / "layers" / "blobs" / f".{secrets.token_hex(8)}"
        try:
            with temporary.open("wb") as goal:
                sink = _Sink(goal, compression.level)
                with io.BufferedWriter(sink, _BUFFER) as buffered:
                    files = write_tar(entries, buffered)
                blob = sink.finish(files)
                goal.flush()
                os.fsync(goal.fileno())
            temporary.chmod(0o444)  # in an output folder it may be a second name of the same file
            mtime = temporary.stat().st_mtime_ns
            temporary.replace(self.path(blob.digest))
        finally:
            temporary.unlink(missing_ok=True)
        return blob, mtime


def unpacked(packed: IO[bytes], media_type: str, *, seen: Callable[[bytes], object] = lambda _: None) -> Unpacked:
    """Return a layer's tar as it is read; `seen` gets its bytes on the way. Raises VerificationError: packed in a way that is not known."""
    match media_type.rpartition("tar")[2].lstrip("+."):
        case "zstd":
            return Unpacked(zstandard.ZstdDecompressor().stream_reader(packed, read_size=_BUFFER, read_across_frames=True), seen)
        case "gzip":
            return Unpacked(gzip.GzipFile(fileobj=packed), seen)
        case "":
            return Unpacked(packed, seen)
        case _:
            raise VerificationError(f"a layer is of a kind that is not known: {media_type}")


class Unpacked(io.RawIOBase):
    """A stream that shows its bytes to somebody while they are read."""

    def __init__(self, source: Any, seen: Callable[[bytes], object]) -> None:  # noqa: ANN401 - readers of three libraries
        self._source, self._seen = source, seen

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._source.read(size)
        self._seen(data)
        return data


class _Sink(io.RawIOBase):
    """Takes a tar, writes it compressed, and hashes both."""

    def __init__(self, goal: IO[bytes], level: int) -> None:
        self._plain, self._packed = hashlib.sha256(), hashlib.sha256()
        self._goal, self._compressor = goal, zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj()
        self._unpacked = self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:  # noqa: ANN401 - the buffer protocol has no type in 3.11
        self._plain.update(data)
        self._unpacked += len(data)
        self._put(self._compressor.compress(data))
        return len(data)

    def finish(self, files: int) -> Blob:
        self._put(self._compressor.flush())
        return Blob(
            digest=f"sha256:{self._packed.hexdigest()}",
            size=self._size,
            diff_id=f"sha256:{self._plain.hexdigest()}",
            unpacked=self._unpacked,
            files=files,
        )

    def _put(self, data: bytes) -> None:
        self._goal.write(data)
        self._packed.update(data)
        self._size += len(data)


def write_tar(entries: Iterable[Entry], goal: IO[bytes] | io.BufferedWriter) -> int:
    """Write a tree as a tar: in the order given, without names of users, with one time. Return the number of files."""
    count = place = 0
    for entry in entries:
        place += goal.write(_header(entry))
        if entry.kind is Kind.FILE:
            count += 1
            with entry.open() as content:
                place += _copy(content, entry.size, goal)
            place += goal.write(bytes(-place % tarfile.BLOCKSIZE))
    # Two empty blocks end a tar, whose length is a multiple of a tape's record.
    goal.write(bytes(2 * tarfile.BLOCKSIZE + -(place + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE))
    return count


def _copy(content: IO[bytes], size: int, goal: IO[bytes] | io.BufferedWriter) -> int:
    left = size
    while left:
        chunk = content.read(min(left, _BUFFER))
        if not chunk:
            raise EOFError(f"{left} of {size} bytes are missing")
        left -= goal.write(chunk)
    return size


# POSIX ustar: name, mode, uid, gid, size, time, checksum, type, link, magic, user, group, device, prefix
_USTAR = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_LONGEST_NAME, _LARGEST_FILE, _LARGEST_ID = 100, 8 << 30, 8**7


def _header(entry: Entry) -> bytes:
    """Return an entry's header, as `tarfile` would; packed here where it is a plain one, which takes a fifth of the time."""
    name, link = (
        text.encode(errors="surrogateescape") for text in (f"{entry.path}/" if entry.kind is Kind.FOLDER else entry.path, entry.target)
    )
    size = entry.size if entry.kind is Kind.FILE else 0
    plain = (name + link).isascii() and max(len(name), len(link)) <= _LONGEST_NAME
    if not plain or size >= _LARGEST_FILE or max(entry.uid, entry.gid) >= _LARGEST_ID:
        return tar_header(entry).tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    numbers = (b"%07o" % entry.mode, b"%07o" % entry.uid, b"%07o" % entry.gid, b"%011o" % size, b"%011o" % EPOCH, b" " * 8)
    packed = _USTAR.pack(name, *numbers, _TYPES[entry.kind], link, b"ustar\x0000", b"", b"", b"", b"", b"")
    return b"%b%06o\0%b" % (packed[:148], sum(packed), packed[155:])


def tar_header(entry: Entry) -> tarfile.TarInfo:
    header = tarfile.TarInfo(entry.path)
    header.type, header.mode, header.uid, header.gid = _TYPES[entry.kind], entry.mode, entry.uid, entry.gid
    header.size = entry.size if entry.kind is Kind.FILE else 0
    header.linkname, header.mtime = entry.target, EPOCH
    return header
