"""Reading files that anyone may have put there: what is no regular file is not opened, and every read is bounded."""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

LIMIT = 4 << 20
_PIECE = 1 << 16


def opened(path: str | Path) -> BinaryIO:
    """Open a regular file, unbuffered. Raises OSError, for anything else too: a FIFO would block, a device never end."""
    return os.fdopen(_handle(path)[0], "rb", buffering=0)


def data(path: str | Path, *, limit: int = LIMIT) -> bytes:
    """Return the first `limit` bytes of a file, b"" when it cannot be read."""
    try:
        handle, size = _handle(path)
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return b""
    try:
        # /proc files say they have no size and answer in pieces, those of /sys say 4096: read until the end, or the limit.
        found = piece = os.read(handle, min(size or _PIECE, limit))
        while piece and len(found) < limit and len(found) != size:
            piece = os.read(handle, _PIECE)
            found += piece
        return found[:limit]
    except OSError:  # it is a folder, its disk is broken, its process has gone
        return b""
    finally:
        os.close(handle)


def text(path: str | Path, *, limit: int = LIMIT) -> str:
    """Return the first `limit` bytes of a file as text, "" when it cannot be read."""
    return data(path, limit=limit).decode(errors="replace")


def names(folder: str | Path) -> list[str]:
    """Return the names in a folder, in order; none where it cannot be read."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - names are wanted, not paths
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return []


def _handle(path: str | Path) -> tuple[int, int]:
    """Return a regular file's descriptor, and the size that it says it has."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return handle, status.st_size
