"""Finding single names in a library as the loader does, by its GNU hash table: nothing is listed that nobody asks for.

A library of torch's defines 50,000 names, and an extension asks for a few hundred. The table is a Bloom filter, buckets
and chains of hashes, one for each defined symbol; its only description are its implementations (glibc,
elf/dl-lookup.c; binutils, bfd/elflink.c).
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, Protocol

from envbuilder.binaries.elf import (
    DT_GNU_HASH,
    DT_STRSZ,
    DT_STRTAB,
    DT_SYMTAB,
    DT_VERSYM,
    GLOBAL,
    HIDDEN,
    INDEX,
    MAX_STRINGS,
    MAX_SYMBOLS,
    SHN_ABS,
    STT_TLS,
    VISIBLE,
    Reference,
    SymbolTable,
    open_tables,
    read_symbols,
    symbol_count,
    version_definitions,
)
from envbuilder.binaries.layout import MalformedElfError, checked_bounds
from envbuilder.binaries.source import FileSource

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from envbuilder.binaries.elf import Tables
    from envbuilder.binaries.source import ByteSource


class Provider(Protocol):
    """A library in which names are looked up. `weight`: bytes that it holds."""

    @property
    def weight(self) -> int: ...

    def without(self, names: Collection[str]) -> set[str]:
        """Return those of the names that it does not define, for references without version. Raises MalformedElfError."""
        ...

    def satisfies(self, reference: Reference) -> bool:
        """Tell whether it defines what a versioned reference asks for. Raises MalformedElfError."""
        ...


class TableProvider:
    """All symbols, read beforehand: for files without a GNU hash table, and for the atlas."""

    def __init__(self, table: SymbolTable) -> None:
        self._table = table

    @property
    def weight(self) -> int:
        return sum(map(len, self._table.defined))

    def without(self, names: Collection[str]) -> set[str]:
        return set(names) - self._table.defined

    def satisfies(self, reference: Reference) -> bool:
        defined = self._table.defined
        if not self._table.versioned:
            return reference.name in defined
        return f"{reference.name}@{reference.version}" in defined or f"{reference.name}@" in defined


class HashProvider:
    """A library's tables as they are in the file, asked name by name."""

    def __init__(self, tables: Tables) -> None:
        start = tables.place(DT_GNU_HASH)
        buckets, self._first, words, self._shift = struct.unpack("<IIII", tables.source.read(start, 16))
        count = symbol_count(tables)
        size = tables.dynamic.values.get(DT_STRSZ, 0)
        if (
            not 0 < buckets <= MAX_SYMBOLS
            or words & (words - 1)
            or not 0 < words <= MAX_SYMBOLS
            or count > MAX_SYMBOLS
            or size > MAX_STRINGS
        ):
            raise MalformedElfError(f"a hash table of {buckets} buckets and {words} words for {count} symbols")
        chains_at = start + 16 + 8 * words + 4 * buckets
        self._filter = _numbers(tables.source.read(start + 16, 8 * words), "Q")
        self._buckets = _numbers(tables.source.read(start + 16 + 8 * words, 4 * buckets), "I")
        self._chains = _numbers(tables.source.read(chains_at, 4 * max(0, count - self._first)), "I")
        self._symbols = tables.source.read(tables.place(DT_SYMTAB), 24 * count)
        self._strings = tables.source.read(tables.place(DT_STRTAB), size)
        self._marks: Sequence[int] = ()
        if DT_VERSYM in tables.dynamic.values:
            self._marks = _numbers(tables.source.read(tables.place(DT_VERSYM), 2 * count), "H")
        self._versions = dict(version_definitions(tables))

    @property
    def weight(self) -> int:
        return len(self._strings) + 2 * len(self._symbols)

    def without(self, names: Collection[str]) -> set[str]:
        return {name for name in names if not self._has(name, None)}

    def satisfies(self, reference: Reference) -> bool:
        return self._has(reference.name, reference.version if self._versions else None)

    def _has(self, name: str, version: str | None) -> bool:
        value = gnu_hash(name)
        word = self._filter[value >> 6 & len(self._filter) - 1]
        if not word >> (value & 63) & word >> (value >> self._shift & 63) & 1:
            return False
        number = self._buckets[value % len(self._buckets)]
        if number < self._first:
            return False
        try:
            while True:
                link = self._chains[number - self._first]
                if link | 1 == value | 1 and self._is(number, name, version):
                    return True
                if link & 1:
                    return False
                number += 1
        except IndexError as error:
            raise MalformedElfError("a hash chain without end") from error

    def _is(self, number: int, name: str, version: str | None) -> bool:
        """Tell whether a symbol has this name and may be taken (glibc, do_lookup_x and check_match)."""
        place, info, other, section, value = struct.unpack_from("<IBBHQ", self._symbols, 24 * number)
        if not self._strings.startswith(name.encode("latin-1") + b"\0", place):
            return False
        if not section or not info & GLOBAL or other & 3 not in VISIBLE or not (value or section == SHN_ABS or info & 15 == STT_TLS):
            return False
        mark = self._marks[number] if self._marks else 0
        if version is None:
            return not mark & HIDDEN
        return self._versions.get(mark & INDEX, version) == version


def provider_of(source: ByteSource) -> Provider:
    """Return what a file's symbols are looked up in. Raises MalformedElfError."""
    tables = open_tables(source)
    if DT_GNU_HASH not in tables.dynamic.values or DT_SYMTAB not in tables.dynamic.values or DT_STRTAB not in tables.dynamic.values:
        return TableProvider(read_symbols(source))
    with checked_bounds():
        return HashProvider(tables)


def provider_of_path(path: Path | str) -> Provider:
    """Return what a file's symbols are looked up in. Raises MalformedElfError, OSError."""
    with FileSource(path) as source:
        return provider_of(source)


def gnu_hash(name: str) -> int:
    """Return Bernstein's hash, as DT_GNU_HASH uses it; each name's once."""
    value = _HASHES.get(name)
    if value is None:
        value = 5381
        for byte in name.encode("latin-1"):
            value = value * 33 + byte & 0xFFFFFFFF
        if len(_HASHES) < _MOST_HASHES:
            _HASHES[name] = value
    return value


_HASHES: dict[str, int] = {}
_MOST_HASHES = 200_000


def _numbers(raw: bytes, code: str) -> Sequence[int]:
    """Return a table of little-endian numbers, in place where this machine is one itself."""
    if sys.byteorder == "little":
        return memoryview(raw).cast(code)  # type: ignore[call-overload, no-any-return]
    return struct.unpack(f"<{len(raw) // struct.calcsize(code)}{code}", raw)
