"""What the store holds, and removing what no lock needs any more."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import filelock

from envbuilder.files import remove_tree
from envbuilder.uv import run_uv

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from envbuilder.store.cache import Store

_DAY_S = 24 * 3600
_PARTIAL_AGE_S = _DAY_S  # younger ones may be a download at work
_COMPILE_AGE_S = 30 * _DAY_S  # a workspace is an hour's work, and builds go on in it


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Files and bytes of one part of the store. Bytes that an environment shares by hard links are counted here."""

    part: str
    files: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a collection removed."""

    files: int
    bytes: int


def usage(store: Store) -> list[Usage]:
    """Measure every part of the store."""
    parts = sorted(entry.name for entry in os.scandir(store.root) if entry.is_dir()) if store.root.is_dir() else []
    return [_measure(store.root / part) for part in parts]


def collect(store: Store, needed: Collection[str]) -> Collected:
    """Remove every file whose sha256 is not in `needed`, old partial downloads, layers and compiles, and all of uv's unpacked wheels.

    uv's part is only a cache of what `files` holds: it is made again in seconds. Environments that were built stay whole.
    """
    files = removed = 0
    for path in _collectable(store.root, needed):
        measured = _measure(path)
        files, removed = files + measured.files, removed + measured.bytes
        remove_tree(path)
    remove_tree(store.root / "links")
    if store.uv_cache.is_dir():
        measured = _measure(store.uv_cache)
        run_uv(["cache", "clean"], cache=store.uv_cache, what="cleaning uv's cache")
        files, removed = files + measured.files, removed + measured.bytes
    return Collected(files=files, bytes=removed)


def _collectable(root: Path, needed: Collection[str]) -> Iterator[Path]:
    """Yield what may go; each is gone before the next is asked for."""
    yield from (folder for folder in _content_folders(root / "files") if folder.name not in needed)
    yield from (path for path in _entries(root / "partial") if time.time() - path.stat().st_mtime > _PARTIAL_AGE_S)
    yield from (path for path in _entries(root / "verify") if time.time() - path.stat().st_mtime > _PARTIAL_AGE_S)  # of a killed one
    for folder in sorted({path.with_suffix("") for path in _entries(root / "compile")}):
        # A second build that was killed has left its folder: it is of use to the very next build, or to none.
        if _age(folder) > (_PARTIAL_AGE_S if folder.name.startswith("verify-") else _COMPILE_AGE_S):
            with _unused(folder) as unused:
                if unused and folder.is_dir():
                    yield folder
    blobs = root / "layers/blobs"
    yield from (path for path in _entries(blobs) if path.name not in needed and _is_left(path))
    yield from (path for path in _entries(root / "layers") if path.suffix == ".json" and not _has_layer(path, blobs))


def _is_left(layer: Path) -> bool:
    """Whether a layer, or what a killed build left of one, is in no output folder: there it would have a second name."""
    try:
        state = layer.lstat()
    except FileNotFoundError:  # a build at work has just given it its name
        return False
    return state.st_nlink == 1 and time.time() - state.st_mtime > _PARTIAL_AGE_S


def _has_layer(record: Path, blobs: Path) -> bool:
    """Whether the layer that a record is of is there; others in that folder are of no layer, and stay."""
    try:
        digest: str = json.loads(record.read_bytes())["blob"]["digest"]
        return (blobs / digest.removeprefix("sha256:")).is_file()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return True


def _age(folder: Path) -> float:
    """Return the seconds since anything was written right in a workspace, or it was made; if it is gone, since its lock was."""
    written = (folder, *folder.iterdir()) if folder.is_dir() else (_lock_of(folder),)
    return time.time() - max(path.lstat().st_mtime for path in written)


@contextlib.contextmanager
def _unused(folder: Path) -> Iterator[bool]:
    """Hold a workspace that no build is at work in, and remove its lock with it; False while one is."""
    lock = filelock.FileLock(_lock_of(folder))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
        _lock_of(folder).unlink(missing_ok=True)  # still held: a build that comes meanwhile sees that its lock is gone, and makes one
    finally:
        lock.release()


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _content_folders(root: Path) -> Iterator[Path]:
    for prefix in _entries(root):
        yield from _entries(prefix)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _measure(folder: Path) -> Usage:
    if not folder.is_dir():
        return Usage(part=folder.name, files=1, bytes=folder.lstat().st_size)
    sizes = [os.lstat(os.path.join(where, name)).st_size for where, _, names in os.walk(folder) for name in names]  # noqa: PTH118 - 100,000 of them
    return Usage(part=folder.name, files=len(sizes), bytes=sum(sizes))
