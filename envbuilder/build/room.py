"""Whether the disks have room for all that a build will write, said before its first byte is fetched."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envbuilder.errors import StorageError
from envbuilder.files import existing, free_bytes, human_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from envbuilder.layout import Layout
    from envbuilder.store.cache import Store

_UNPACKED = 2  # dgx-spark: 4.29 GB of wheels are 8.57 GB of files
_UNPACKED_CPU = 4  # cpu: 0.99 GB are 3.5 GB; code for GPUs is packed in its libraries already
_IMAGES = 1.2  # cpu: 0.99 GB of wheels are 1.1 GB of layers, Debian's packages and dev's compiler in them; no layer is there twice
_SPARE = 20  # a twentieth: logs, records, and what others write meanwhile


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that will be written below a folder, and what for."""

    where: Path
    what: str
    bytes: int


def unpacking(environments: Iterable[dict[str, int]], *, torch_backend: str | None, store: Store, layout: Layout) -> list[Need]:
    """Say what environments take, each given by its wheels' sizes by sha256.

    uv unpacks a wheel once, into the store, and links it into environments; on another file system it copies.
    """
    each, factor = list(environments), _UNPACKED_CPU if torch_backend == "cpu" else _UNPACKED
    once = sum({sha256: size for wheels in each for sha256, size in wheels.items()}.values())
    needs = [Need(where=store.root, what="to unpack", bytes=factor * once)]
    if _device(store.root) != _device(layout.out):
        needs.append(Need(where=layout.out, what="to copy", bytes=factor * sum(sum(wheels.values()) for wheels in each)))
    return needs


def imaging(wheels: dict[str, int], *, store: Store, layout: Layout) -> list[Need]:
    """Say what the images of a build take, given the sizes of all its wheels by sha256.

    A layer is made once, in the store, and gets a second name in the output folder; on another file system it is a copy.
    """
    size = int(_IMAGES * sum(wheels.values()))
    places = [store.root] if _device(store.root) == _device(layout.out) else [store.root, layout.out]
    return [Need(where=where, what="for images", bytes=size) for where in places]


def require_room(needs: Iterable[Need], *, free: Callable[[Path], int] = free_bytes) -> None:
    """Check every file system for the sum of what goes to it. Raises StorageError with the numbers."""
    disks: defaultdict[int, list[Need]] = defaultdict(list)
    for need in needs:
        if need.bytes:
            disks[_device(need.where)].append(need)
    for parts in disks.values():
        where, total = parts[0].where, sum(need.bytes for need in parts)
        if (left := free(where)) < total + total // _SPARE:
            raise StorageError(
                f"not enough room in {where}",
                why=f"{', '.join(f'{human_size(it.bytes)} {it.what}' for it in parts)}: {human_size(total)}; {human_size(left)} are free.",
                next="Free some space, or choose a folder on another disk, with ENVBUILDER_CACHE or --out.",
            )


def _device(path: Path) -> int:
    return existing(path).stat().st_dev
