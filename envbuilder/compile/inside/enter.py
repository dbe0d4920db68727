"""Go into an isolated place and run a program there: no network, fixed paths, nothing of the machine but its /usr.

Runs by its path under a bare interpreter, with one argument, a JSON file:
{"way": isolation.Way's value, "root": folder to build the place in, "binds": [[from, to, writable], …],
 "folder": where to start, "variables": {…}, "command": […]}. A user namespace gives the right to do so
(user_namespaces(7)); without, the caller must be root; a container is there already.
Exit code 97: the place could not be made; 98: it has a network.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import stat
import sys
from pathlib import Path
from typing import Any

NO_PLACE, NETWORK = 97, 98
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWNET = 0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x40000000  # linux/sched.h
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _NOATIME, _NODIRATIME, _BIND, _REC, _PRIVATE, _RELATIME = (
    1, 2, 4, 8, 32, 1024, 2048, 4096, 16384, 1 << 18, 1 << 21,
)  # fmt: skip # linux/mount.h
_LIBC = ctypes.CDLL(None, use_errno=True)
# Of /etc only what the loader and Debian's links to compilers need: no resolver, no user's settings.
ETC = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "passwd", "group")
TOP = ("usr", "bin", "sbin", "lib", "lib64", "lib32", "libx32")
_WORLD, _LOOPBACK = "192.0.2.1", "127.0.0.1"  # the first is kept for documentation (RFC 5737)
_DEVICES = ("null", "zero", "full", "random", "urandom")


def checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, goal: str, kind: str, flags: int, data: str = "") -> None:
    checked(_LIBC.mount(source.encode(), goal.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()), f"mount {source} on {goal}")


def bind(source: Path, goal: Path, *, writable: bool) -> None:
    """Show a file or folder at another place; what lies mounted below it comes along."""
    if source.is_dir():
        goal.mkdir(parents=True, exist_ok=True)
    else:
        goal.parent.mkdir(parents=True, exist_ok=True)
        goal.touch()
    mount(str(source), str(goal), "", _BIND | _REC)
    if not writable:
        # A user namespace may not lift the limits that a mount came with, so they are said again.
        mount("", str(goal), "", _BIND | _REMOUNT | _RDONLY | _limits(goal))


def _limits(path: Path) -> int:
    flags = os.statvfs(path).f_flag
    known = {os.ST_NOSUID: _NOSUID, os.ST_NODEV: _NODEV, os.ST_NOEXEC: _NOEXEC, os.ST_NOATIME: _NOATIME}
    known |= {os.ST_NODIRATIME: _NODIRATIME, os.ST_RELATIME: _RELATIME}
    return sum(ours for theirs, ours in known.items() if flags & theirs)


def separate(*, users: bool) -> None:
    uid, gid, parent = os.getuid(), os.getgid(), os.getppid()
    checked(_LIBC.unshare(_NEWNS | _NEWNET | _NEWIPC | _NEWUTS | (_NEWUSER if users else 0)), "unshare")
    if users:
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1", encoding="ascii")
    _LIBC.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: a change of credentials has cleared it
    if os.getppid() != parent:
        os._exit(1)
    name = b"envbuilder"
    checked(_LIBC.sethostname(name, len(name)), "sethostname")


def furnish(root: Path, binds: list[tuple[str, str, bool]]) -> None:
    mount("none", "/", "", _REC | _PRIVATE)
    mount("tmpfs", str(root), "tmpfs", _NOSUID | _NODEV, "mode=755,size=1m")
    for name in TOP:
        place = Path("/", name)
        if place.is_symlink():
            (root / name).symlink_to(place.readlink())
        elif place.is_dir():
            bind(place, root / name, writable=False)
    for name in ETC:
        if Path("/etc", name).exists():
            bind(Path("/etc", name), root / "etc" / name, writable=False)
    for name in _DEVICES:
        bind(Path("/dev", name), root / "dev" / name, writable=True)
    (root / "dev/fd").symlink_to("/proc/self/fd")
    bind(Path("/proc"), root / "proc", writable=True)
    for source, goal, writable in binds:
        bind(Path(source), root / goal.lstrip("/"), writable=writable)


def require_no_network(addresses: tuple[str, ...]) -> None:
    """Prove it: a connection must fail at once."""
    for address in addresses:
        with socket.socket() as probe:
            probe.settimeout(2)
            try:
                probe.connect((address, 9))
            except OSError as error:
                if error.errno in {errno.ENETUNREACH, errno.EACCES}:
                    continue
        print(f"envbuilder: {address} can be reached from the place that was to have no network", file=sys.stderr)  # noqa: T201
        sys.exit(NETWORK)


def main(spec: dict[str, Any]) -> None:
    if spec["way"] == "container":
        require_no_network((_WORLD,))  # its loopback is up, and its own
    else:
        try:
            separate(users=spec["way"] == "user-namespaces")
            furnish(Path(spec["root"]), spec["binds"])
            os.chroot(spec["root"])
            os.chdir(spec["folder"])
        except OSError as error:
            print(f"envbuilder: {error}", file=sys.stderr)  # noqa: T201
            sys.exit(NO_PLACE)
        require_no_network((_WORLD, _LOOPBACK))
    os.umask(stat.S_IWGRP | stat.S_IWOTH)
    os.execvpe(spec["command"][0], spec["command"], spec["variables"])  # noqa: S606 - the whole point


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_bytes()))
