"""Writing files so that a reader sees the old bytes or the new ones, never half of either."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envbuilder.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK = 1 << 20


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the disk says into an error that names the place and the remedy."""
    try:
        yield
    except OSError as error:
        match error.errno:
            case errno.ENOSPC | errno.EDQUOT:
                raise disk_full(path) from error
            case errno.EROFS | errno.EACCES | errno.EPERM | errno.ENOTDIR | errno.EEXIST | errno.EISDIR | errno.ENAMETOOLONG | errno.ELOOP:
                place = f": {error.filename}" if error.filename else ""
                raise StorageError(
                    f"cannot write {path}",
                    why=f"{error.strerror or error}{place}",
                    next="Choose a folder that you may write to, with --out or ENVBUILDER_CACHE.",
                ) from error
            case _:
                raise


@contextlib.contextmanager
def vanishing() -> Iterator[None]:
    """Say of a file that was there a moment ago that somebody took it away: for work on files that were all seen before."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(
            f"a file has vanished while it was used: {error.filename or error}",
            why="Something removes files there: `envbuilder cache gc` in another shell, or a cleaner of temporary files.",
            next="Run the same command again: what is missing is fetched or made anew.",
        ) from error


def existing(path: Path) -> Path:
    """Return a path, or the nearest folder above it that is there."""
    return next((place for place in (path, *path.parents) if place.exists()), Path("/"))


def free_bytes(path: Path) -> int:
    """Return the bytes that are free where a path is or would be."""
    return shutil.disk_usage(existing(path)).free


def disk_full(path: Path) -> StorageError:
    """The error for a full disk, with the numbers."""
    usage = shutil.disk_usage(existing(path))
    return StorageError(
        f"the disk is full: {path}",
        why=f"{human_size(usage.free)} of {human_size(usage.total)} are free there.",
        next="Free some space (`envbuilder cache gc` removes what no lock needs), then run the same command again: it goes on from here.",
    )


def write_atomic(path: Path, data: str | bytes, *, mode: int = 0o644) -> None:
    """Write beside the goal, flush to the disk, rename."""
    payload = data.encode() if isinstance(data, str) else data
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(mode)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def canonical_json(value: Any) -> bytes:  # noqa: ANN401 - whatever JSON can hold
    """Serialize with one spelling only, so that equal values have equal hashes (RFC 8785 in spirit; no floats are used).

    A path that is not UTF-8 comes as lone surrogates (PEP 383); it has a hash as well.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")


def parse_json(payload: bytes) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Read JSON that somebody sent. Raises ValueError, for what is nested too deeply as well: `json` has another error for that."""
    try:
        return json.loads(payload)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def digest_of(value: Any) -> str:  # noqa: ANN401 - whatever JSON can hold
    """Return the sha256, in hex, of a JSON value in its canonical spelling."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_file(path: Path) -> str:
    """Return a file's sha256 in hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def remove_tree(path: Path) -> None:
    """Remove a file or a folder, if it is there; never follow a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def human_size(size: float) -> str:
    """Spell bytes in decimal units, as package indexes and disks do: 191.8 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.95 or unit == "GB":  # 999,960 bytes are 1.0 MB, not 1000.0 kB
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError
