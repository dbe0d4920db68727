"""The content-addressed store: one folder per sha256, shared by every build of this user.

<root>/files/<ab>/<sha256>/<filename>   a verified file; it got this name by a rename, so it is whole
<root>/partial/<sha256>                 a download at work, or interrupted: it is resumed
<root>/links/<digest>/                  a flat folder of links to one environment's wheels, for uv
<root>/verify/                          images at check, until the check ends
<root>/uv/                              uv's own cache of unpacked wheels
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import platformdirs

from envbuilder.errors import ConfigurationError
from envbuilder.files import digest_of, remove_tree, sha256_file, storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def default_root() -> Path:
    """Return the store's folder: ENVBUILDER_CACHE, or the user's cache folder."""
    return Path(os.environ.get("ENVBUILDER_CACHE") or platformdirs.user_cache_path("envbuilder")).absolute()


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A file to be had: the project it belongs to, its name, its sha256 in hex, its bytes (0: unknown)."""

    project: str
    filename: str
    sha256: str
    size: int = 0


@dataclass(frozen=True)
class Store:
    """A store at `root`. Files in it are never changed, only added and collected."""

    root: Path

    @property
    def uv_cache(self) -> Path:
        return self.root / "uv"

    def path(self, sha256: str, filename: str) -> Path:
        """Where the file with that hash is, or would be."""
        if "/" in filename or filename.startswith("."):
            raise ConfigurationError(f"not a file name: {filename!r}")
        return self.root / "files" / sha256[:2] / sha256 / filename

    def find(self, sha256: str, filename: str, *, size: int = 0) -> Path | None:
        """Return the file if the store has it. Its bytes were proved when it came in; a wrong size is noticed here."""
        path = self.path(sha256, filename)
        try:
            found = path.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        if size and found != size:
            remove_tree(path.parent)
            return None
        return path

    def evict_damaged(self, files: Iterable[tuple[str, str]]) -> list[str]:
        """Hash the given (sha256, filename) pairs again, remove those that no longer fit, and return their names."""
        damaged = []
        for sha256, filename in files:
            path = self.path(sha256, filename)
            if path.exists() and sha256_file(path) != sha256:
                remove_tree(path.parent)
                damaged.append(filename)
        return damaged

    @contextlib.contextmanager
    def incoming(self, sha256: str) -> Iterator[Path]:
        """Yield the place where a file may be put together; no other process works on the same file meanwhile."""
        partial = self.root / "partial" / sha256
        with storage_errors(partial):
            partial.parent.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(f"{partial}.lock")
            lock.acquire()
        try:
            yield partial
        finally:
            lock.release()

    def admit(self, partial: Path, sha256: str, filename: str) -> Path:
        """Move a file whose hash was checked by the caller to its place."""
        goal = self.path(sha256, filename)
        with storage_errors(goal):
            goal.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(goal)
        return goal

    def link_folder(self, files: Iterable[tuple[str, str]]) -> Path:
        """Return a flat folder of symbolic links to the given (sha256, filename) pairs.

        The folder is named by its content: uv's cache knows a local wheel by its path, so the path must not change.
        The links are relative: a store may be moved.
        """
        pairs = sorted(files)
        folder = self.root / "links" / digest_of(pairs)[:16]
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            present = {entry.name for entry in os.scandir(folder)}
            for sha256, filename in pairs:
                if filename not in present:
                    with contextlib.suppress(FileExistsError):  # another build is making the same folder
                        (folder / filename).symlink_to(os.path.relpath(self.path(sha256, filename), folder))
        return folder
