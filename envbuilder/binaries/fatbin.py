"""Which GPU code a file carries, read from the fat binaries that nvcc embeds, without unpacking any.

The format is not published; this is what CUDA 11 to 13 write, as seen in files made by nvcc 13.0 for each arch and in
torch's and vLLM's wheels, and checked against cuobjdump. A section holds containers, one per translation unit:

    container: u32 magic 0xBA55ED50, u16 version, u16 header size (16), u64 size of what follows
    entry:     u16 kind, u16 version, u32 header size (64 or more), u64 payload size, u32 compressed size,
               u32 options, u16 minor, u16 major, u32 sm, u32 + u32 name, u64 flags, u64, u64 unpacked size

cuobjdump (13.0) calls 121, 121a and 121f alike; the entry's flags tell them apart, and so does the string
`-arch sm_121a` in the cubin's .note.nv.tkinfo, which is read from single cubin files.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from envbuilder.binaries.layout import MalformedElfError, checked_bounds, read_header, read_sections
from envbuilder.binaries.source import FileSource

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envbuilder.binaries.source import ByteSource

_MAGIC = 0xBA55ED50
_MAX_ENTRIES = 1_000_000  # libcublasLt, the largest known, has 20,000
_SECTION = ".nv_fatbin"  # __nv_relfatbin holds code for a device linker: no driver loads it, and cuobjdump passes it over too
_PTX, _CUBIN = 1, 2
_ARCH_SPECIFIC, _FAMILY_SPECIFIC = 0x100000, 0x200000
_ENTRY = struct.Struct("<HHIQIIHHIIIQ")
_NOTE_ARCH = re.compile(rb"-arch[ =]+sm_(\d+)([af]?)")
_ARCH = re.compile(r"(?:sm_|compute_)?(\d{2,3})([af]?)")
_MAX_NOTE = 1 << 16


class Arch(NamedTuple):
    """A GPU architecture: 121 with variant "a" is sm_121a (or compute_121a, for PTX)."""

    number: int
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.number}{self.variant}"

    @property
    def major(self) -> int:
        return self.number // 10


class Code(NamedTuple):
    """One piece of GPU code: machine code (a cubin) for one arch, or PTX to compile from."""

    ptx: bool
    arch: Arch

    def __str__(self) -> str:
        return f"{'compute' if self.ptx else 'sm'}_{self.arch}"


@dataclass(frozen=True, kw_only=True)
class GpuCode:
    """The GPU code of one file: for each different set of code that its translation units carry, how many carry it."""

    units: dict[frozenset[Code], int]
    pieces: dict[Code, int]

    def __add__(self, other: GpuCode) -> GpuCode:
        return GpuCode(units=dict(Counter(self.units) + Counter(other.units)), pieces=dict(Counter(self.pieces) + Counter(other.pieces)))


def parse_arch(text: str) -> Arch | None:
    """Read sm_121a, compute_80, 121f or 90; None if it is none of these."""
    match = _ARCH.fullmatch(text)
    return Arch(int(match[1]), match[2]) if match else None


def read_gpu_code_path(path: Path | str) -> GpuCode:
    """Raises MalformedElfError, OSError."""
    with FileSource(path) as source:
        return read_gpu_code(source)


def read_gpu_code(source: ByteSource) -> GpuCode:
    """Read the GPU code of a shared object, of a cubin, or of a bare fat binary. Raises MalformedElfError."""
    units: Counter[frozenset[Code]] = Counter()
    pieces: Counter[Code] = Counter()
    with checked_bounds():
        for unit in _units(source):
            units[frozenset(unit)] += 1
            pieces.update(unit)
    return GpuCode(units=dict(units), pieces=dict(pieces))


def _units(source: ByteSource) -> Iterator[list[Code]]:
    if source.size >= 4 and struct.unpack("<I", source.read(0, 4))[0] == _MAGIC:
        yield from _containers(source, 0, source.size)
        return
    header = read_header(source)
    if header.machine == "cuda":
        yield [Code(ptx=False, arch=_cubin_arch(source))]
        return
    for section in read_sections(source, header):
        if section.name == _SECTION:
            yield from _containers(source, section.offset, section.offset + section.size)


def _containers(source: ByteSource, at: int, end: int) -> Iterator[list[Code]]:
    """Walk containers one after another; between them lie zeros, up to the next multiple of eight."""
    if end > source.size:
        raise MalformedElfError("a section that reaches beyond the file")
    budget = _MAX_ENTRIES
    while at + 16 <= end:
        magic, _, header, size = struct.unpack("<IHHQ", source.read(at, 16))
        if magic == 0:
            at += 8
            budget -= 1
        elif magic != _MAGIC or header < 16 or at + header + size > end:
            raise MalformedElfError(f"no fat binary at {at:#x}")
        else:
            unit = list(_entries(source, at + header, at + header + size, budget))
            budget -= len(unit) + 1
            yield unit
            at += header + size
        if budget <= 0:
            raise MalformedElfError(f"more than {_MAX_ENTRIES} pieces of GPU code")


def _entries(source: ByteSource, at: int, end: int, budget: int) -> Iterator[Code]:
    while at + 64 <= end:
        kind, _, header, size, _, _, _, _, number, _, _, flags = _ENTRY.unpack(source.read(at, _ENTRY.size))
        if header < 64 or at + header + size > end or budget <= 0:
            raise MalformedElfError(f"an entry at {at:#x} that reaches beyond its fat binary")
        if kind in {_PTX, _CUBIN}:
            variant = "a" if flags & _ARCH_SPECIFIC else "f" if flags & _FAMILY_SPECIFIC else ""
            yield Code(ptx=kind == _PTX, arch=Arch(number, variant))
        at += header + size
        budget -= 1


def _cubin_arch(source: ByteSource) -> Arch:
    """Return the arch of a cubin: its number from the ELF flags, its variant from the note that ptxas leaves."""
    header = read_header(source)
    abi = source.read(8, 1)[0]
    number = header.flags >> 8 & 0xFF if abi >= 8 else header.flags & 0xFF  # LLVM, ELF.h: EF_CUDA_SM_OFFSET
    for section in read_sections(source, header):
        if section.name == ".note.nv.tkinfo" and section.size <= _MAX_NOTE:
            found = _NOTE_ARCH.search(source.read(section.offset, section.size))
            if found and int(found[1]) == number:
                return Arch(number, found[2].decode())
    return Arch(number)
