"""The outer structure of an ELF64 file: header, segments, sections, dynamic section; all sizes checked first.

Everything is found as the loader finds it, by program headers and addresses; section headers are read only by who
wants a section's content (GPU code), for the loader does without them and patchelf or strip may leave them wrong.
Layouts: elf.h, and the System V gABI, chapters 4 and 5.
"""

from __future__ import annotations

import contextlib
import struct

from envbuilder.binaries.source import OutOfRangeError
from envbuilder.values import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuilder.binaries.source import ByteSource

# Bounds, each several times what the largest files of a vLLM environment hold.
_MAX_SECTIONS = 1 << 16
_MAX_SEGMENTS = 1 << 12
_MAX_DYNAMIC_BYTES = 1 << 20
_MAX_SECTION_NAMES = 8 << 20

_PT_LOAD, _PT_DYNAMIC = 1, 2
_SHT_NOBITS = 8
_MACHINES = {3: "i386", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64", 190: "cuda", 243: "riscv"}


class MalformedElfError(ValueError):
    """The bytes are not an ELF file (`is_elf` false: no magic), or one that lies about itself."""

    def __init__(self, why: str, *, is_elf: bool = True) -> None:
        super().__init__(why)
        self.is_elf = is_elf


class Segment(NamedTuple):
    """A piece of the file (`offset`, `size`) and the address it is loaded at."""

    offset: int
    address: int
    size: int


class Section(NamedTuple):
    """A section with content in the file; `kind` is sh_type."""

    name: str
    kind: int
    offset: int
    size: int


class Table(NamedTuple):
    """Where a table of headers lies: offset, bytes per entry, entries."""

    offset: int
    entry_size: int
    entries: int


_NO_TABLE = Table(0, 0, 0)


class ElfHeader(NamedTuple):
    """The fixed start; `kind` is e_type. `supported` is false for 32-bit and big-endian files, of which only the machine is read."""

    machine: str
    supported: bool
    kind: int = 0
    flags: int = 0
    segments: Table = _NO_TABLE
    sections: Table = _NO_TABLE
    section_names: int = 0


class Dynamic(NamedTuple):
    """The dynamic section: the offsets of the needed libraries' names, and for each other tag its last value."""

    needed: tuple[int, ...]
    values: dict[int, int]


@contextlib.contextmanager
def checked_bounds() -> Iterator[None]:
    """Whatever lies outside the file, or is cut, makes the file malformed; no other error leaves a reader."""
    try:
        yield
    except (OutOfRangeError, struct.error) as error:
        raise MalformedElfError(str(error)) from error


def read_header(source: ByteSource) -> ElfHeader:
    """Read the ELF header. Raises MalformedElfError."""
    with checked_bounds():
        start = source.read(0, min(64, source.size))
        if start[:4] != b"\x7fELF":
            raise MalformedElfError("no ELF magic", is_elf=False)
        little, wide = start[5:6] == b"\x01", start[4:5] == b"\x02"
        kind, machine = struct.unpack_from("<HH" if little else ">HH", start, 16)
        name = _MACHINES.get(machine, f"machine-{machine}")
        if not (little and wide):
            return ElfHeader(machine=name + (" (big-endian)" if wide else " (32-bit)"), supported=False)
        phoff, shoff, flags, _, phentsize, phnum, shentsize, shnum, shstrndx = struct.unpack_from("<QQIHHHHHH", start, 32)
        return ElfHeader(
            machine=name,
            supported=True,
            kind=kind,
            flags=flags,
            segments=Table(phoff, phentsize, phnum),
            sections=Table(shoff, shentsize, shnum),
            section_names=shstrndx,
        )


def read_segments(source: ByteSource, header: ElfHeader) -> tuple[tuple[Segment, ...], Segment | None]:
    """Return the loaded segments, and the one that holds the dynamic section. Raises MalformedElfError."""
    table = header.segments
    if table.entries == 0:
        return (), None
    if table.entry_size != 56 or table.entries > _MAX_SEGMENTS:
        raise MalformedElfError(f"{table.entries} program headers of {table.entry_size} bytes")
    loaded: list[Segment] = []
    dynamic: Segment | None = None
    with checked_bounds():
        for kind, _, offset, address, _, size, _, _ in struct.iter_unpack("<IIQQQQQQ", source.read(table.offset, 56 * table.entries)):
            if kind == _PT_LOAD:
                loaded.append(Segment(offset, address, size))
            elif kind == _PT_DYNAMIC:
                dynamic = Segment(offset, address, size)
    return tuple(loaded), dynamic


def check_whole(source: ByteSource, segments: tuple[Segment, ...]) -> None:
    """Refuse a file that ends before its segments do: the loader maps it all the same, and it dies of SIGBUS. Raises MalformedElfError."""
    end = max((segment.offset + segment.size for segment in segments), default=0)
    if end > source.size:
        raise MalformedElfError(f"cut short: {source.size} bytes are here, and its segments need {end}")


def read_dynamic(source: ByteSource, place: Segment) -> Dynamic:
    """Read the dynamic section up to its DT_NULL. Raises MalformedElfError."""
    if place.size > _MAX_DYNAMIC_BYTES:
        raise MalformedElfError(f"a dynamic section of {place.size} bytes")
    needed: list[int] = []
    values: dict[int, int] = {}
    with checked_bounds():
        for tag, value in struct.iter_unpack("<QQ", source.read(place.offset, place.size // 16 * 16)):
            match tag:
                case 0:
                    break
                case 1:
                    needed.append(value)
                case _:
                    values[tag] = value
    return Dynamic(needed=tuple(needed), values=values)


def file_offset(segments: tuple[Segment, ...], address: int) -> int:
    """Translate an address into a place in the file. Raises MalformedElfError."""
    for segment in segments:
        if segment.address <= address < segment.address + segment.size:
            return address - segment.address + segment.offset
    raise MalformedElfError(f"address {address:#x} lies in no segment")


def read_sections(source: ByteSource, header: ElfHeader) -> tuple[Section, ...]:
    """Return the sections that have content in the file, with their names. Raises MalformedElfError."""
    offset, entry, count = header.sections
    if offset == 0 or not header.supported:
        return ()
    with checked_bounds():
        if entry != 64:
            raise MalformedElfError(f"section headers of {entry} bytes")
        names_index = header.section_names
        if count == 0 or names_index == 0xFFFF:  # more than 65,279 sections: the true numbers stand in section 0
            first = struct.unpack("<IIQQQQIIQQ", source.read(offset, 64))
            count, names_index = count or first[5], first[6] if names_index == 0xFFFF else names_index
        if count > _MAX_SECTIONS:
            raise MalformedElfError(f"{count} sections")
        rows = tuple(struct.iter_unpack("<IIQQQQIIQQ", source.read(offset, count * 64)))
        if names_index >= count:
            raise MalformedElfError(f"section names in section {names_index} of {count}")
        if rows[names_index][5] > _MAX_SECTION_NAMES:
            raise MalformedElfError(f"{rows[names_index][5]} bytes of section names")
        names = source.read(rows[names_index][4], rows[names_index][5])
    return tuple(
        Section(name=_short_name(names, row[0]), kind=row[1], offset=row[4], size=row[5]) for row in rows if row[1] not in {0, _SHT_NOBITS}
    )


def _short_name(names: bytes, offset: int) -> str:
    """Return a section's name; longer than 64 bytes is of no interest, and a million long ones would fill memory."""
    end = names.find(b"\0", offset, offset + 64)
    return names[offset : end if end >= 0 else offset + 64].decode("latin-1")
