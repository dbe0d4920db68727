"""The bill of materials of an image: CycloneDX 1.6 as JSON, every wheel and every Debian package with hash and licence.

Written by hand and without serial number or time, so that it is the same from every build; tests check it against
CycloneDX's own schema.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from envbuilder import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from envbuilder.images.inputs import Package
    from envbuilder.images.parts import Part
    from envbuilder.images.wheels import Wheel
    from envbuilder.store.rootfs_image import RootfsImage


def sbom(
    name: str, wheels: Iterable[Wheel], packages: Iterable[Package], parts: Mapping[str, Part], rootfs: RootfsImage | None = None
) -> dict[str, Any]:
    """Return the document; `parts` says what is known of each component, by sha256. An image's own packages are its maker's to list."""
    components = [*(_wheel(it, parts[it.sha256]) for it in wheels), *(_package(it, parts[it.locked.sha256]) for it in packages)]
    return _document(name, components + ([_image(rootfs)] if rootfs else []))


def merged(name: str, documents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the document of all images together."""
    return _document(name, [component for document in documents for component in document["components"]])


def _document(name: str, components: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "envbuilder", "version": __version__}]},
            "component": {"type": "container", "name": name, "bom-ref": name},
        },
        "components": sorted({component["bom-ref"]: component for component in components}.values(), key=lambda it: str(it["bom-ref"])),
    }


def _wheel(wheel: Wheel, part: Part) -> dict[str, Any]:
    purl = f"pkg:pypi/{wheel.name}@{quote(wheel.version, safe='')}?file_name={quote(wheel.filename, safe='')}"
    return _component(wheel.name, wheel.version, purl, wheel.sha256, part)


def _package(package: Package, part: Part) -> dict[str, Any]:
    locked = package.locked
    purl = f"pkg:deb/debian/{quote(locked.name, safe='')}@{quote(locked.version, safe='')}?arch={locked.architecture}"
    return _component(locked.name, locked.version, purl, locked.sha256, part)


def _image(rootfs: RootfsImage) -> dict[str, Any]:
    value = rootfs.digest.removeprefix("sha256:")
    purl = f"pkg:oci/{quote(rootfs.image.rpartition('/')[2], safe='')}@{quote(rootfs.digest, safe='')}"
    return {
        "type": "container",
        "bom-ref": purl,
        "name": rootfs.image,
        "version": rootfs.digest,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": value}],
        "licenses": [{"license": {"name": "see /usr/share/doc/*/copyright in the image"}}],
    }


def _component(name: str, version: str, purl: str, sha256: str, part: Part) -> dict[str, Any]:
    named = part.licenses or ("not stated by its package",)
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": sha256}],
        "licenses": [{"expression": part.expression}] if part.expression else [{"license": {"name": it}} for it in named],
    }
