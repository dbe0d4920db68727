"""/etc/ld.so.cache, written without ldconfig: an arm64 root filesystem has one on an x86_64 machine too.

The layout is that of glibc's elf/cache.c and sysdeps/generic/dl-cache.h, `struct cache_file_new`: all numbers little
endian, the libraries in falling order of their names, as the loader's binary search expects them.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from envbuilder.binaries.elf import read_elf
from envbuilder.binaries.source import MemorySource
from envbuilder.images.tree import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuilder.images.tree import Entry, Tree

PATH = "etc/ld.so.cache"
_MAGIC = b"glibc-ld.so.cache1.1"
_LITTLE_ENDIAN = 2
_ELF_LIBC6 = 3
# FLAG_X8664_LIB64, FLAG_AARCH64_LIB64 of ldconfig.h
_FLAGS = {"x86_64": 0x0300 | _ELF_LIBC6, "aarch64": 0x0A00 | _ELF_LIBC6}
_TRIPLET = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
_LIBRARY = re.compile(r"^(?:ld-linux|lib).*\.so(\.|$)")


def loader_cache(tree: Tree, machine: str) -> bytes:
    """Return the cache of the libraries in Debian's two library folders of a tree."""
    found = sorted(_libraries(tree, machine), key=lambda pair: _order(pair[0]), reverse=True)
    head = 48 + 24 * len(found)
    strings, places = bytearray(), []
    for name, path in found:
        places.append((head + len(strings), head + len(strings) + len(name) + 1))
        strings += f"{name}\0{path}\0".encode()
    header = struct.pack("<20sIIB3xI12x", _MAGIC, len(found), len(strings), _LITTLE_ENDIAN, 0)
    entries = b"".join(struct.pack("<iIIIQ", _FLAGS[machine], key, value, 0, 0) for key, value in places)
    return header + entries + bytes(strings)


def _libraries(tree: Tree, machine: str) -> Iterator[tuple[str, str]]:
    """Yield (soname, path) of each library that its soname leads to."""
    seen = set()
    for folder in (f"usr/lib/{_TRIPLET[machine]}", "usr/lib"):
        for path, entry in tree.items():
            parent, _, name = path.rpartition("/")
            if parent != folder or entry.kind is not Kind.FILE or not _LIBRARY.match(name):
                continue
            soname = _soname(entry)
            if soname and soname not in seen and f"{folder}/{soname}" in tree:
                seen.add(soname)
                yield soname, f"/{folder.removeprefix('usr/')}/{soname}"


def _soname(entry: Entry) -> str | None:
    with entry.open() as stream:
        content = stream.read()
    if content[:4] != b"\x7fELF":
        return None  # a linker script
    return read_elf(MemorySource(content)).soname


def _order(name: str) -> list[tuple[int, int | str]]:
    """Order names as the loader does (_dl_cache_libcmp): runs of digits by value, and a digit after any other character."""
    return [(1, int(part)) if part.isdigit() else (0, part) for part in _runs(name)]


def _runs(name: str) -> list[str]:
    # One item per character, a run of digits being one.
    return re.findall(r"\d+|\D", name)
