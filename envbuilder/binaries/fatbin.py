"""Which GPU code a file carries, read from the fat binaries that nvcc embeds, without unpacking any.

The format is not published; this is what CUDA 11 to 13 write, as seen in files made by nvcc 13.0 for each arch and in
torch's and vLLM's wheels, and checked against cuobjdump. A section holds containers, one per translation unit:

    container: u32 magic 0xBA55ED50, u16 version, u16 header size (16), u64 size of what follows
    entry:     u16 kind, u16 version, u32 header size (64 or more), u64 payload size, u32 compressed size,
               u32 options, u16 minor, u16 major, u32 sm, u32 + u32 name, u64 flags, u64, u64 unpacked size

cuobjdump (13.0) calls 121, 121a and 121f alike; the entry's flags tell them apart, and so does the string
`-arch sm_121a` in the cubin's .note.nv.tkinfo, which is read from single cubin files.

Not every library keeps its containers in .nv_fatbin: cuFFT has a dummy there and 23,983 in .data (half of them empty),
cuBLASLt some in .cask_resource. cuobjdump looks into .nv_fatbin alone; `read_code_outside` finds the others by their magic.
"""

from __future__ import annotations

import re
import struct
from collections import Counter

from envbuilder.binaries.layout import MalformedElfError, checked_bounds, read_header, read_sections
from envbuilder.binaries.source import FileSource
from envbuilder.values import NamedTuple, replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from envbuilder.binaries.source import ByteSource

_MAGIC = 0xBA55ED50
_MAGIC_BYTES = struct.pack("<I", _MAGIC)
_MAX_ENTRIES = 1_000_000  # libcublasLt, the largest known, has 20,000
_SECTION = ".nv_fatbin"  # __nv_relfatbin (below) holds code for a device linker: no driver loads it, and cuobjdump passes it over too
_RELOCATABLE = "__nv_relfatbin"
# Half of most libraries, and no place for GPU code.
_NOT_SEARCHED = (".text", ".eh_frame", ".gcc_except_table", ".debug_", _SECTION, _RELOCATABLE)
_PROGBITS = 1
_STEP = 1 << 20
_MAX_SEARCHED = 8 << 30  # the largest known library has 0.5 GB of data; a sparse file can claim any size
_PTX, _CUBIN = 1, 2
_ARCH_SPECIFIC, _FAMILY_SPECIFIC = 0x100000, 0x200000
_ENTRY = struct.Struct("<HHIQIIHHIIIQ")
_NOTE_ARCH = rb"-arch[ =]+sm_(\d+)([af]?)"
_ARCH = r"(?:sm_|compute_)?(\d{2,3}|\d{1,2}\.\d)([af]?)"
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


@value
class GpuCode:
    """The GPU code of one file: for each different set of code that its translation units carry, how many carry it.

    `outside`: how many of the units lie outside .nv_fatbin.
    """

    units: dict[frozenset[Code], int]
    pieces: dict[Code, int]
    outside: int = 0

    def __add__(self, other: GpuCode) -> GpuCode:
        return GpuCode(
            units=dict(Counter(self.units) + Counter(other.units)),
            pieces=dict(Counter(self.pieces) + Counter(other.pieces)),
            outside=self.outside + other.outside,
        )


def parse_arch(text: str) -> Arch | None:
    """Read sm_121a, compute_80, 121f, 90 or 12.1a (as TORCH_CUDA_ARCH_LIST has it); None if it is none of these."""
    match = re.fullmatch(_ARCH, text)
    return Arch(int(match[1].replace(".", "")), match[2]) if match else None


def read_gpu_code_path(path: Path | str) -> GpuCode:
    """Raises MalformedElfError, OSError."""
    with FileSource(path) as source:
        return read_gpu_code(source)


def read_gpu_code(source: ByteSource) -> GpuCode:
    """Read the GPU code of a shared object, of a cubin, or of a bare fat binary. Raises MalformedElfError."""
    with checked_bounds():
        return _counted(_units(source))


def read_code_outside(source: ByteSource) -> GpuCode:
    """Read the GPU code of a shared object that lies outside .nv_fatbin, by searching its data. Raises MalformedElfError."""
    with checked_bounds():
        found = _counted(_outside(source))
    return replace(found, outside=sum(found.units.values()))


def _counted(found: Iterable[list[Code]]) -> GpuCode:
    units: Counter[frozenset[Code]] = Counter()
    pieces: Counter[Code] = Counter()
    for unit in found:
        units[frozenset(unit)] += 1
        pieces.update(unit)
    return GpuCode(units=dict(units), pieces=dict(pieces))


