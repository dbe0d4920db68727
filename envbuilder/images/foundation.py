"""Somebody's image as the bottom of ours: its layers stay as they are, byte for byte, and one of ours settles them.

That one layer holds the user who runs, and every file that makes one root, setuid or with capabilities, once more without
that. The rest is the image's own affair; Python comes from it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import zstandard

from envbuilder.binaries.system import BASE_SONAMES
from envbuilder.errors import ConfigurationError, LockError, VerificationError
from envbuilder.files import sha256_file, storage_errors
from envbuilder.images.layers import Blob, unpacked
from envbuilder.images.oci import ARCHITECTURES, Descriptor
from envbuilder.images.tree import Entry, Kind, file, folder
from envbuilder.store.rootfs_image import RootfsImage, RootfsLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from envbuilder.images.registry import Registry
    from envbuilder.images.rootfs import User

_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_SETUID = 0o6000
_CAPABILITY = "SCHILY.xattr.security.capability"  # of a file (capabilities(7)), as a layer's tar has it
_LIBRARIES = ("usr/lib/{0}-linux-gnu", "lib/{0}-linux-gnu", "usr/lib64", "lib64", "usr/lib", "lib")
_KINDS = {tarfile.DIRTYPE: Kind.FOLDER, tarfile.SYMTYPE: Kind.SYMLINK, tarfile.LNKTYPE: Kind.HARDLINK}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A path of the image as it is seen through all layers: what it is, and in which layer it lies; `raises`: it gives its caller rights."""

    kind: Kind
    mode: int
    uid: int
    gid: int
    target: str
    layer: int
    raises: bool


@dataclass(frozen=True, kw_only=True)
class Foundation:
    """The image's layers, each with the file that holds it; `python` is the interpreter's path in it, `settling` our layer's files."""

    locked: RootfsImage
    paths: tuple[Path, ...]
    python: str
    settling: tuple[Entry, ...]

    @property
    def blobs(self) -> list[Blob]:
        return [
            Blob(digest=it.digest, size=it.size, diff_id=it.diff_id, unpacked=0, files=0, media_type=it.media_type)
            for it in self.locked.layers
        ]


# -- locking -----------------------------------------------------------------------------------------------------


def resolve(image: str, digest: str, machine: str, registry: Registry) -> RootfsImage:
    """Ask a registry for an image of one platform, by the digest of its manifest or of a list of several. Raises LockError."""
    document, found = _manifest(registry, digest), digest
    if "manifests" in document:
        found = next((str(row["digest"]) for row in document["manifests"] if _fits(row.get("platform", {}), machine)), "")
        if not found:
            raise LockError(f"{image}@{digest} has no image for linux/{machine}", next="Name another one in the target.")
        document = _manifest(registry, found)
    try:
        config = json.loads(registry.blob(Descriptor.of(document["config"])))
        blobs, diff_ids = [Descriptor.of(row) for row in document["layers"]], config["rootfs"]["diff_ids"]
        layers = tuple(
            RootfsLayer(digest=blob.digest, size=blob.size, media_type=blob.media_type, diff_id=diff_id)
            for blob, diff_id in zip(blobs, diff_ids, strict=True)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LockError(f"{image}@{found} is no image", why=f"{type(error).__name__}: {error}") from error
    if not _fits(config, machine):
        raise LockError(
            f"{image}@{found} is for {config.get('os')}/{config.get('architecture')}",
            next="Name a list of images, or one for this machine.",
        )
    return RootfsImage(image=image, digest=found, layers=layers)


def _manifest(registry: Registry, digest: str) -> dict[str, Any]:
    answer = registry.manifest(digest)
    if answer is None:
        raise LockError(
            f"{registry.reference.host} has no {registry.reference.path}@{digest}", next="Push it there, or name another registry."
        )
    document: dict[str, Any] = json.loads(answer[1])
    return document


def _fits(platform: Mapping[str, Any], machine: str) -> bool:
    return (platform.get("os"), platform.get("architecture")) == ("linux", ARCHITECTURES[machine]["architecture"])


# -- fetching ----------------------------------------------------------------------------------------------------


def fetch(locked: RootfsImage, goals: Sequence[Path], connect: Callable[[], Registry], *, near: Path | None = None) -> None:
    """Bring the layers to where they belong, each proved by its digest.

    `connect` is called when one has to be fetched; `near` is a folder that may have them by their sha256.
    """
    for layer, goal in zip(locked.layers, goals, strict=True):
        value = layer.digest.removeprefix("sha256:")
        if goal.is_file() and sha256_file(goal) == value:
            continue
        with storage_errors(goal):
            goal.unlink(missing_ok=True)
            goal.parent.mkdir(parents=True, exist_ok=True)
            if near and (near / value).is_file() and sha256_file(near / value) == value:
                shutil.copyfile(near / value, temporary := goal.with_name(f".{goal.name}.near"))
                temporary.replace(goal)
                continue
        connect().pull_to(goal, Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size))


