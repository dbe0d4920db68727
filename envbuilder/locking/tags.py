"""Which wheel of several fits a target's interpreter best: wheel tags (PEP 425, 600), in pip's order of preference."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_OLDEST_GLIBC = {"x86_64": 5, "aarch64": 17}
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}  # PEP 600's aliases


def best_wheel(filenames: Iterable[str], *, python: tuple[int, int], machine: str, glibc: str) -> str | None:
    """Return the file name that pip would choose, or None when no file fits. A higher build tag wins among equals."""
    ranks = _ranks(python, machine, glibc)
    candidates = []
    for filename in filenames:
        try:
            _, _, build, tags = parse_wheel_filename(filename)
        except InvalidWheelFilename:
            continue
        rank = min((ranks[tag] for tag in tags if tag in ranks), default=None)
        if rank is not None:
            candidates.append((-rank, build, filename))
    return max(candidates)[2] if candidates else None


@lru_cache
def _ranks(python: tuple[int, int], machine: str, glibc: str) -> dict[Tag, int]:
    interpreter = f"cp{python[0]}{python[1]}"
    platforms = list(_platforms(machine, int(glibc.partition(".")[2])))
    tags = [*cpython_tags(python, [interpreter], platforms), *compatible_tags(python, interpreter, platforms)]
    return {tag: rank for rank, tag in reversed(list(enumerate(tags)))}


def _platforms(machine: str, glibc_minor: int) -> Iterator[str]:
    for minor in range(glibc_minor, _OLDEST_GLIBC[machine] - 1, -1):
        yield f"manylinux_2_{minor}_{machine}"
        if minor in _LEGACY:
            yield f"{_LEGACY[minor]}_{machine}"
    yield f"linux_{machine}"
