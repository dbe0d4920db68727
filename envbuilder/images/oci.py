"""An OCI image layout on disk: blobs by digest, an index that names images (OCI Image Format Specification 1.1)."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envbuilder.errors import VerificationError
from envbuilder.files import canonical_json, parse_json, sha256_file, storage_errors, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
NAME = "org.opencontainers.image.ref.name"
_VERSION = b'{"imageLayoutVersion":"1.0.0"}'
ARCHITECTURES = {"x86_64": {"architecture": "amd64"}, "aarch64": {"architecture": "arm64", "variant": "v8"}}


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """What points at a blob: its kind, its digest as `sha256:…`, its bytes."""

    media_type: str
    digest: str
    size: int

    def as_dict(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Descriptor:
        return cls(media_type=value["mediaType"], digest=value["digest"], size=value["size"])


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image that a layout holds: its name there, its manifest's descriptor, and both documents."""

    name: str
    descriptor: Descriptor
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def blobs(self) -> list[Descriptor]:
        """Configuration and layers, in the manifest's order."""
        return [Descriptor.of(value) for value in (self.manifest["config"], *self.manifest["layers"])]

    @property
    def layers(self) -> list[Descriptor]:
        return self.blobs[1:]

    @property
    def labels(self) -> Mapping[str, str]:
        settings = self.config.get("config")
        labels = settings.get("Labels") if isinstance(settings, dict) else None
        return labels if isinstance(labels, dict) else {}

    @property
    def diff_ids(self) -> list[str]:
        """The digests of the layers' tars, as far as the configuration names any."""
        rootfs = self.config.get("rootfs")
        found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        return found if isinstance(found, list) else []


def parse_manifest(payload: bytes, what: str) -> Mapping[str, Any]:
    """Read the manifest of one image that somebody sent. Raises VerificationError for anything else."""
    why = "It has no layers, or one without a digest and a size."
    try:
        manifest: Mapping[str, Any] = parse_json(payload)
        listed = "manifests" in manifest
        sound = not listed and bool(manifest["layers"]) and all(map(_is_sound, (manifest["config"], *manifest["layers"])))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        listed, sound, why = False, False, f"{type(error).__name__}: {error}"
    if listed:
        raise VerificationError(f"{what} is a list of images", next="Name one of them by its digest.")
    if not sound:
        raise VerificationError(f"{what} has no manifest that can be read", why=why)
    return manifest


def _is_sound(row: Any) -> bool:  # noqa: ANN401 - JSON of somebody's
    plain = isinstance(row["mediaType"], str) and isinstance(row["size"], int)
    return plain and re.fullmatch(r"sha256:[0-9a-f]{64}", row["digest"]) is not None


