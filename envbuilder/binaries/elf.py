"""What the dynamic loader sees of an ELF64 file: its machine, the libraries it needs, its symbols and their versions.

Own unpacking rather than pyelftools: its iterator makes an object per symbol (2 s for torch's 90,000; the
comprehensions here take 30 ms), it does not bound sizes that lie, and it starts from section headers. Symbol
versions: Ulrich Drepper, "ELF Symbol Versioning". The GNU hash table is described by its implementations only.

Every size is checked before memory is spent on it. What does not hold raises MalformedElfError and nothing else.
"""

from __future__ import annotations

import functools
import struct
import sys

from envbuilder.binaries.layout import (
    Dynamic,
    MalformedElfError,
    check_whole,
    checked_bounds,
    file_offset,
    read_dynamic,
    read_header,
    read_segments,
)
from envbuilder.binaries.source import FileSource
from envbuilder.values import NamedTuple, made, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from envbuilder.binaries.layout import Segment
    from envbuilder.binaries.source import ByteSource

# Bounds, each several times what the largest files of a vLLM environment hold (torch: 90,000 symbols, 16 MB of names).
MAX_SYMBOLS = 1_000_000
_MAX_NAME = 1 << 16
_SHORT_NAME = 1 << 8
MAX_STRINGS = 64 << 20
_MAX_VERSION_BYTES = 1 << 15  # libstdc++ has the longest list: 3 kB
MAX_CHAIN = 1 << 14  # bytes of the last hash chain, which has a few entries
_MAX_RELOCATION_BYTES = 64 << 20
_MAX_PATH = 1 << 12  # of RPATH or RUNPATH; the longest has 179 characters
_MAX_NEEDED = 1 << 10  # each is looked for in each folder of that path; the most are 22
_SPARSE = 2048  # bytes between two names, from which on each is read by itself
_OVERLAP = "symbol names overlap without bound"
_LAST_STRINGS = 1 << 14

_DT_PLTRELSZ, _DT_HASH, DT_STRTAB, DT_SYMTAB, _DT_RELA, _DT_RELASZ, DT_STRSZ = 2, 4, 5, 6, 7, 8, 10
_DT_SONAME, _DT_RPATH, _DT_JMPREL, _DT_RUNPATH = 14, 15, 23, 29
DT_GNU_HASH, DT_VERSYM, _DT_VERDEF, _DT_VERNEED = 0x6FFFFEF5, 0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFE
SHN_ABS = 0xFFF1
_STB_WEAK = 2
_LOADED_KINDS = frozenset({2, 3})  # ET_EXEC, ET_DYN
GLOBAL = 0xF0  # the binding, in st_info; 0 is STB_LOCAL
STT_TLS = 6
VISIBLE = frozenset({0, 3})  # STV_DEFAULT, STV_PROTECTED
_HIDDEN, INDEX = 0x8000, 0x7FFF
_OLDEST = 2  # the index of the first version that a file defines; 0 and 1 stand for none
_UNVERSIONED = (None, None)


class Reference(NamedTuple):
    """A symbol needed from elsewhere; `library` is the soname in which its version was found at link time."""

    name: str
    weak: bool
    version: str | None = None
    library: str | None = None


_reference = functools.partial(tuple.__new__, Reference)  # half the time of calling the class, of which thousands are made


class VersionNeed(NamedTuple):
    """A version that a library must define, or the loader refuses the file (``version `X' not found``)."""

    library: str
    version: str
    weak: bool


@value
class ElfFile:
    """What the loader needs to know before it looks at symbols. Paths in rpath and runpath still hold $ORIGIN."""

    machine: str
    soname: str | None = None
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()
    requires: tuple[VersionNeed, ...] = ()
    provides: frozenset[str] = frozenset()


@value
class SymbolTable:
    """The dynamic symbols.

    `defined` holds `name` for what an unversioned reference finds, `name@VERSION` for a versioned one, and `name@`
    for a symbol without version in a file that defines versions (`versioned`): that one satisfies both.
    """

    undefined: tuple[Reference, ...] = ()
    defined: frozenset[str] = frozenset()
    versioned: bool = False


def read_elf(source: ByteSource) -> ElfFile:
    """Read header, dynamic section and symbol versions. Raises MalformedElfError."""
    return elf_of(open_tables(source))


def elf_of(tables: Tables) -> ElfFile:
    """Read the dynamic section and the symbol versions. Raises MalformedElfError."""
    if len(tables.dynamic.needed) > _MAX_NEEDED:
        raise MalformedElfError(f"it needs {len(tables.dynamic.needed)} libraries")
    with checked_bounds():
        return ElfFile(
            machine=tables.machine,
            soname=tables.string(tables.dynamic.values[_DT_SONAME]) if _DT_SONAME in tables.dynamic.values else None,
            needed=tuple(map(tables.string, tables.dynamic.needed)),
            rpath=_search_path(tables, _DT_RPATH),
            runpath=_search_path(tables, _DT_RUNPATH),
            requires=tuple(need for _, need in tables.needs),
            provides=frozenset(name for _, name in tables.definitions),
        )


