"""Checking images: whether their bytes are what their digests say, and their files what their lock gives.

The second does not trust the image. The lock inside it is proved whole, everything is fetched by the hashes it names,
every layer's tree is made anew and compared entry by entry; the first file that differs is named.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import IO, TYPE_CHECKING, Any

import zstandard

from envbuilder.errors import VerificationError
from envbuilder.files import canonical_json
from envbuilder.images.about import labels
from envbuilder.images.layers import MEDIA_TYPE, tar_header, unpacked
from envbuilder.images.oci import CONFIG_TYPE
from envbuilder.images.recipe import OWN, layers_of
from envbuilder.images.tree import Entry, Kind
from envbuilder.images.write import configuration, manifest_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from envbuilder.images.inputs import ImageName, Inputs
    from envbuilder.images.layers import Blob, Layer
    from envbuilder.images.oci import Descriptor, Image, Layout

_BUFFER = 1 << 20
_LARGEST = 64 * _BUFFER  # of our own files in an image; a few megabytes of zstd can be unpacked to anything
# What our own tars extend a header by: long names, large sizes. An attribute such as a file capability is a right like setuid.
_EXTENDED = frozenset({"path", "linkpath", "size", "uid", "gid"})
_TOLD = ("envbuilder.sources", "envbuilder.abi", "envbuilder.gpu")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at: `status` is pass, fail or not-run."""

    name: str
    status: str
    detail: str

    def as_dict(self) -> dict[str, str]:
        return {"name": self.name, "status": self.status, "detail": self.detail}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """How a layer compares with what its lock gives: what differs first (or nothing), its paths, its tar's digest."""

    fault: str
    entries: int = 0
    diff_id: str = ""


def check_blobs(layout: Layout, image: Image) -> Check:
    """Hash everything that an image consists of."""
    faults = [f"{blob.digest} {fault}" for blob in image.blobs if (fault := layout.check(blob))]
    size = sum(blob.size for blob in image.blobs)
    detail = "; ".join(faults) or f"{len(image.blobs)} blobs, {size} bytes"
    return Check(name="digests", status="fail" if faults else "pass", detail=detail)


def own_files(layout: Layout, image: Image) -> dict[str, bytes]:
    """Return what envbuilder wrote about an image into it: {path below opt/envbuilder: content}. Raises VerificationError: not ours."""
    found: dict[str, bytes] = {}
    for blob in reversed(image.layers):
        if blob.size > _LARGEST:  # our own files are small, and they are in the topmost layer
            continue
        try:
            with layout.blob(blob.digest).open("rb") as packed, _members(packed, blob.media_type) as archive:
                for member in archive:
                    if member.isfile() and member.name.startswith(f"{OWN}/"):
                        content = archive.extractfile(member)
                        found[member.name.removeprefix(f"{OWN}/")] = content.read(_LARGEST) if content else b""
        except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error, zstandard.ZstdError):
            continue
        if "image.json" in found:
            return found
    raise VerificationError(
        f"{image.name or image.descriptor.digest} is not an image of envbuilder",
        why=f"No layer of it holds {OWN}/image.json.",
        next="Name an image or a layout that `envbuilder image` wrote.",
    )


def check_files(layout: Layout, image: Image, inputs: Inputs, name: ImageName, compared: dict[tuple[str, str], Compared]) -> Check:
    """Compare an image with what its inputs give: every layer's files, then its configuration.

    `compared` remembers layers from one image to the next: what they share is looked at once.
    """
    recipe = layers_of(name, inputs)
    if len(recipe) != len(image.layers):
        return Check(name="files", status="fail", detail=f"{len(image.layers)} layers; its lock gives {len(recipe)}")
    count = 0
    diff_ids = image.diff_ids
    if len(diff_ids) != len(recipe):
        return Check(name="files", status="fail", detail=f"its configuration names {len(diff_ids)} of {len(recipe)} layers")
    for layer, descriptor, diff_id in zip(recipe, image.layers, diff_ids, strict=True):
        key = (layer.key(inputs.compression), descriptor.digest)
        if key not in compared:
            compared[key] = _as_it_was(layer.ready, descriptor) if layer.ready else _Comparison(layer, layout.blob(descriptor.digest)).run()
        found = compared[key]
        if fault := found.fault or ("" if found.diff_id == diff_id else f"layer {layer.name!r}: its tar has the digest {found.diff_id}"):
            return Check(name="files", status="fail", detail=fault)
        count += found.entries
    if fault := _document_fault(image, inputs, name, recipe):
        return Check(name="files", status="fail", detail=fault)
    return Check(name="files", status="pass", detail=f"{count} paths in {len(recipe)} layers are those of the lock")


def _as_it_was(ready: Blob, descriptor: Descriptor) -> Compared:
    """Compare a layer of somebody's image: it must be the very blob. That it is what its digest says, `check_blobs` sees to."""
    same = descriptor.digest == ready.digest
    return Compared(fault="" if same else f"layer {descriptor.digest} is {ready.digest} in the lock", diff_id=ready.diff_id)


