"""Building once for many machines: images that another one pushed are taken where their lock is this one's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envbuilder.files import human_size
from envbuilder.images.inputs import IMAGES
from envbuilder.images.oci import MANIFEST_TYPE, Descriptor
from envbuilder.images.registry import Reference, Registry

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from envbuilder.images.oci import Layout
    from envbuilder.store.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Taken:
    """The images that were taken (all of them, or none), and what there is to say of it."""

    images: tuple[str, ...]
    detail: str


def tags_of(reference: Reference, release: str, names: Iterable[str]) -> dict[str, str]:
    """Return {image: tag}: one repository holds all four, so that what they share is stored once."""
    return {name: f"{reference.tag or release}-{name}" for name in names}


def take(reference: str, release: str, lock: str, layout: Layout, *, settings: Settings, state: Path) -> Taken:
    """Bring a lock's images into a layout. Raises RegistryError, VerificationError (other bytes than digests say)."""
    parsed = Reference.parse(reference)
    registry = Registry(reference=parsed, settings=settings, state=state)
    found: list[tuple[str, Descriptor, dict[str, str]]] = []
    received = 0
    for name, tag in tags_of(parsed, release, IMAGES).items():
        answer = registry.manifest(tag)
        if answer is None:
            return Taken(images=(), detail=f"no {tag} there")
        descriptor, payload = answer
        manifest = json.loads(payload)
        theirs = manifest.get("annotations", {}).get("envbuilder.lock")
        if theirs != f"sha256:{lock}":
            return Taken(images=(), detail=f"{tag} is of another lock ({theirs})")
        for blob in (Descriptor.of(manifest["config"]), *map(Descriptor.of, manifest["layers"])):
            received += registry.pull_blob(layout, blob)
        layout.add_bytes(MANIFEST_TYPE, payload)
        config = json.loads(layout.blob(manifest["config"]["digest"]).read_bytes())
        found.append((name, descriptor, {key: config[key] for key in ("architecture", "variant", "os") if key in config}))
    layout.write_index(found)
    return Taken(images=tuple(name for name, _, _ in found), detail=f"{len(found)} images, {human_size(received)} received")
