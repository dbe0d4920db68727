"""Building once for many machines: images that another one pushed are taken where their lock is this one's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from envbuilder.errors import UsageError
from envbuilder.files import human_size
from envbuilder.images.inputs import IMAGES
from envbuilder.images.oci import ARCHITECTURES, MANIFEST_TYPE, Descriptor, parse_manifest
from envbuilder.images.referrers import attached
from envbuilder.images.registry import Reference, Registry
from envbuilder.images.verify import own_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from envbuilder.images.oci import Layout
    from envbuilder.images.referrers import Paper
    from envbuilder.store.settings import Settings
    from envbuilder.targets.model import Machine, Target


@dataclass(frozen=True, kw_only=True)
class Taken:
    """The images that were taken (all of them, or none), and what there is to say of it."""

    images: tuple[str, ...]
    detail: str
    papers: tuple[Paper, ...] = ()


def repository_of(text: str) -> Reference:
    """Return where images go to or come from. Raises UsageError for a digest: there are four images, told apart by their tags."""
    reference = Reference.parse(text)
    if reference.digest:
        raise UsageError(
            f"{text} names one image by its digest", next=f"Name the repository, with a tag or without: {reference.tagged('TAG')}."
        )
    return reference


def tags_of(reference: Reference, release: str, names: Iterable[str], *, architecture: str = "") -> dict[str, str]:
    """Return {image: tag}: one repository holds all four, so that what they share is stored once.

    With `architecture`, a target's images for one platform do not take the tags of those for another.
    """
    end = f"-{architecture}" if architecture else ""
    return {name: f"{reference.tag or release}-{name}{end}" for name in names}


def architecture_of(target: Target, machine: Machine) -> str:
    """Return the architecture that tags name: none where a target has one platform alone."""
    return ARCHITECTURES[machine]["architecture"] if len(target.machines) > 1 else ""


def take(
    reference: str,
    release: str,
    lock: str,
    layout: Layout,
    *,
    settings: Settings,
    state: Path,
    architecture: str = "",
    names: Sequence[str] = IMAGES,
    ours: Callable[[Mapping[str, bytes]], bool] = lambda _: True,
) -> Taken:
    """Bring a lock's images into a layout, and what is attached to them.

    `ours` is asked of what an image says of itself before its heavy layers are fetched: one lock can make several images
    (a compiled wheel in the published one's place, another overlay). Raises RegistryError, VerificationError (other bytes
    than digests say, not an image of envbuilder).
    """
    parsed = repository_of(reference)
    registry = Registry(reference=parsed, settings=settings, state=state)
    found: list[tuple[str, Descriptor, dict[str, str]]] = []
    received = 0
    for name, tag in tags_of(parsed, release, names, architecture=architecture).items():
        answer = registry.manifest(tag)
        if answer is None:
            return Taken(images=(), detail=f"no {tag} there")
        descriptor, payload = answer
        manifest = parse_manifest(payload, parsed.tagged(tag))
        theirs = (manifest.get("annotations") or {}).get("envbuilder.lock")
        if theirs != f"sha256:{lock}":
            return Taken(images=(), detail=f"{tag} is of another lock ({theirs})")
        config, *blobs = (Descriptor.of(manifest["config"]), *map(Descriptor.of, manifest["layers"]))
        received += registry.pull_blob(layout, config) + registry.pull_blob(layout, blobs[-1])
        layout.add_bytes(MANIFEST_TYPE, payload)
        image = layout.read(name, descriptor)
        if not ours(own_files(layout, image)):
            return Taken(images=(), detail=f"{tag} is of this lock, and made otherwise than it would be here")
        received += sum(registry.pull_blob(layout, blob) for blob in blobs)
        found.append((name, descriptor, {key: image.config[key] for key in ("architecture", "variant", "os") if key in image.config}))
    layout.write_index(found)
    return Taken(
        images=tuple(name for name, _, _ in found),
        detail=f"{len(found)} images, {human_size(received)} received",
        papers=tuple(attached(registry, found[0][1])),  # the provenance is on all of them
    )
