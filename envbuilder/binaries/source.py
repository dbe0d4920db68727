"""Bytes at an offset, wherever they lie: in a file, in memory, later in a zip or behind HTTP range requests.

Reading by position and not by mapping on purpose: a mapped file that another process truncates kills the reader
with SIGBUS, and mapped pages count as this process's memory. One ELF needs about ten small reads.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import TracebackType
    from typing import IO, Protocol, Self
else:
    Protocol = object

_STEP = 1 << 20


class OutOfRangeError(ValueError):
    """Bytes were asked for that are not there."""


class NotKeptError(OutOfRangeError):
    """Bytes were asked for that are there, but were let go by."""


class ByteSource(Protocol):
    """Something with a length that can be read at any place."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes. Raises OutOfRangeError."""


class MemorySource:
    """Bytes that are already here."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > len(self._data):
            raise OutOfRangeError(f"{length} bytes at {offset} of {len(self._data)}")
        return self._data[offset : offset + length]


class StreamedSource:
    """The parts of a stream that an ELF reader asks for, kept as it goes by: its start, some pieces, and its end.

    A library of 1.6 GB in a wheel need not be unpacked to a disk: its tables lie at its start, or, where patchelf
    moved them, at its end; its dynamic section lies where the program headers say. Other reads raise NotKeptError.
    """

    def __init__(self, stream: IO[bytes], size: int, *, ends: int, pieces: Callable[[ByteSource], Iterable[tuple[int, int]]]) -> None:
        """`ends`: bytes to keep at either end. `pieces` chooses further (offset, length)s, given the start."""
        self._size = size
        start = _exactly(stream, min(size, ends))
        self._kept = [(0, start)]
        position = len(start)
        for at, length in sorted([*pieces(MemorySource(bytes(start))), (max(0, size - ends), min(ends, size))]):
            first, end = max(at, position), min(at + length, size)
            if first >= end:
                continue
            if first == position:
                self._kept[-1][1].extend(_exactly(stream, end - first))
            else:
                _skip(stream, first - position)
                self._kept.append((first, _exactly(stream, end - first)))
            position = end

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        for at, data in self._kept:
            if at <= offset <= offset + length <= at + len(data):
                return bytes(data[offset - at : offset - at + length])
        raise NotKeptError(f"{length} bytes at {offset} were not kept")


class FileSource:
    """A file, open as long as a `with` block lasts; it may be entered again."""

    def __init__(self, path: Path | str) -> None:
        self._path, self._fd, self._size = path, -1, 0

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise OutOfRangeError(f"{length} bytes at {offset} of {self._size}")
        data = os.pread(self._fd, length, offset)
        if len(data) != length:
            data += self._rest(offset + len(data), length - len(data))
        return data

    def _rest(self, offset: int, length: int) -> bytes:
        """Go on after a short read (2 GiB limit of one call, a signal), or say that the file has shrunk."""
        pieces = []
        while length:
            piece = os.pread(self._fd, length, offset)
            if not piece:
                raise OutOfRangeError(f"{length} bytes at {offset}: the file became shorter")
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return b"".join(pieces)

    def __enter__(self) -> Self:
        # O_NONBLOCK: a named pipe called x.so must not hang the walk of an environment.
        self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._size = os.fstat(self._fd).st_size
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._fd)


def _exactly(stream: IO[bytes], length: int) -> bytearray:
    data = bytearray()
    while len(data) < length:
        piece = stream.read(min(_STEP, length - len(data)))
        if not piece:
            raise OutOfRangeError("the stream ends too early")
        data += piece
    return data


def _skip(stream: IO[bytes], length: int) -> None:
    while length > 0:
        piece = stream.read(min(_STEP, length))
        if not piece:
            raise OutOfRangeError("the stream ends too early")
        length -= len(piece)
