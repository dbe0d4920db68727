"""All that images are made from, as plain data: the same inputs give the same bytes, wherever and whenever."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from envbuilder.images.foundation import Foundation
    from envbuilder.images.layers import Compression
    from envbuilder.images.parts import Part
    from envbuilder.images.rootfs import User
    from envbuilder.images.wheels import Wheel
    from envbuilder.store.debian import DebianPackage
    from envbuilder.store.rootfs_image import RootfsImage

ImageName: TypeAlias = Literal["base", "serve", "quantize", "dev"]
IMAGES: tuple[ImageName, ...] = ("base", "serve", "quantize", "dev")


def images_over(*, packages: bool) -> tuple[ImageName, ...]:
    """Return the images that can be made over a root filesystem of Debian packages, or over somebody's image: `dev` has Debian's compiler."""
    return tuple(name for name in IMAGES if packages or name != "dev")


@dataclass(frozen=True, kw_only=True)
class Package:
    """A Debian package and where its file lies."""

    locked: DebianPackage
    path: Path


@dataclass(frozen=True, kw_only=True)
class EnvironmentInputs:
    """One environment: its wheels, what overlays write (paths below site-packages), its variables and its server's arguments.

    `asked` are the distributions that the target names itself; `compiled` says of those that were compiled here from what
    and how (JSON, by name); `proofs` what was found out about the environment (JSON).
    """

    name: str
    wheels: tuple[Wheel, ...]
    asked: tuple[str, ...]
    overlays: Mapping[str, bytes] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    compiled: Mapping[str, Any] = field(default_factory=dict)
    proofs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def overlay_hashes(self) -> dict[str, str]:
        return {path: hashlib.sha256(content).hexdigest() for path, content in self.overlays.items()}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """`lock` is the lock's digest in hex, `lock_files` its files by name; `target_file` the target as JSON."""

    target: str
    release: str
    machine: str
    python: str
    lock: str
    lock_files: Mapping[str, bytes]
    target_file: bytes
    user: User
    compression: Compression
    packages: tuple[Package, ...]
    environments: Mapping[str, EnvironmentInputs]
    parts: Mapping[str, Part]  # by sha256
    foundation: Foundation | None = None  # somebody's image, in place of packages

    @property
    def images(self) -> tuple[ImageName, ...]:
        return images_over(packages=self.foundation is None)

    @property
    def rootfs(self) -> RootfsImage | None:
        return self.foundation.locked if self.foundation else None

    @property
    def interpreter(self) -> str:
        return self.foundation.python if self.foundation else f"/usr/bin/python{self.python}"

    @property
    def platform(self) -> str:
        return f"linux/{self.machine}"

    def packages_of(self, image: ImageName) -> tuple[Package, ...]:
        return tuple(it for it in self.packages if image == "dev" or it.locked.layer == "rootfs")

    def environment_of(self, image: ImageName) -> EnvironmentInputs:
        """`base` has what serve and quantize share; `dev` is `serve` with a compiler."""
        return self.environments["quantize" if image == "quantize" else "serve"]
