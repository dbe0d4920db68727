"""The root filesystem of the images: locked Debian packages, unpacked by our own reader, on any machine, for any other.

No maintainer script is run: none could be, for another architecture and without root. What the scripts of these very
packages would have made is made here as data, in `_settle` (docs/images.md says what is not): the files that they copy
from templates, the accounts, the CA bundle, the alternatives, the loader's cache, and dpkg's own records, so that apt
and dpkg work in an image that starts from this one.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from envbuilder.errors import VerificationError
from envbuilder.images import loader_cache
from envbuilder.images.deb import read_deb
from envbuilder.images.tree import Entry, Kind, file, folder, symlink, whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from envbuilder.images.deb import Deb

_MERGED = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")  # Debian's /usr merge: these are links into usr/

# Left out of every package, as documentation that nobody reads in a container; the licences stay.
LEFT_OUT = ("usr/share/man/", "usr/share/info/", "usr/share/locale/", "usr/share/lintian/", "usr/share/bug/", "usr/share/groff/")
_DOCUMENTATION = "usr/share/doc/"

# What `update-alternatives` would have chosen in the postinst of these packages: link, its name, where it leads.
_ALTERNATIVES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "mawk": (("usr/bin/awk", "/usr/bin/mawk"), ("usr/bin/nawk", "/usr/bin/mawk")),
    "debianutils": (("usr/bin/which", "/usr/bin/which.debianutils"),),
    "gcc": (("usr/bin/cc", "/usr/bin/gcc"),),
    "g++": (("usr/bin/c++", "/usr/bin/g++"),),
    "tar": (("usr/sbin/rmt", "/usr/sbin/rmt-tar"),),
}
# What postinst copies from a template: goal, template.
_TEMPLATES = (
    ("etc/nsswitch.conf", "usr/share/libc-bin/nsswitch.conf"),
    ("etc/profile", "usr/share/base-files/profile"),
    ("root/.bashrc", "usr/share/base-files/dot.bashrc"),
    ("root/.profile", "usr/share/base-files/dot.profile"),
)
_CERTIFICATES = "usr/share/ca-certificates/"


@dataclass(frozen=True, kw_only=True)
class User:
    """Who runs in a container: never root."""

    name: str
    uid: int

    @property
    def home(self) -> str:
        return f"/home/{self.name}"


def read_debs(packages: Iterable[Path]) -> list[Deb]:
    """Read packages, several at a time: unpacking them is nearly all that a root filesystem costs."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sorted(pool.map(read_deb, packages), key=lambda deb: deb.fields["package"])


def root_tree(debs: Iterable[Deb], *, machine: str, user: User) -> dict[str, Entry]:
    """Return the whole tree of a root filesystem. Raises VerificationError for a package that cannot be placed."""
    debs = sorted(debs, key=lambda deb: deb.fields["package"])
    tree: dict[str, Entry] = {}
    for deb in debs:
        for entry in deb.entries:
            if entry.path and not _left_out(entry.path):
                _place(tree, _merged(entry), deb.fields["package"])
    _give_parents(tree)
    for entry in (*_links_of_the_merge(tree), *_records(debs)):
        tree[entry.path] = entry
    for entry in _settle(tree, debs, machine=machine, user=user):
        tree.setdefault(entry.path, entry)
    return whole(tree.values())


# -- unpacking ---------------------------------------------------------------------------------------------------


def _left_out(path: str) -> bool:
    if f"{path}/".startswith(LEFT_OUT):
        return True
    return path.startswith(_DOCUMENTATION) and not path.endswith("/copyright")


def _merged(entry: Entry) -> Entry:
    """Put what lies in /bin, /lib or /sbin below /usr, and take away the bits that let a user become another one."""
    target = _usr(entry.target) if entry.kind is Kind.HARDLINK else entry.target
    return replace(entry, path=_usr(entry.path), target=target, mode=entry.mode & ~0o6000)


def _usr(path: str) -> str:
    return f"usr/{path}" if path.split("/", maxsplit=1)[0] in _MERGED else path


def _place(tree: dict[str, Entry], entry: Entry, package: str) -> None:
    there = tree.get(entry.path)
    if there is None:
        tree[entry.path] = entry
    elif not (there.kind is entry.kind is Kind.FOLDER) and there.looks != entry.looks:
        raise VerificationError(
            f"/{entry.path} comes with two packages, {package} being one",
            why="dpkg would refuse it, or ask for a diversion.",
            next="Choose other packages in the target.",
        )


def _give_parents(tree: dict[str, Entry]) -> None:
    """Folders that were only there for what is left out go; parents that nobody brought are made by `whole`."""
    for path in [path for path, entry in tree.items() if entry.kind is Kind.FOLDER and f"{path}/".startswith((*LEFT_OUT, _DOCUMENTATION))]:
        del tree[path]