@dataclass(frozen=True)
class Layout:
    """A layout at `root`."""

    root: Path

    def blob(self, digest: str) -> Path:
        algorithm, _, value = digest.partition(":")
        if algorithm != "sha256" or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            raise VerificationError(f"not a digest: {digest!r}")
        return self.root / "blobs" / "sha256" / value

    # -- writing -------------------------------------------------------------------------------------------------

    def add_bytes(self, media_type: str, payload: bytes) -> Descriptor:
        digest = f"sha256:{hashlib.sha256(payload).hexdigest()}"
        path = self.blob(digest)
        if not path.exists() or path.read_bytes() != payload:
            write_atomic(path, payload)
        return Descriptor(media_type=media_type, digest=digest, size=len(payload))

    def add_file(self, media_type: str, path: Path, digest: str) -> Descriptor:
        """Add a blob that lies elsewhere, as a second name of the same file where the disk allows it. Threads may add the same one."""
        goal = self.blob(digest)
        with storage_errors(goal):
            size = path.stat().st_size
            goal.parent.mkdir(parents=True, exist_ok=True)
            if not (goal.exists() and (goal.samefile(path) or _like(goal, path))):
                temporary = goal.with_name(f".{goal.name}.{secrets.token_hex(8)}")
                try:
                    _link(path, temporary)
                    temporary.replace(goal)
                finally:
                    temporary.unlink(missing_ok=True)  # a rename onto a name of the same file leaves both
        return Descriptor(media_type=media_type, digest=digest, size=size)

    def write_index(self, images: Iterable[tuple[str, Descriptor, Mapping[str, Any]]]) -> None:
        """Name the images of this layout: (name, manifest, platform). Blobs that none of them needs are removed."""
        manifests = [
            {**descriptor.as_dict(), "platform": dict(platform), "annotations": {NAME: name}} for name, descriptor, platform in images
        ]
        write_atomic(self.root / "oci-layout", _VERSION)
        write_atomic(self.root / "index.json", canonical_json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}))
        needed = {blob.digest for image in self.images() for blob in (image.descriptor, *image.blobs)}
        for path in (self.root / "blobs" / "sha256").iterdir():
            if f"sha256:{path.name}" not in needed:
                path.unlink()

    # -- reading -------------------------------------------------------------------------------------------------

    def images(self) -> list[Image]:
        """Return the images that the index names. Raises VerificationError: no layout, or not what digests say."""
        try:
            index = parse_json((self.root / "index.json").read_bytes())
            entries = [(entry.get("annotations", {}).get(NAME, ""), Descriptor.of(entry)) for entry in index["manifests"]]
            why = (
                ""
                if all(isinstance(name, str) and _is_sound(it.as_dict()) for name, it in entries)
                else "an image lacks a digest or a size"
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            entries, why = [], str(error)
        if why:
            raise VerificationError(
                f"{self.root} is not an OCI image layout", why=f"index.json: {why}", next="`envbuilder image` writes one."
            )
        return [self.read(name, descriptor) for name, descriptor in entries]

    def read(self, name: str, descriptor: Descriptor) -> Image:
        manifest = self._document(descriptor)
        try:
            rows = [manifest["config"], *manifest["layers"]]
            sound = all(map(_is_sound, rows))
            config = self._document(Descriptor.of(rows[0])) if sound else None
        except (KeyError, TypeError, AttributeError) as error:
            raise VerificationError(f"{name}: its manifest is none", why=f"{type(error).__name__}: {error}") from error
        if not isinstance(config, dict):
            raise VerificationError(
                f"{name}: its manifest is none", why="It lacks digests and sizes, or its configuration is no JSON object."
            )
        return Image(name=name, descriptor=descriptor, manifest=manifest, config=config)

    def check(self, descriptor: Descriptor) -> str:
        """Return what is wrong with a blob; nothing if it is what its digest says."""
        path = self.blob(descriptor.digest)
        try:
            size = path.stat().st_size
        except OSError:
            return "is missing"
        if size != descriptor.size:
            return f"has {size} bytes in place of {descriptor.size}"
        found = f"sha256:{sha256_file(path)}"
        return "" if found == descriptor.digest else f"has the digest {found}"

    def require(self, descriptors: Iterable[Descriptor]) -> None:
        """Raise VerificationError for a blob that is not what its digest says."""
        for descriptor in {descriptor.digest: descriptor for descriptor in descriptors}.values():
            if fault := self.check(descriptor):
                raise VerificationError(
                    f"{self.blob(descriptor.digest)} {fault}",
                    why="It was changed, or not written to its end.",
                    next="Remove it, and where it is a layer also in the store (layers/blobs there): then write the image anew.",
                )

    def _document(self, descriptor: Descriptor) -> Mapping[str, Any]:
        self.require([descriptor])
        try:
            document: Mapping[str, Any] = parse_json(self.blob(descriptor.digest).read_bytes())
        except ValueError as error:
            raise VerificationError(f"{descriptor.digest} is no JSON", why=str(error)) from error
        return document


def _link(path: Path, goal: Path) -> None:
    try:
        os.link(path, goal)
    except OSError:  # another disk, or one without links
        shutil.copyfile(path, goal)
        shutil.copystat(path, goal)


def _like(one: Path, other: Path) -> bool:
    """Whether a copy is still as it was when it was made: the time is copied along, and a later change would set another."""
    first, second = one.stat(), other.stat()
    return (first.st_size, first.st_mtime_ns) == (second.st_size, second.st_mtime_ns)
