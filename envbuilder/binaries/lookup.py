"""Finding single names in a library as the loader does, by its GNU hash table: nothing is listed that nobody asks for.

A library of torch's defines 50,000 names, and an extension asks for a few hundred. The table is a Bloom filter, buckets
and chains of hashes, one for each defined symbol; its only description are its implementations (glibc,
elf/dl-lookup.c; binutils, bfd/elflink.c).
"""

from __future__ import annotations

import functools
import struct

from envbuilder.binaries.elf import (
    DT_GNU_HASH,
    DT_STRTAB,
    DT_SYMTAB,
    DT_VERSYM,
    GLOBAL,
    INDEX,
    MAX_CHAIN,
    MAX_SYMBOLS,
    SHN_ABS,
    STT_TLS,
    VISIBLE,
    Reference,
    SymbolTable,
    answers_unversioned,
    numbers,
    raw_strings,
    raw_symbols,
    symbols_of,
    version_marks,
)
from envbuilder.binaries.layout import MalformedElfError, checked_bounds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import Protocol

    from envbuilder.binaries.elf import Tables
else:
    Protocol = object

_symbol_at = struct.Struct("<IBBHQ").unpack_from


class Provider(Protocol):
    """A library in which names are looked up. `weight`: bytes that it holds."""

    @property
    def weight(self) -> int: ...

    def without(self, names: Collection[str]) -> set[str]:
        """Return those of the names that it does not define, for references without version. Raises MalformedElfError."""

    def satisfies(self, reference: Reference) -> bool:
        """Tell whether it defines what a versioned reference asks for. Raises MalformedElfError."""


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
        self._symbols, self._strings = raw_symbols(tables), raw_strings(tables)
        count = len(self._symbols) // 24
        if not 0 < buckets <= MAX_SYMBOLS or words & (words - 1) or not 0 < words <= MAX_SYMBOLS:
            raise MalformedElfError(f"a hash table of {buckets} buckets and {words} words for {count} symbols")
        buckets_at = start + 16 + 8 * words
        self._filter = numbers(tables.source.read(start + 16, 8 * words), "Q")
        self._buckets = numbers(tables.source.read(buckets_at, 4 * buckets), "I")
        self._chains = numbers(tables.source.read(buckets_at + 4 * buckets, 4 * max(0, count - self._first)), "I")
        self._marks = version_marks(tables, count)
        self._versions = dict(tables.definitions)

    @property
    def weight(self) -> int:
        return len(self._strings) + 2 * len(self._symbols)

    def without(self, names: Collection[str]) -> set[str]:
        if len(self._chains) < len(names):  # libtorch.so defines next to nothing, and is asked for hundreds
            return set(names) - self._few
        bloom, mask, shift, hashes, found = self._filter, len(self._filter) - 1, self._shift, HASHES, self._found
        return {
            name
            for name in names
            if not (word := bloom[(value := hashes[name]) >> 6 & mask]) >> (value & 63) & word >> (value >> shift & 63) & 1
            or not found(name, value, None)
        }

    @functools.cached_property
    def _few(self) -> frozenset[str]:
        """All names that are found here, for references without version."""
        places = struct.iter_unpack("<I20x", self._symbols[24 * self._first :])
        names = (self._strings[place : self._strings.find(b"\0", place)].decode("latin-1") for (place,) in places)
        return frozenset(name for number, name in enumerate(names, self._first) if self._is(number, name, None))

    def satisfies(self, reference: Reference) -> bool:
        return self._found(reference.name, HASHES[reference.name], reference.version if self._versions else None)

    def _found(self, name: str, value: int, version: str | None) -> bool:
        """Follow the chain of a hash value."""
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
        place, info, other, section, value = _symbol_at(self._symbols, 24 * number)
        if not self._strings.startswith(name.encode("latin-1") + b"\0", place):
            return False
        if not _may_be_taken(info, other, section, value):
            return False
        mark = self._marks[number] if self._marks else 0
        if version is None:
            return answers_unversioned(mark)
        return self._versions.get(mark & INDEX, version) == version


