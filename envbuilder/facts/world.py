"""The world that readers see: a root folder and an environment of variables, both given, so that a simulated machine is one.

Every read is bounded. Paths inside the root are looked up under it, absolute links included: a simulated machine's
`/usr/local/cuda -> /usr/local/cuda-13.0` leads to its own folder, not to the host's.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from pathlib import Path

from envbuilder import reading
from envbuilder.values import made, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_READ_LIMIT = 1 << 20
_MAX_LINKS = 16
_INSTALLED = (b"\nStatus: install ok installed\n", b"\nStatus: hold ok installed\n")  # `apt-mark hold` keeps what is installed


def _here() -> Path:
    try:
        return Path.cwd()
    except OSError:  # it was removed under us
        return Path("/nonexistent")


@value
class World:
    """`live` when the root is this machine's own: only then are programs started and sockets opened."""

    root: Path = Path("/")
    variables: Mapping[str, str] = made(default_factory=lambda: os.environ)
    directory: Path = made(default_factory=_here)
    uid: int = made(default_factory=os.getuid)
    gids: tuple[int, ...] = made(default_factory=lambda: (os.getgid(), *os.getgroups()))

    @functools.cached_property
    def live(self) -> bool:
        return self.root == Path("/")

    @functools.cached_property
    def debian_packages(self) -> dict[str, bytes]:
        """What dpkg says of each package that is installed (/var/lib/dpkg/status, a megabyte), by name."""
        # One that was removed stays in the file, also beside its like for another architecture.
        return {
            stanza[9 : stanza.find(b"\n")].decode(errors="replace"): stanza
            for stanza in self.data("/var/lib/dpkg/status", limit=32 << 20).split(b"\n\n")
            if stanza.startswith(b"Package: ") and any(status in stanza for status in _INSTALLED)
        }

    def debian_version(self, name: str) -> str:
        """Return the version of a Debian package, "" if it is not installed."""
        lines = self.debian_packages.get(name, b"").split(b"\n")
        return next((line[9:].strip().decode(errors="replace") for line in lines if line.startswith(b"Version: ")), "")

    @property
    def home(self) -> Path:
        return Path(self.variables.get("HOME") or ("/root" if self.uid == 0 else "/nonexistent"))

    def at(self, path: str | Path) -> Path:
        """Return where a path of this world lies on the disk, links inside the root followed as the root sees them."""
        if self.live:
            return Path(path)
        parts = [part for part in str(path).split("/") if part not in {"", "."}]
        place, links = self.root, 0
        while parts:
            part = parts.pop(0)
            if part == "..":
                place = place.parent if place != self.root else place
                continue
            place /= part
            if os.path.islink(place) and links < _MAX_LINKS:  # noqa: PTH114 - False, not an error, for a name that is too long
                links += 1
                goal = str(place.readlink())
                place = self.root if goal.startswith("/") else place.parent
                parts = [piece for piece in goal.split("/") if piece not in {"", "."}] + parts
        return place

    def text(self, path: str | Path, *, limit: int = _READ_LIMIT) -> str:
        """Return a file's text, "" when it cannot be read. What is no regular file (a FIFO would block) is not opened."""
        return self.data(path, limit=limit).decode(errors="replace")

    def data(self, path: str | Path, *, limit: int = _READ_LIMIT) -> bytes:
        return reading.data(path if self.live else self.at(path), limit=limit)

    def tail(self, path: str | Path, size: int) -> str:
        """Return the last `size` bytes of a file as text."""
        try:
            with reading.opened(self.at(path)) as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - size))
                return file.read(size).decode(errors="replace")
        except OSError:
            return ""

    def line(self, path: str | Path) -> str:
        """Return a small file's text without the whitespace and zero bytes around it."""
        return self.text(path, limit=4096).strip("\0\n\t ")

    def number(self, path: str | Path) -> int | None:
        text = self.line(path)
        return int(text) if len(text) <= 20 and text.removeprefix("-").isdecimal() else None

    def names(self, path: str | Path) -> list[str]:
        return reading.names(path if self.live else self.at(path))

    def exists(self, path: str | Path) -> bool:
        try:
            return self.at(path).exists()
        except OSError:
            return False

    def modified(self, path: str | Path) -> float:
        """Return when a file was changed last, 0 when that cannot be told."""
        try:
            return self.at(path).stat().st_mtime
        except OSError:
            return 0.0

    def matching(self, folder: str, pattern: str, *, start: str | tuple[str, ...] = "") -> Iterator[str]:
        """Yield the full names (in this world) of a folder's entries whose whole name matches; it begins with `start`, which is quick to tell."""
        for name in self.names(folder):
            if name.startswith(start) and re.fullmatch(pattern, name):
                yield f"{folder.rstrip('/')}/{name}"

    def which(self, name: str) -> str:
        """Return the first executable of that name on PATH, "" if none."""
        for folder in self.variables.get("PATH", "").split(":"):
            candidate = f"{folder}/{name}"
            if folder and self.executable(candidate):
                return candidate
        return ""

    def executable(self, path: str) -> bool:
        """Whether a path leads to a file that may be run."""
        try:
            mode = os.stat(path if self.live else self.at(path)).st_mode  # noqa: PTH116 - 8 names in each folder of PATH
        except OSError:
            return False
        return stat.S_ISREG(mode) and bool(mode & 0o111)

    def may_write(self, path: Path) -> bool:
        """Whether this user may write there, by the mode bits and the mount (access(2) when the world is live)."""
        place = self.at(path)
        if self.live:
            return os.access(place, os.W_OK)
        try:
            status = place.stat()
        except OSError:
            return False
        if self.uid == 0:
            return True
        shift = 6 if status.st_uid == self.uid else 3 if status.st_gid in self.gids else 0
        return bool(status.st_mode >> shift & 0o2)