def _document_fault(image: Image, inputs: Inputs, name: ImageName, recipe: Sequence[Layer]) -> str:
    """Compare both documents, whole: what an engine or another tool reads in them is a claim of ours as well."""
    config = configuration(name, inputs, [(layer.name, diff_id) for layer, diff_id in zip(recipe, image.diff_ids, strict=True)])
    kinds = [CONFIG_TYPE, *(layer.ready.media_type if layer.ready else MEDIA_TYPE for layer in recipe)]
    blobs = [replace(blob, media_type=kind) for blob, kind in zip(image.blobs, kinds, strict=True)]
    for what, wanted, found in (
        ("configuration", config, image.config),
        ("manifest", manifest_of(name, inputs, blobs), image.manifest),
    ):
        for key, value in wanted.items():
            # As bytes: to Python, 1 and true are the same.
            if canonical_json(found.get(key)) != canonical_json(value):
                return f"its {what}: {key} is {_short(_differing(value, found.get(key)))}"
        if extra := sorted(found.keys() - wanted.keys()):
            return f"its {what} also has {', '.join(extra)}"
    return ""


def _differing(wanted: Any, found: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(wanted, dict) and isinstance(found, dict):
        return {key: found.get(key) for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)}
    return found


def _short(value: Any) -> str:  # noqa: ANN401 - JSON
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 120 else f"{text[:117]}…"


def said(image: Image, about: Mapping[str, Any], *, proved: bool) -> Check:
    """Compare an image's labels with the description inside it, and tell what they say of sources, symbols and GPU code.

    `proved`: the description was made anew from the lock, proofs and all, and found to be the same.
    """
    try:
        wanted = labels(about)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return Check(name="proofs", status="fail", detail=f"its description cannot be read ({type(error).__name__}: {error})")
    if different := sorted(name for name in wanted.keys() | image.labels.keys() if wanted.get(name) != image.labels.get(name)):
        name = different[0]
        return Check(name="proofs", status="fail", detail=f"label {name} is {image.labels.get(name)!r}, inside it {wanted.get(name)!r}")
    told = [f"{name.removeprefix('envbuilder.')}: {text}" for name, text in wanted.items() if name.startswith(_TOLD)]
    return Check(name="proofs", status="pass" if proved else "not-run", detail="; ".join(told))


# -- one layer ---------------------------------------------------------------------------------------------------


class _Comparison:
    """A layer as it is, beside the layer that its lock gives, entry by entry."""

    def __init__(self, layer: Layer, blob: Path) -> None:
        self._layer, self._blob = layer, blob

    def run(self) -> Compared:
        at, entries = "", 0
        try:
            with ExitStack() as stack, self._blob.open("rb") as packed:
                digest = hashlib.sha256()
                stream = unpacked(packed, MEDIA_TYPE, seen=digest.update)
                expected = self._layer.make(stack)
                with tarfile.open(fileobj=stream, mode="r|", bufsize=_BUFFER) as archive:
                    for wanted, member in zip_longest(expected.values(), archive):
                        at = wanted.path if wanted else member.name
                        if fault := self._compare(wanted, member, archive, expected):
                            return Compared(fault=fault)
                        entries += 1
                while stream.read(_BUFFER):
                    pass
                return Compared(fault="", entries=entries, diff_id=f"sha256:{digest.hexdigest()}")
        except (OSError, EOFError, ValueError, tarfile.TarError, zstandard.ZstdError) as error:
            place = f"/{at}: layer {self._layer.name!r} cannot be read on from here" if at else f"layer {self._layer.name!r} cannot be read"
            return Compared(fault=f"{place} ({error})")

    def _compare(
        self, wanted: Entry | None, member: tarfile.TarInfo | None, archive: tarfile.TarFile, expected: Mapping[str, Entry]
    ) -> str:
        if member is not None and member.name not in expected:
            return f"/{member.name} is in the image and not in its lock"
        if wanted is not None and (member is None or member.name != wanted.path):
            return f"/{wanted.path} is in the lock and not in the image"
        assert wanted is not None  # noqa: S101 - zip_longest gives at least one of the two, and `expected` has no path twice
        assert member is not None  # noqa: S101 - see above
        if fault := _header_fault(wanted, member):
            return f"/{wanted.path}: {fault}"
        if wanted.kind is Kind.FILE:
            content = archive.extractfile(member)
            assert content is not None  # noqa: S101 - it is a file
            with wanted.open() as stream:
                if not _equal(stream, content):
                    return f"/{wanted.path}: its {wanted.size} bytes are not those of the lock"
        return ""


def _header_fault(wanted: Entry, member: tarfile.TarInfo) -> str:
    if extra := sorted(member.pax_headers.keys() - _EXTENDED):
        return f"it also has {extra[0]}, which no lock gives"
    header = tar_header(wanted)
    for name in ("type", "mode", "uid", "gid", "uname", "gname", "size", "linkname", "mtime"):
        one, other = getattr(header, name), getattr(member, name)
        if one != other:
            shown = (f"{one:o}", f"{other:o}") if name == "mode" else (one, other)
            return f"its {name} is {shown[1]!r}, in the lock {shown[0]!r}"
    return ""


def _equal(one: IO[bytes], other: IO[bytes]) -> bool:
    while True:
        first, second = one.read(_BUFFER), other.read(_BUFFER)
        if first != second:
            return False
        if not first:
            return True


def _members(packed: IO[bytes], media_type: str) -> tarfile.TarFile:
    return tarfile.open(fileobj=unpacked(packed, media_type), mode="r|", bufsize=_BUFFER)
