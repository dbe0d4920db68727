"""Images as `docker load` takes them on every engine: layers unpacked, in one tar that is written as it is read.

Engines before 25 know neither OCI layouts nor zstd; an image is the same one, by the id that Docker gives it, which is the
digest of its configuration.
"""

from __future__ import annotations

import io
import json
import tarfile
from typing import IO, TYPE_CHECKING

from envbuilder.images.layers import unpacked
from envbuilder.images.tree import EPOCH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuilder.images.layers import Unpacked
    from envbuilder.images.oci import Descriptor, Image, Layout

_BUFFER = 1 << 20


def write_docker_archive(layout: Layout, images: Mapping[str, Image], goal: IO[bytes]) -> None:
    """Write images of a layout to a stream, by their tags; what they share, once.

    A layer's length comes first in a tar, so each is unpacked twice.
    """
    layers = {_name(layer): layer for image in images.values() for layer in image.layers}
    configs = {tag: image.blobs[0] for tag, image in images.items()}
    listed = [
        {"Config": _name(configs[tag], ".json"), "RepoTags": [tag], "Layers": [_name(layer) for layer in image.layers]}
        for tag, image in images.items()
    ]
    small = {_name(config, ".json"): layout.blob(config.digest).read_bytes() for config in configs.values()}
    with tarfile.open(fileobj=goal, mode="w|", bufsize=_BUFFER, copybufsize=_BUFFER) as archive:  # type: ignore[call-overload]
        for name, descriptor in layers.items():
            path = layout.blob(descriptor.digest)
            with path.open("rb") as packed:
                size = _length(unpacked(packed, descriptor.media_type))
            with path.open("rb") as packed:
                archive.addfile(_header(name, size), _Exactly(unpacked(packed, descriptor.media_type)))
        for name, payload in {**small, "manifest.json": json.dumps(listed).encode()}.items():
            archive.addfile(_header(name, len(payload)), io.BytesIO(payload))


def _name(blob: Descriptor, end: str = ".tar") -> str:
    return f"{blob.digest.removeprefix('sha256:')}{end}"


def _length(reader: Unpacked) -> int:
    size = 0
    while chunk := reader.read(_BUFFER):
        size += len(chunk)
    return size


class _Exactly:
    """tarfile takes a short read for the end of a file; a decompressor may give less than was asked for."""

    def __init__(self, source: Unpacked) -> None:
        self._source = source

    def read(self, size: int) -> bytes:
        parts = []
        while size and (chunk := self._source.read(size)):
            parts.append(chunk)
            size -= len(chunk)
        return b"".join(parts)


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size, header.mtime, header.mode = size, EPOCH, 0o644
    return header