def _links_of_the_merge(tree: Mapping[str, Entry]) -> Iterator[Entry]:
    tops = {path.split("/")[1] for path in tree if path.startswith("usr/") and path.count("/")}
    for name in _MERGED:
        if name in tops:
            yield symlink(name, f"usr/{name}")


# -- dpkg's records ----------------------------------------------------------------------------------------------


def _records(debs: Iterable[Deb]) -> Iterator[Entry]:
    status = []
    for deb in debs:
        head, _, rest = deb.control.strip().partition("\n")
        status.append(f"{head}\nStatus: install ok installed\n{_conffiles(deb)}{rest}\n")
        name = deb.fields["package"]
        if deb.fields.get("multi-arch") == "same":
            name = f"{name}:{deb.fields['architecture']}"
        paths = "".join(f"/{entry.path}\n" if entry.path else "/.\n" for entry in deb.entries)
        yield file(f"var/lib/dpkg/info/{name}.list", paths)
        for kind, content in deb.information.items():
            mode = 0o755 if kind in {"preinst", "postinst", "prerm", "postrm", "config"} else 0o644
            yield file(f"var/lib/dpkg/info/{name}.{kind}", content, mode=mode)
    yield file("var/lib/dpkg/status", "\n".join(status))
    yield file("var/lib/dpkg/available", "")
    yield file("var/lib/dpkg/info/format", "1\n")
    yield folder("var/lib/dpkg/updates")


def _conffiles(deb: Deb) -> str:
    """Return the field that dpkg keeps of a package's configuration files: their paths and the md5 that they came with."""
    listed = deb.information.get("conffiles", b"").decode().split("\n")
    sums = {
        path: digest for digest, _, path in (line.partition("  ") for line in deb.information.get("md5sums", b"").decode().splitlines())
    }
    rows = [f" {path} {sums.get(path.lstrip('/'), 'newconffile')}\n" for path in listed if path.startswith("/")]
    return f"Conffiles:\n{''.join(rows)}" if rows else ""


# -- what maintainer scripts would have made ------------------------------------------------------------------------


def _settle(tree: Mapping[str, Entry], debs: Iterable[Deb], *, machine: str, user: User) -> Iterator[Entry]:
    for goal, template in _TEMPLATES:
        if template in tree:
            yield replace(tree[template], path=goal)
    for deb in debs:
        for link, goal in _ALTERNATIVES.get(deb.fields["package"], ()):
            name = link.rpartition("/")[2]
            yield symlink(link, f"/etc/alternatives/{name}")
            yield symlink(f"etc/alternatives/{name}", goal)
    yield from _accounts(tree, user)
    yield from _certificates(tree)
    yield file(loader_cache.PATH, loader_cache.loader_cache(tree, machine))


def _accounts(tree: Mapping[str, Entry], user: User) -> Iterator[Entry]:
    own = {
        "passwd": f"{user.name}:x:{user.uid}:{user.uid}::{user.home}:/bin/bash\n",
        "group": f"{user.name}:x:{user.uid}:\n",
    }
    for name, line in own.items():
        master = tree.get(f"usr/share/base-passwd/{name}.master")
        yield file(f"etc/{name}", (_read(master) if master else b"") + line.encode())
    yield folder(user.home.lstrip("/"), mode=0o755, uid=user.uid, gid=user.uid)
    yield folder(f"{user.home.lstrip('/')}/.cache", mode=0o755, uid=user.uid, gid=user.uid)


def _certificates(tree: Mapping[str, Entry]) -> Iterator[Entry]:
    """What update-ca-certificates makes, but for the links by hash: OpenSSL reads the bundle, to which cert.pem leads."""
    found = {path.removeprefix(_CERTIFICATES): entry for path, entry in tree.items() if re.match(rf"{_CERTIFICATES}.*\.crt$", path)}
    if not found:
        return
    yield file("etc/ca-certificates.conf", "".join(f"{name}\n" for name in sorted(found)))
    yield file("etc/ssl/certs/ca-certificates.crt", b"".join(_read(entry).rstrip(b"\n") + b"\n" for _, entry in sorted(found.items())))
    for name in sorted(found):
        yield symlink(f"etc/ssl/certs/{name.rpartition('/')[2].removesuffix('.crt')}.pem", f"/{_CERTIFICATES}{name}")
    yield symlink("usr/lib/ssl/cert.pem", "/etc/ssl/certs/ca-certificates.crt")


def _read(entry: Entry) -> bytes:
    with entry.open() as stream:
        return stream.read()