def defines(tables: Tables, name: str) -> bool:
    """Tell whether a library defines one name, for a reference without version: a few reads, where its tables have megabytes.

    Raises MalformedElfError.
    """
    values = tables.dynamic.values
    if not values.keys() >= {DT_GNU_HASH, DT_SYMTAB, DT_STRTAB}:
        return not TableProvider(symbols_of(tables)).without({name})
    wanted = name.encode("latin-1") + b"\0"
    with checked_bounds():
        for number in _numbers_of_hash(tables, HASHES[name]):
            place, info, other, section, value = _symbol_at(tables.source.read(tables.place(DT_SYMTAB) + 24 * number, 24))
            if tables.upto(tables.place(DT_STRTAB) + place, len(wanted)) != wanted or not _may_be_taken(info, other, section, value):
                continue
            if DT_VERSYM not in values or answers_unversioned(version_marks(tables, 1, first=number)[0]):
                return True
    return False


def _may_be_taken(info: int, other: int, section: int, value: int) -> bool:
    """Tell whether the loader takes a symbol for a definition (glibc, do_lookup_x)."""
    return bool(section and info & GLOBAL and other & 3 in VISIBLE and (value or section == SHN_ABS or info & 15 == STT_TLS))


def _numbers_of_hash(tables: Tables, value: int) -> Iterator[int]:
    """Yield the symbols of a hash value, from their bucket's chain."""
    read, start = tables.source.read, tables.place(DT_GNU_HASH)
    buckets, first, words, _ = struct.unpack("<IIII", read(start, 16))
    if not 0 < buckets <= MAX_SYMBOLS or not 0 < words <= MAX_SYMBOLS:
        raise MalformedElfError(f"a hash table of {buckets} buckets and {words} words")
    buckets_at = start + 16 + 8 * words
    number: int = struct.unpack("<I", read(buckets_at + 4 * (value % buckets), 4))[0]
    if number < first:
        return
    chain = tables.upto(buckets_at + 4 * buckets + 4 * (number - first), MAX_CHAIN)
    for (link,) in struct.iter_unpack("<I", chain[: len(chain) // 4 * 4]):
        if link | 1 == value | 1:
            yield number
        if link & 1:
            return
        number += 1
    raise MalformedElfError("a hash chain without end")


def provider_in(tables: Tables) -> Provider:
    """Return what a file's symbols are looked up in. Raises MalformedElfError."""
    if not tables.dynamic.values.keys() >= {DT_GNU_HASH, DT_SYMTAB, DT_STRTAB}:
        return TableProvider(symbols_of(tables))
    with checked_bounds():
        return HashProvider(tables)


def gnu_hash(name: str) -> int:
    """Return Bernstein's hash, as DT_GNU_HASH uses it: 5381, and the bytes behind it, as a number in base 33 modulo 2**32.

    int() reads such a number four times as fast as a loop adds it up, but only digits up to 32: each byte is two of them.
    """
    value, rest = 5381, name.encode("latin-1")
    while rest:
        piece, rest = rest[:_PIECE], rest[_PIECE:]
        number = 32 * int(piece.translate(_HIGH), 33) + int(piece.translate(_LOW), 33)
        value = value * _POWERS[len(piece)] + number & 0xFFFFFFFF
    return value


_PIECE = 256  # int() refuses thousands of digits at once
_DIGITS = b"0123456789abcdefghijklmnopqrstuv"
_HIGH, _LOW = bytes(_DIGITS[byte >> 5] for byte in range(256)), bytes(_DIGITS[byte & 31] for byte in range(256))
_POWERS = [pow(33, count, 1 << 32) for count in range(_PIECE + 1)]


class _Hashes(dict[str, int]):
    """Each name's hash, made once: an extension's names are looked for in a dozen libraries."""

    def __missing__(self, name: str) -> int:
        value = gnu_hash(name)
        if len(self) < _MOST_HASHES:
            self[name] = value
        return value


_MOST_HASHES = 200_000
HASHES = _Hashes()
