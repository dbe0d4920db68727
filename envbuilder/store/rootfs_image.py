"""A registry image that stands in for Debian packages as the root filesystem: what a lock knows of it.

A lock names the image by its path and digests, never a registry's host: which registry has it is the setting
ENVBUILDER_IMAGE_REGISTRY (host[:port], and a path before the image's own where there is one).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envbuilder.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE = "ENVBUILDER_IMAGE_REGISTRY"


@dataclass(frozen=True, kw_only=True)
class RootfsLayer:
    """One layer: digests as `sha256:…`, of its bytes as the registry has them and of the tar inside."""

    digest: str
    size: int
    media_type: str
    diff_id: str


@dataclass(frozen=True, kw_only=True)
class RootfsImage:
    """The image of one platform; `digest` is its manifest's."""

    image: str
    digest: str
    layers: tuple[RootfsLayer, ...]


def reference_of(image: str, digest: str, environ: Mapping[str, str] | None = None) -> str:
    """Return the whole name of an image. Raises ConfigurationError where nobody said which registry has it."""
    registry = (os.environ if environ is None else environ).get(VARIABLE, "").strip().rstrip("/")
    if not registry:
        raise ConfigurationError(
            f"which registry has {image} is not said",
            why="The root filesystem is an image, and targets name no host.",
            next=f"Set {VARIABLE} to it: host[:port], with a path before {image!r} where there is one.",
        )
    return f"{registry}/{image}@{digest}"
