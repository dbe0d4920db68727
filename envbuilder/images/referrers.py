"""Papers attached to an image in a registry: its bill of materials and its provenance, found by the image's digest alone.

An artifact manifest names the image as its `subject` (OCI Image Format 1.1). A registry that knows referrers lists it; on
one that does not, the list is kept under the tag `sha256-<digest>` (OCI Distribution 1.1, "Referrers Tag Schema").
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envbuilder.errors import VerificationError
from envbuilder.files import canonical_json
from envbuilder.images.oci import INDEX_TYPE, MANIFEST_TYPE, Descriptor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuilder.images.registry import Registry

SBOM = "application/vnd.cyclonedx+json"
STATEMENT = "application/vnd.in-toto+json"
ENVELOPE = "application/vnd.dsse.envelope.v1+json"
_KINDS = (SBOM, STATEMENT, ENVELOPE)
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_LARGEST = 64 << 20  # a paper of somebody else's is read into memory


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A document about an image: `kind` is its media type, which is the artifact's type as well."""

    kind: str
    name: str
    content: bytes


def attach(registry: Registry, subject: Descriptor, paper: Paper) -> Descriptor:
    """Attach a paper to an image that is in the registry; return the artifact's descriptor. The same paper twice is one."""
    empty = registry.push_bytes(_EMPTY_TYPE, b"{}")
    content = registry.push_bytes(paper.kind, paper.content)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": paper.kind,
        "config": empty.as_dict(),
        "layers": [{**content.as_dict(), "annotations": {"org.opencontainers.image.title": paper.name}}],
        "subject": subject.as_dict(),
    }
    artifact, listed = registry.push_manifest(MANIFEST_TYPE, canonical_json(manifest))
    if not listed:
        _list(registry, subject, {**artifact.as_dict(), "artifactType": paper.kind})
    return artifact


def attached(registry: Registry, subject: Descriptor) -> list[Paper]:
    """Return the papers of our kinds that are attached to an image. Raises VerificationError for one that is not what its digest says."""
    found = []
    for row in _rows(registry, subject):
        if row.get("artifactType") not in _KINDS:
            continue
        answer = registry.manifest(str(row.get("digest")))
        if answer is None:
            continue
        try:
            manifest = json.loads(answer[1])
            [layer] = manifest["layers"]
            content, about = Descriptor.of(layer), manifest["subject"]["digest"]
        except (KeyError, TypeError, ValueError) as error:
            raise VerificationError(f"{row.get('digest')} is no artifact", why=f"{type(error).__name__}: {error}") from error
        if about == subject.digest and content.size <= _LARGEST:
            name = str(layer.get("annotations", {}).get("org.opencontainers.image.title", ""))
            found.append(Paper(kind=content.media_type, name=name, content=registry.blob(content)))
    return found


def _rows(registry: Registry, subject: Descriptor) -> list[Mapping[str, Any]]:
    payload = registry.referrers(subject.digest)
    if payload is None:
        answer = registry.manifest(_tag(subject))
        payload = answer[1] if answer else b"{}"
    try:
        rows = json.loads(payload).get("manifests", [])
        return [row for row in rows if isinstance(row, dict)]
    except (ValueError, AttributeError, TypeError) as error:
        raise VerificationError(f"the referrers of {subject.digest} cannot be read", why=f"{type(error).__name__}: {error}") from error


def _list(registry: Registry, subject: Descriptor, row: Mapping[str, Any]) -> None:
    """Add an artifact to the list under the image's tag."""
    answer = registry.manifest(_tag(subject))
    rows = json.loads(answer[1]).get("manifests", []) if answer else []
    if row not in rows:
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [*rows, row]}
        registry.push_manifest(INDEX_TYPE, canonical_json(index), tag=_tag(subject))


def _tag(subject: Descriptor) -> str:
    return subject.digest.replace(":", "-")
