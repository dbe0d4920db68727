"""Writing a shared library whose functions only return a number, for a machine that lacks the real one.

A stand-in for a library that is linked but not needed (libnuma where there is one memory node), or that comes with a
driver that is not there (libcuda, to prove that an extension links). It is written here, byte by byte, so that it
needs no compiler, exists for any architecture on any other, and is the same every time.

Layout (System V gABI; ELF symbol versioning): one segment R+X with the headers, tables and code, one R+W with the
dynamic section, which the loader relocates in place.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

_PAGE = 0x10000  # the largest page of either architecture
_EHDR, _PHDR, _SYM = "<16sHHIQQQIHHHHHH", "<IIQQQQQQ", "<IBBHQQ"
_MACHINES = {"x86_64": 62, "aarch64": 183}
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_SONAME = 4, 5, 6, 10, 11, 14
_DT_VERSYM, _DT_VERDEF, _DT_VERDEFNUM = 0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFD

Machine = Literal["x86_64", "aarch64"]


@dataclass(frozen=True, kw_only=True)
class StubFunction:
    """A function that returns `value` (an int of 16 bits), under a symbol version or none."""

    name: str
    value: int = 0
    version: str | None = None


def stub_library(soname: str, functions: Sequence[StubFunction], *, machine: Machine) -> bytes:
    """Return the bytes of a shared library with these functions."""
    strings = _Strings()
    versions = list(dict.fromkeys(function.version for function in functions if function.version))
    indices = {version: number for number, version in enumerate(versions, start=2)}  # 1 is the library itself
    code = [_code(function.value, machine) for function in functions]
    soname_at = strings.add(soname)
    name_at = [strings.add(function.name) for function in functions]
    verdef = _version_definitions(soname, versions, strings)
    parts = _Parts(start=struct.calcsize(_EHDR) + 4 * struct.calcsize(_PHDR))
    text_at = parts.add(b"".join(code))
    addresses = [text_at + sum(map(len, code[:number])) for number in range(len(code))]
    symbols = [struct.pack(_SYM, 0, 0, 0, 0, 0, 0)]
    symbols += [struct.pack(_SYM, name, 0x12, 0, 1, at, len(body)) for name, at, body in zip(name_at, addresses, code, strict=True)]
    versym = struct.pack(f"<{len(functions) + 1}H", 0, *(indices[it.version] if it.version else 1 for it in functions))
    entries = [
        (_DT_SONAME, soname_at),
        (_DT_SYMTAB, parts.add(b"".join(symbols))),
        (_DT_SYMENT, struct.calcsize(_SYM)),
        (_DT_HASH, parts.add(_hash_table([function.name for function in functions]))),
        (_DT_STRTAB, parts.add(strings.data)),
        (_DT_STRSZ, len(strings.data)),
    ]
    if versions:
        entries += [(_DT_VERSYM, parts.add(versym)), (_DT_VERDEF, parts.add(verdef)), (_DT_VERDEFNUM, len(versions) + 1)]
    dynamic = b"".join(struct.pack("<qQ", tag, value) for tag, value in [*entries, (0, 0)])
    return _headers(machine, parts.end, len(dynamic)) + parts.data + dynamic


class _Strings:
    """A string table (gABI, chapter 4): bytes with a zero after each, beginning with one."""

    def __init__(self) -> None:
        self.data = b"\0"

    def add(self, text: str) -> int:
        at = len(self.data)
        self.data += text.encode() + b"\0"
        return at


class _Parts:
    """The first segment's content after the headers; every part begins at a multiple of 8."""

    def __init__(self, *, start: int) -> None:
        self._start, self.data = start, b""

    @property
    def end(self) -> int:
        return self._start + len(self.data)

    def add(self, payload: bytes) -> int:
        at = self.end
        self.data += payload + b"\0" * (-len(payload) % 8)
        return at


def _code(value: int, machine: Machine) -> bytes:
    """Return a function's body: put the value into the return register, return."""
    match machine:
        case "x86_64":
            return b"\xb8" + struct.pack("<i", value) + b"\xc3\x90\x90"  # mov eax, value; ret; nop; nop
        case "aarch64":
            move = 0x52800000 | value << 5 if value >= 0 else 0x12800000 | (~value << 5)  # movz / movn w0, #value
            return struct.pack("<II", move, 0xD65F03C0)  # ret


def _hash_table(names: Sequence[str]) -> bytes:
    """Return DT_HASH with one bucket: a chain through all symbols. The table is small, and nobody is in a hurry."""
    count = len(names) + 1
    chain = [0, *range(2, count), 0] if names else [0]
    return struct.pack(f"<{3 + count}I", 1, count, 1 if names else 0, *chain)


def _version_definitions(soname: str, versions: Sequence[str], strings: _Strings) -> bytes:
    """Return DT_VERDEF: the library itself (VER_FLG_BASE), then each version."""
    names = [soname, *versions]
    size = 20 + 8  # Elf64_Verdef and its one Elf64_Verdaux
    return b"".join(
        struct.pack("<HHHHIII", 1, number == 1, number, 1, _elf_hash(name), 20, size if number < len(names) else 0)
        + struct.pack("<II", strings.add(name), 0)
        for number, name in enumerate(names, start=1)
    )


def _elf_hash(name: str) -> int:
    """The hash function of the gABI."""
    value = 0
    for byte in name.encode():
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ high >> 24) & ~high & 0xFFFFFFFF
    return value


def _headers(machine: Machine, text_end: int, dynamic_size: int) -> bytes:
    """Return the ELF header and four program headers: text, data (the dynamic section), the dynamic section, the stack.

    The last says that no executable stack is wanted; a library without it makes newer loaders refuse.
    """
    at = text_end + _PAGE  # the same place in the file, in the next page of memory
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = struct.pack(
        _EHDR, ident, 3, _MACHINES[machine], 1, 0, struct.calcsize(_EHDR), 0, 0, struct.calcsize(_EHDR), struct.calcsize(_PHDR), 3, 0, 0, 0
    )
    text = struct.pack(_PHDR, 1, 5, 0, 0, 0, text_end, text_end, _PAGE)
    data = struct.pack(_PHDR, 1, 6, text_end, at, at, dynamic_size, dynamic_size, _PAGE)
    dynamic = struct.pack(_PHDR, 2, 6, text_end, at, at, dynamic_size, dynamic_size, 8)
    stack = struct.pack(_PHDR, 0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    return header + text + data + dynamic + stack
