"""A file tree as it stands in an image: plain entries, in one order, that know how to give their bytes.

Nothing here depends on the disk it is written from: owner, mode and time are what the entry says, not what a umask made.
"""

from __future__ import annotations

import enum
import hashlib
import io
import stat
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# 2020-01-01T00:00:00Z. Not 1970: what is zipped again (a wheel built from installed files) cannot be older than 1980.
EPOCH = 1577836800
Tree: TypeAlias = "Mapping[str, Entry]"


class Kind(enum.StrEnum):
    FILE = "file"
    FOLDER = "folder"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One path, without a leading slash. `target` is a link's; a hard link's is a path of the same layer.

    `origin` tells content apart without reading it: two entries with one origin have the same bytes.
    """

    path: str
    kind: Kind = Kind.FILE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    target: str = ""
    origin: str = ""
    opener: Callable[[], IO[bytes]] | None = None

    def open(self) -> IO[bytes]:
        return self.opener() if self.opener else io.BytesIO()

    @property
    def looks(self) -> tuple[object, ...]:
        """All of an entry but its bytes."""
        return (self.path, self.kind, self.mode, self.uid, self.gid, self.size, self.target)


def file(path: str, content: bytes | str, *, mode: int = 0o644, uid: int = 0, gid: int = 0) -> Entry:
    """Return a file whose bytes are at hand."""
    payload = content.encode() if isinstance(content, str) else content
    return Entry(
        path=path,
        mode=mode,
        uid=uid,
        gid=gid,
        size=len(payload),
        origin=f"sha256:{hashlib.sha256(payload).hexdigest()}",
        opener=lambda: io.BytesIO(payload),
    )


def folder(path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Entry:
    return Entry(path=path, kind=Kind.FOLDER, mode=mode, uid=uid, gid=gid)


def symlink(path: str, target: str) -> Entry:
    return Entry(path=path, kind=Kind.SYMLINK, mode=0o777, target=target)


def plain_mode(mode: int, *, executable: bool = False) -> int:
    """Return 755 for what may be executed, 644 for the rest: what a wheel's builder had for a umask is nobody's business."""
    return 0o755 if executable or mode & stat.S_IXUSR else 0o644


def whole(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Return a layer's tree: sorted, with every parent folder in it, so that no engine has to invent one."""
    found = {entry.path: entry for entry in entries}
    for path in tuple(found):
        parent = path.rpartition("/")[0]
        while parent and parent not in found:
            found[parent] = folder(parent)
            parent = parent.rpartition("/")[0]
    # By components: a folder comes before what is in it, and "a-b" does not come between "a" and "a/b".
    return {path: found[path] for path in sorted(found, key=lambda path: path.split("/"))}


def difference(upper: Mapping[str, Entry], lower: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return what a layer over `lower` must hold so that `upper` is seen. Nothing that is in `lower` may be gone."""
    gone = lower.keys() - upper.keys()
    assert not gone, f"a layer cannot take away {sorted(gone)[:3]}"  # noqa: S101 - ours to know: packages are only added
    changed = [entry for path, entry in upper.items() if path not in lower or not _same(entry, lower[path])]
    return whole(changed)


def _same(one: Entry, other: Entry) -> bool:
    return one.looks == other.looks and one.origin == other.origin