def _units(source: ByteSource) -> Iterator[list[Code]]:
    if _is_bare(source):
        yield from _Walk(source).containers(0, source.size)
        return
    header = read_header(source)
    if header.machine == "cuda":
        yield [Code(ptx=False, arch=_cubin_arch(source))]
        return
    for section in read_sections(source, header):
        if section.name == _SECTION:
            yield from _Walk(source).containers(section.offset, section.offset + section.size)


def _outside(source: ByteSource) -> Iterator[list[Code]]:
    if _is_bare(source) or (header := read_header(source)).machine == "cuda":
        return
    places = sorted(
        (section.offset, section.offset + section.size)
        for section in read_sections(source, header)
        if section.kind == _PROGBITS and not section.name.startswith(_NOT_SEARCHED)
    )
    walk = _Walk(source)
    searched = 0
    for start, stop in places:
        # Sections that lie over each other are a lie; searched once each, thousands of them would take hours.
        yield from walk.search(max(start, searched), min(stop, source.size))
        searched = max(searched, stop)


def _is_bare(source: ByteSource) -> bool:
    return source.size >= 4 and source.read(0, 4) == _MAGIC_BYTES


class _Walk:
    """Reads containers and their entries, and counts what it reads: a file that lies costs a million steps and no more."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._left = _MAX_ENTRIES
        self._to_search = _MAX_SEARCHED

    def containers(self, at: int, end: int) -> Iterator[list[Code]]:
        """Walk containers one after another; between them lie zeros, up to the next multiple of eight."""
        if end > self._source.size:
            raise MalformedElfError("a section that reaches beyond the file")
        while at + 16 <= end:
            self._step()
            magic, _, header, size = struct.unpack("<IHHQ", self._source.read(at, 16))
            if magic == 0:
                at += 8
            elif magic != _MAGIC or header < 16 or at + header + size > end:
                raise MalformedElfError(f"no fat binary at {at:#x}")
            else:
                yield self._entries(at + header, at + header + size)[0]
                at += header + size

    def search(self, start: int, end: int) -> Iterator[list[Code]]:
        """Find containers among other data: where the magic stands, and the sizes after it fit to the last byte."""
        taken = start
        for at in self._magics(start, end):
            self._step()
            if at < taken or at + 16 > end:
                continue
            _, _, header, size = struct.unpack("<IHHQ", self._source.read(at, 16))
            stop = at + 16 + size
            if header != 16 or stop > end:
                continue
            try:
                unit, last = self._entries(at + 16, stop)
            except MalformedElfError:
                continue  # the same four bytes by chance; what was read for that is counted
            if unit and last == stop:
                yield unit
                taken = stop

    def _magics(self, at: int, end: int) -> Iterator[int]:
        self._to_search -= max(0, end - at)
        if self._to_search < 0:
            raise MalformedElfError("more data than any library has")
        while at + 4 <= end:
            piece = self._source.read(at, min(_STEP, end - at))
            found = piece.find(_MAGIC_BYTES)
            while found >= 0:
                yield at + found
                found = piece.find(_MAGIC_BYTES, found + 4)
            at += len(piece) - 3  # a magic may lie across two pieces

    def _entries(self, at: int, end: int) -> tuple[list[Code], int]:
        """Return the code between two places, and where its last entry ends."""
        unit: list[Code] = []
        while at + 64 <= end:
            self._step()
            kind, _, header, size, _, _, _, _, number, _, _, flags = _ENTRY.unpack(self._source.read(at, _ENTRY.size))
            if header < 64 or at + header + size > end:
                raise MalformedElfError(f"an entry at {at:#x} that reaches beyond its fat binary")
            if kind in {_PTX, _CUBIN}:
                variant = "a" if flags & _ARCH_SPECIFIC else "f" if flags & _FAMILY_SPECIFIC else ""
                unit.append(Code(ptx=kind == _PTX, arch=Arch(number, variant)))
            at += header + size
        return unit, at

    def _step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise MalformedElfError(f"more than {_MAX_ENTRIES} pieces of GPU code")


def _cubin_arch(source: ByteSource) -> Arch:
    """Return the arch of a cubin: its number from the ELF flags, its variant from the note that ptxas leaves."""
    header = read_header(source)
    abi = source.read(8, 1)[0]
    number = header.flags >> 8 & 0xFF if abi >= 8 else header.flags & 0xFF  # LLVM, ELF.h: EF_CUDA_SM_OFFSET
    for section in read_sections(source, header):
        if section.name == ".note.nv.tkinfo" and section.size <= _MAX_NOTE:
            found = re.search(_NOTE_ARCH, source.read(section.offset, section.size))
            if found and int(found[1]) == number:
                return Arch(number, found[2].decode())
    return Arch(number)