def read_symbols(source: ByteSource) -> SymbolTable:
    """Read the dynamic symbol table. Raises MalformedElfError."""
    return symbols_of(open_tables(source))


def symbols_of(tables: Tables) -> SymbolTable:
    """Read the dynamic symbol table. Raises MalformedElfError."""
    with checked_bounds():
        return SymbolTable(undefined=references_of(tables), defined=_defined(tables), versioned=bool(tables.definitions))


def references_of(
    tables: Tables, *, weak: bool = True, but_to: Collection[str] = (), but: Callable[[str], object] | None = None
) -> tuple[Reference, ...]:
    """Read the undefined symbols alone: all that matters of an extension that nobody links. Raises MalformedElfError.

    `weak`: those that may stay undefined too; `but_to`: sonames whose versioned symbols are left out; `but`: names that are.
    """
    with checked_bounds():
        raw = raw_symbols(tables)
        # Symbols that a hash table lists stand last in their table: of a library's 50,000 only the first thousand are
        # looked at, up to the last one in section 0, "undefined".
        count = raw[6::24].rfind(0) + 1
        places, sections = numbers(raw[: 24 * count], "I")[::6], numbers(raw[: 24 * count], "H")[3::12]
        marks = version_marks(tables, len(raw) // 24)[:count]
        needs = dict(tables.needs) if marks else {}
        skipped = {index for index, need in needs.items() if need.library in but_to}
        chosen = [
            (place, info >> 4 == _STB_WEAK, mark & INDEX)
            for place, info, section, mark in zip(places, raw[4 : 24 * count : 24], sections, marks or bytes(count), strict=True)
            if not section and place and info & GLOBAL and (weak or info >> 4 != _STB_WEAK) and mark & INDEX not in skipped
        ]
        found = {index: (need.version, need.library) for index, need in needs.items()}
        names = _names(tables, [place for place, _, _ in chosen])
        return tuple(
            _reference((name, weak, *found.get(index, _UNVERSIONED)))
            for name, (_, weak, index) in zip(names, chosen, strict=True)
            if but is None or not but(name)
        )


def read_elf_path(path: Path | str) -> ElfFile:
    """Read a file's header and dynamic section. Raises MalformedElfError, OSError."""
    with FileSource(path) as source:
        return read_elf(source)


def read_symbols_path(path: Path | str) -> SymbolTable:
    """Read a file's dynamic symbols. Raises MalformedElfError, OSError."""
    with FileSource(path) as source:
        return read_symbols(source)


@value
class Tables:
    """A file whose dynamic section is known, and access to what it points at."""

    source: ByteSource
    machine: str
    segments: tuple[Segment, ...] = ()
    dynamic: Dynamic = made(default_factory=lambda: Dynamic(needed=(), values={}))

    def place(self, tag: int) -> int:
        """Return the place in the file of the table that a tag points at."""
        return file_offset(self.segments, self.dynamic.values[tag])

    def upto(self, offset: int, limit: int) -> bytes:
        """Return the bytes from `offset` on, at most `limit`."""
        if offset > self.source.size:
            raise MalformedElfError(f"a table at {offset}, behind the file's {self.source.size} bytes")
        return self.source.read(offset, min(limit, self.source.size - offset))

    def string(self, offset: int) -> str:
        """Return one short string of the string table, without reading the table."""
        start, strings = self._last_strings
        if offset >= start:
            end = strings.find(b"\0", offset - start)
            if end >= 0:
                return strings[offset - start : end].decode("latin-1")
        for limit in (_SHORT_NAME, _MAX_NAME):  # sonames and versions have some twenty bytes, and there are thousands
            text, found, _ = self.upto(self.place(DT_STRTAB) + offset, limit).partition(b"\0")
            if found:
                return text.decode("latin-1")
        raise MalformedElfError("a string without end")

    @functools.cached_property
    def needs(self) -> tuple[tuple[int, VersionNeed], ...]:
        """The versions that are needed of other files, each with its index in the version table."""
        return tuple(_version_needs(self))

    @functools.cached_property
    def definitions(self) -> tuple[tuple[int, str], ...]:
        """The versions that are defined here, each with its index in the version table."""
        return tuple(_version_definitions(self))

    @functools.cached_property
    def symbol_count(self) -> int:
        """The number of dynamic symbols."""
        return _symbol_count(self)

    @functools.cached_property
    def _last_strings(self) -> tuple[int, bytes]:
        """The end of the string table and where it begins: linkers put sonames and versions there, behind the symbols' names.

        It is the whole table in most files, and one read instead of thirty.
        """
        if DT_STRTAB not in self.dynamic.values:
            raise MalformedElfError("no string table")
        place = self.place(DT_STRTAB)
        size = max(0, min(self.dynamic.values.get(DT_STRSZ, 0), self.source.size - place))  # as the file says, which need not be true
        start = max(0, size - _LAST_STRINGS)
        return start, self.source.read(place + start, size - start)


def open_tables(source: ByteSource) -> Tables:
    """Read a file's outer structure. Raises MalformedElfError, also where the loader would not take it for what it is."""
    header = read_header(source)
    if not header.supported:
        return Tables(source=source, machine=header.machine)
    if header.kind not in _LOADED_KINDS:
        raise MalformedElfError(f"neither a shared object nor a program, but an ELF file of type {header.kind} (1: an object file, .o)")
    segments, place = read_segments(source, header)
    check_whole(source, segments)
    if place is None:
        return Tables(source=source, machine=header.machine, segments=segments)
    return Tables(source=source, machine=header.machine, segments=segments, dynamic=read_dynamic(source, place))


def _search_path(tables: Tables, tag: int) -> tuple[str, ...]:
    if tag not in tables.dynamic.values:
        return ()
    text = tables.string(tables.dynamic.values[tag])
    if len(text) > _MAX_PATH:
        raise MalformedElfError(f"a search path of {len(text)} characters")
    return tuple(part for part in text.split(":") if part)


def raw_symbols(tables: Tables) -> bytes:
    """Return the symbol table as it is in the file. Elf64_Sym: u32 name, u8 info, u8 other, u16 section, u64 value, u64 size."""
    if DT_SYMTAB not in tables.dynamic.values:
        return b""
    count = tables.symbol_count
    if count > MAX_SYMBOLS:
        raise MalformedElfError(f"{count} symbols")
    return tables.source.read(tables.place(DT_SYMTAB), 24 * count)


def raw_strings(tables: Tables) -> bytes:
    """Return the string table as it is in the file."""
    size = tables.dynamic.values.get(DT_STRSZ, 0)
    if size > MAX_STRINGS:
        raise MalformedElfError(f"{size} bytes of symbol names")
    return tables.source.read(tables.place(DT_STRTAB), size) if DT_STRTAB in tables.dynamic.values else b""


def version_marks(tables: Tables, count: int, *, first: int = 0) -> Sequence[int]:
    """Return the version index of each symbol from `first` on, with its mark of being hidden; nothing where the file has no versions."""
    if DT_VERSYM not in tables.dynamic.values:
        return ()
    return numbers(tables.source.read(tables.place(DT_VERSYM) + 2 * first, 2 * count), "H")


def numbers(raw: bytes, code: str) -> Sequence[int]:
    """Return a table of little-endian numbers, in place where this machine is one itself."""
    if sys.byteorder == "little":
        return memoryview(raw).cast(code)  # type: ignore[call-overload, no-any-return]
    return struct.unpack(f"<{len(raw) // struct.calcsize(code)}{code}", raw)


def answers_unversioned(mark: int) -> bool:
    """Tell whether a symbol is taken for a reference without version: the default version is, and the oldest, hidden or not.

    Who was linked before a library had versions means its first one (glibc, elf/dl-lookup.c, check_match).
    """
    return not mark & _HIDDEN or mark & INDEX <= _OLDEST


def _defined(tables: Tables) -> frozenset[str]:
    """Choose what glibc's lookup would accept (elf/dl-lookup.c, do_lookup_x and check_match)."""
    raw = raw_symbols(tables)
    chosen = [
        (number, place)
        for number, (place, info, other, section, value) in enumerate(struct.iter_unpack("<IBBHQ8x", raw))
        if section and info & GLOBAL and other & 3 in VISIBLE and (value or section == SHN_ABS or info & 15 == STT_TLS) and place
    ]
    names = _names(tables, [place for _, place in chosen])
    versions = version_marks(tables, len(raw) // 24)
    if not versions:
        return frozenset(names)
    marks = [versions[number] for number, _ in chosen]
    shown = [name for name, mark in zip(names, marks, strict=True) if answers_unversioned(mark)]
    if not tables.definitions:
        return frozenset(shown)
    suffixes = {index: f"@{version}" for index, version in tables.definitions}
    return frozenset((*shown, *(name + suffixes.get(mark & INDEX, "@") for name, mark in zip(names, marks, strict=True))))


def _names(tables: Tables, places: Sequence[int]) -> list[str]:
    """Return the names at these places of the string table, decoded as Latin-1, which keeps every byte."""
    if not places:
        return []
    if max(places) - min(places) > _SPARSE * len(places):
        return _single_names(tables, places)
    strings = raw_strings(tables)
    find = strings.find
    ends = [find(0, place, place + _MAX_NAME) for place in places]
    if min(ends) < 0:
        raise MalformedElfError("a symbol's name without end")
    if sum(ends) - sum(places) > MAX_STRINGS:  # a table of one long string, and a million places to start
        raise MalformedElfError(_OVERLAP)
    return [strings[place:end].decode("latin-1") for place, end in zip(places, ends, strict=True)]


def _single_names(tables: Tables, places: Sequence[int]) -> list[str]:
    """Read each name by itself: a few hundred in a table of megabytes (Triton's has 14)."""
    names, room = [], MAX_STRINGS
    for place in places:
        names.append(tables.string(place))
        room -= len(names[-1])
        if room < 0:
            raise MalformedElfError(_OVERLAP)
    return names


def _version_needs(tables: Tables) -> Iterator[tuple[int, VersionNeed]]:
    """Yield (index used in the version table, need). Elf64_Verneed, each with its chain of Elf64_Vernaux."""
    if _DT_VERNEED not in tables.dynamic.values:
        return
    data = tables.upto(tables.place(_DT_VERNEED), _MAX_VERSION_BYTES)
    for at in _chain(data, 0, "<HHIII", next_field=4):
        _, count, library, first, _ = struct.unpack_from("<HHIII", data, at)
        if count == 0:
            continue
        name = tables.string(library)
        for aux in _chain(data, at + first, "<IHHII", next_field=4):
            _, flags, index, version, _ = struct.unpack_from("<IHHII", data, aux)
            yield index & INDEX, VersionNeed(name, tables.string(version), bool(flags & 2))


def _version_definitions(tables: Tables) -> Iterator[tuple[int, str]]:
    """Yield (index used in the version table, version defined here). Elf64_Verdef; the first name is its own."""
    if _DT_VERDEF not in tables.dynamic.values:
        return
    data = tables.upto(tables.place(_DT_VERDEF), _MAX_VERSION_BYTES)
    for at in _chain(data, 0, "<HHHHIII", next_field=6):
        _, flags, index, _, _, first, _ = struct.unpack_from("<HHHHIII", data, at)
        if not flags & 1:  # VER_FLG_BASE names the file itself, which is no version
            yield index & INDEX, tables.string(struct.unpack_from("<I", data, at + first)[0])


def _chain(data: bytes, at: int, layout: str, *, next_field: int) -> Iterator[int]:
    """Walk records that say how far ahead the next one is; always forward, so always to an end."""
    while True:
        yield at
        step = struct.unpack_from(layout, data, at)[next_field]
        if step == 0:
            return
        at += step


def _symbol_count(tables: Tables) -> int:
    """Return the number of dynamic symbols, which no field states: it follows from a hash table, or the relocations."""
    if _DT_HASH in tables.dynamic.values:
        chains: int = struct.unpack("<II", tables.source.read(tables.place(_DT_HASH), 8))[1]
        return chains
    from_hash = _count_by_gnu_hash(tables) if DT_GNU_HASH in tables.dynamic.values else 0
    return from_hash or _count_by_relocations(tables)


def _count_by_gnu_hash(tables: Tables) -> int:
    """The table lists defined symbols only, in their order at the end: the last chain ends with the last symbol."""
    start = tables.place(DT_GNU_HASH)
    bucket_count, first, bloom_words, _ = struct.unpack("<IIII", tables.source.read(start, 16))
    if bucket_count > MAX_SYMBOLS or bloom_words > MAX_SYMBOLS:
        raise MalformedElfError(f"a hash table of {bucket_count} buckets and {bloom_words} words")
    buckets_at = start + 16 + 8 * bloom_words
    last: int = max(struct.unpack(f"<{bucket_count}I", tables.source.read(buckets_at, 4 * bucket_count)), default=0)
    if last < first:
        return 0
    chain = tables.upto(buckets_at + 4 * bucket_count + 4 * (last - first), MAX_CHAIN)
    for number, (link,) in enumerate(struct.iter_unpack("<I", chain[: len(chain) // 4 * 4])):
        if link & 1:
            return last + number + 1
    raise MalformedElfError("a hash chain without end")


def _count_by_relocations(tables: Tables) -> int:
    """A file that defines nothing: as many symbols as its relocations speak of."""
    highest = 0
    for table, size in ((_DT_RELA, _DT_RELASZ), (_DT_JMPREL, _DT_PLTRELSZ)):
        length = tables.dynamic.values.get(size, 0) if table in tables.dynamic.values else 0
        if length > _MAX_RELOCATION_BYTES:
            raise MalformedElfError(f"{length} bytes of relocations")
        if length:
            raw = tables.source.read(tables.place(table), length // 24 * 24)
            highest = max(highest, max((info >> 32 for _, info, _ in struct.iter_unpack("<QQq", raw)), default=0))
    return highest + 1 if highest else 0