# -- reading -----------------------------------------------------------------------------------------------------


def found(locked: RootfsImage, paths: Sequence[Path], *, python: str, user: User) -> Foundation:
    """Look through an image's layers. Raises VerificationError (other bytes than the lock says), ConfigurationError (no such Python)."""
    image = _Image(locked, tuple(paths))
    places = [f"{place}/python{python}" for place in ("usr/bin", "usr/local/bin")]
    interpreter = next((path for path in places if path in image.tree), None)
    if interpreter is None:
        raise ConfigurationError(
            f"{locked.image} has no Python {python}",
            why=f"None of {', '.join('/' + place for place in places)} is in it.",
            next="Name an image that has it: for Ubuntu 24.04, one in which `apt-get install python3` was run.",
        )
    return Foundation(locked=locked, paths=image.paths, python=f"/{interpreter}", settling=tuple(image.settle(user)))


def base_libraries(locked: RootfsImage, paths: Sequence[Path], machine: str) -> dict[str, bytes]:
    """Return glibc's and GCC's libraries of the image, by soname: what extension modules will find there."""
    return _Image(locked, tuple(paths)).libraries(machine)


class _Image:
    def __init__(self, locked: RootfsImage, paths: tuple[Path, ...]) -> None:
        self.locked, self.paths = locked, paths
        self.tree = _seen(locked, paths)

    def settle(self, user: User) -> Iterator[Entry]:
        """Yield our layer's files, and the folders that they are in as the image has them: a layer says of each what it is."""
        settled = list(self._settled(user))
        for path in sorted({parent for entry in settled for parent in _parents(entry.path)}):
            if (seen := self.tree.get(path)) and seen.kind is Kind.FOLDER:
                yield folder(path, mode=seen.mode, uid=seen.uid, gid=seen.gid)
        yield from settled

    def _settled(self, user: User) -> Iterator[Entry]:
        own = {"passwd": f"{user.name}:x:{user.uid}:{user.uid}::{user.home}:/bin/sh\n", "group": f"{user.name}:x:{user.uid}:\n"}
        strip = {path: seen for path, seen in self.tree.items() if seen.raises and seen.kind in {Kind.FILE, Kind.HARDLINK}}
        content = self.read([*(f"etc/{name}" for name in own), *strip])
        for name, line in own.items():
            yield file(f"etc/{name}", _without(content.get(f"etc/{name}", b""), user) + line.encode())
        yield folder(user.home.lstrip("/"), uid=user.uid, gid=user.uid)
        yield folder(f"{user.home.lstrip('/')}/.cache", uid=user.uid, gid=user.uid)
        for path, seen in strip.items():
            yield file(path, content[path], mode=seen.mode & ~_SETUID, uid=seen.uid, gid=seen.gid)

    def libraries(self, machine: str) -> dict[str, bytes]:
        places = {}
        for soname in BASE_SONAMES:
            path = next((found for place in _LIBRARIES if (found := self._followed(f"{place.format(machine)}/{soname}"))), None)
            if path:
                places[soname] = path
        content = self.read(list(places.values()))
        return {soname: content[path] for soname, path in places.items()}

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the content of files, by path; each layer that has any of them is gone through once."""
        wanted: dict[int, dict[str, str]] = {}
        for path in paths:
            if seen := self.tree.get(path):
                source = seen.target if seen.kind is Kind.HARDLINK else path
                wanted.setdefault(seen.layer, {})[path] = source
        content: dict[str, bytes] = {}
        for number, rows in wanted.items():
            inside: dict[str, bytes] = {}
            for member, archive in _members(self.locked.layers[number], self.paths[number]):
                name = _name(member)
                if name in rows.values() and (stream := archive.extractfile(member) if member.isreg() else None):
                    inside[name] = stream.read()
            content |= {path: inside[source] for path, source in rows.items() if source in inside}
        return content

    def _followed(self, path: str) -> str | None:
        """Return the file that a path leads to, through links of its own name."""
        for _ in range(8):
            seen = self.tree.get(path)
            if seen is None:
                return None
            if seen.kind is not Kind.SYMLINK:
                return path
            path = seen.target.lstrip("/") if seen.target.startswith("/") else f"{path.rpartition('/')[0]}/{seen.target}"
        return None


@lru_cache(maxsize=4)  # an image's inputs, its proofs and its description all look at the same layers
def _seen(locked: RootfsImage, paths: tuple[Path, ...]) -> dict[str, Seen]:
    """Return all paths as a container sees them, deletions of higher layers applied (OCI Image Format, "Whiteouts")."""
    tree: dict[str, Seen] = {}
    parents: set[str] = set()
    for number, (layer, path) in enumerate(zip(locked.layers, paths, strict=True)):
        for member, _ in _members(layer, path):
            name = _name(member)
            parent, _, last = name.rpartition("/")
            if last.startswith(_WHITEOUT):
                gone = parent if last == _OPAQUE else f"{parent}/{last.removeprefix(_WHITEOUT)}".lstrip("/")
                for below in [it for it, seen in tree.items() if seen.layer < number and _is_below(it, gone, itself=last != _OPAQUE)]:
                    del tree[below]
            elif name:
                if name in parents and not member.isdir():  # what was in a folder goes with it
                    for below in [it for it in tree if _is_below(it, name, itself=False)]:
                        del tree[below]
                parents.update(_parents(name))
                tree[name] = _look(member, number, tree)
    return tree


def _look(member: tarfile.TarInfo, layer: int, tree: Mapping[str, Seen]) -> Seen:
    target = _plain(member.linkname) if member.islnk() else member.linkname
    raises = bool(member.mode & _SETUID) or _CAPABILITY in member.pax_headers
    linked = tree.get(target) if member.islnk() else None  # one file by two names: what it gives, it gives by both
    return Seen(
        kind=_KINDS.get(member.type, Kind.FILE),
        mode=member.mode & 0o7777,
        uid=member.uid,
        gid=member.gid,
        target=target,
        layer=layer,
        raises=raises or (linked is not None and linked.raises),
    )


def _parents(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def _is_below(path: str, top: str, *, itself: bool) -> bool:
    return path.startswith(f"{top}/" if top else "") or (itself and path == top)


def _members(layer: RootfsLayer, path: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Go through a layer; at its end its tar has been hashed, and is what the lock says."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as packed:
            stream = unpacked(packed, layer.media_type, seen=digest.update)
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    yield member, archive
            while stream.read(1 << 20):
                pass
    except (tarfile.TarError, OSError, EOFError, zstandard.ZstdError) as error:
        raise VerificationError(f"layer {layer.digest} cannot be read", why=f"{type(error).__name__}: {error}") from error
    if f"sha256:{digest.hexdigest()}" != layer.diff_id:
        raise VerificationError(
            f"layer {layer.digest} does not hold the tar that its image names", why=f"It has sha256:{digest.hexdigest()}."
        )


def _name(member: tarfile.TarInfo) -> str:
    return _plain(member.name)


def _plain(path: str) -> str:
    return re.sub(r"^(\./|/)+", "", path).rstrip("/")


def _without(table: bytes, user: User) -> bytes:
    """Return passwd or group without whoever has the user's name or number: Ubuntu's images have one with 1000."""
    kept = []
    for line in table.decode(errors="surrogateescape").splitlines():
        fields = line.split(":")
        if len(fields) < 3 or (fields[0] != user.name and fields[2] != str(user.uid)):
            kept.append(f"{line}\n")
    return "".join(kept).encode(errors="surrogateescape")
