"""Where two wheels that should be the same are not: which member of which file, and why most likely."""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elftools.elf.elffile import ELFFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NEAR = 24  # bytes shown around the first difference
# What is known to make compiles differ, by what stands in the differing bytes (facts: docs/source-build.md).
_CAUSES = (
    (re.compile(rb"tmpxft_[0-9a-f]+"), "nvcc's temporary names hold a process number: --objdir-as-tempdir is missing"),
    (re.compile(rb"_GLOBAL__N__[0-9a-f]{8}"), "a unit without a seed of its own, or another source path: -frandom-seed, or the fixed path, is missing"),
    (re.compile(rb"(?:^|[\0:])/(?:home|root|tmp|var|build|workspace)/[\w./-]+"), "a path of the machine that built it: the two were built at different paths"),
    (re.compile(rb"[A-Z][a-z]{2} [ 0-3]\d 20\d\d|[0-2]\d:[0-5]\d:[0-5]\d"), "a date or a time of day (__DATE__, __TIME__)"),
    (re.compile(rb"GCC: \([^)]*\) [\d.]+"), "two versions of the compiler"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A member that differs: `section` of an ELF file, `offset` in it, and the likely cause."""

    member: str
    what: str
    section: str = ""
    offset: int = 0
    cause: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {"member": self.member, "what": self.what, "section": self.section, "offset": self.offset, "cause": self.cause}

    def __str__(self) -> str:
        place = f" {self.section}+{self.offset:#x}" if self.section else f" at {self.offset:#x}" if self.offset else ""
        return f"{self.member}{place}: {self.what}" + (f" — {self.cause}" if self.cause else "")


def compare(first: Path, second: Path) -> list[Difference]:
    """Compare two wheels; an empty list means the same bytes."""
    if first.read_bytes() == second.read_bytes():
        return []
    with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as two:
        differences = list(_members(one, two))
        if not differences:
            what = "the members are the same, the packing is not"
            differences = [Difference(member=first.name, what=what, cause="another zlib, or other times and modes")]
    return differences


def _members(one: zipfile.ZipFile, two: zipfile.ZipFile) -> Iterator[Difference]:
    names, others = set(one.namelist()), set(two.namelist())
    for name in sorted(names ^ others):
        yield Difference(
            member=name, what=f"only in the {'first' if name in names else 'second'}", cause="a part was not built, or is chosen by chance"
        )
    for name in sorted(names & others):
        if name.endswith(".dist-info/RECORD"):
            continue  # it repeats what the others say
        left, right = one.read(name), two.read(name)
        if left != right:
            yield from _contents(name, left, right)
        elif one.getinfo(name).external_attr != two.getinfo(name).external_attr:
            yield Difference(member=name, what="the mode differs", cause="the umask")


def _contents(name: str, left: bytes, right: bytes) -> Iterator[Difference]:
    if left[:4] == right[:4] == b"\x7fELF":
        found = list(_sections(name, left, right))
        if found:
            yield from found
            return
    offset = _first(left, right)
    yield Difference(member=name, what=_sizes(left, right), offset=offset, cause=_cause(left, right, offset))


def _sections(name: str, left: bytes, right: bytes) -> Iterator[Difference]:
    one, two = ({s.name: s.data() for s in ELFFile(io.BytesIO(data)).iter_sections() if s.name} for data in (left, right))
    for section in dict.fromkeys([*one, *two]):
        a, b = one.get(section, b""), two.get(section, b"")
        if a != b:
            offset = _first(a, b)
            yield Difference(member=name, what=_sizes(a, b), section=section, offset=offset, cause=_cause(a, b, offset))


def _first(left: bytes, right: bytes) -> int:
    return next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _sizes(left: bytes, right: bytes) -> str:
    return f"{len(left)} and {len(right)} bytes" if len(left) != len(right) else f"{len(left)} bytes each"


def _cause(left: bytes, right: bytes, offset: int) -> str:
    """Guess from the words around the first difference; empty where nothing known stands there."""
    for data in (left, right):
        start = max(data.rfind(b"\0", 0, offset), offset - 400, 0)
        around = data[start : offset + _NEAR]
        for pattern, cause in _CAUSES:
            if any(match.end() > offset - start for match in pattern.finditer(around)):
                return cause
    return ""
