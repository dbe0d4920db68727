"""Looking names up by the hash table says what the whole symbol table says."""

from __future__ import annotations

import contextlib
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envbuilder.binaries.elf import Reference, SymbolTable, open_tables, read_symbols, read_symbols_path
from envbuilder.binaries.layout import MalformedElfError, read_header, read_sections
from envbuilder.binaries.lookup import HashProvider, Provider, TableProvider, defines, gnu_hash, provider_in
from envbuilder.binaries.source import FileSource, MemorySource

if TYPE_CHECKING:
    from elf_forge import Forge


def asked(version: str | None, name: str = "one") -> Reference:
    return Reference(name, weak=False, version=version, library=None)


def provider_at(path: Path) -> Provider:
    with FileSource(path) as source:
        return provider_in(open_tables(source))


def test_the_hash_is_the_known_one() -> None:
    """A wrong hash finds nothing, and everything would be missing."""
    assert (gnu_hash(""), gnu_hash("printf"), gnu_hash("exit")) == (0x1505, 0x156B2BB8, 0x7C967E3F)


@given(st.one_of(st.text(st.characters(max_codepoint=255), max_size=40), st.integers(250, 9000).map(lambda length: "_Zé" * (length // 3))))
def test_the_hash_is_the_sum_that_implementations_add_up(name: str) -> None:
    """Any byte, and names of thousands of them, as CUTLASS has."""
    value = 5381
    for byte in name.encode("latin-1"):
        value = (value * 33 + byte) % (1 << 32)
    assert gnu_hash(name) == value


def test_every_name_of_a_real_library_is_found_and_no_other() -> None:
    """Libc has versions, hidden versions, and thousands of names that nobody here chose."""
    path = next(Path("/lib").glob("*-linux-gnu/libc.so.6"), None) or Path("/lib64/libc.so.6")
    table, provider = read_symbols_path(path), provider_at(path)
    assert isinstance(provider, HashProvider)
    plain = {name for name in table.defined if "@" not in name}
    assert provider.without(plain | {"no_such_function", ""}) == {"no_such_function", ""}
    with FileSource(path) as source:
        tables = open_tables(source)
        assert {name for name in {entry.partition("@")[0] for entry in table.defined} if defines(tables, name)} == plain
        assert not defines(tables, "no_such_function")
    whole = TableProvider(table)
    for entry in (entry for entry in table.defined if "@" in entry):
        name, _, version = entry.partition("@")
        for other in (version or "ANY_1", "NO_SUCH_1"):
            assert provider.satisfies(asked(other, name)) == whole.satisfies(asked(other, name)), (name, other)


def test_versions_and_files_without_them(forge: Forge, tmp_path: Path) -> None:
    script = tmp_path / "v.map"
    script.write_text("V_1 { global: one; };")
    library = forge.so("libv.so.1", defines=["one", "base"], flags=[f"-Wl,--version-script={script}", "-Wl,--hash-style=gnu"])
    bare = forge.so("libb.so.1", defines=["one"], flags=["-Wl,--hash-style=gnu"])
    for provider in (provider_at(library), TableProvider(read_symbols_path(library))):
        assert provider.satisfies(asked("V_1"))
        assert not provider.satisfies(asked("V_2"))
        assert provider.satisfies(asked("V_2", "base")), "a symbol without version beside versions"
        assert provider.without({"one", "base", "two"}) == {"two"}
    for provider in (provider_at(bare), TableProvider(read_symbols_path(bare))):
        assert provider.satisfies(asked("V_2")), "a library without versions satisfies any"


@pytest.mark.parametrize("asked_for", [2, 200])
def test_a_library_of_few_names_answers_many_as_it_does_one(forge: Forge, tmp_path: Path, asked_for: int) -> None:
    """Asked for more names than it has, it is listed: what is listed must be what would be found."""
    script = tmp_path / "v.map"
    script.write_text("V1 { global: first; }; V2 { global: second; third; };")
    forge.file(
        "code.s", ".text\none:.byte 0\ntwo:.byte 0\nthird:.byte 0\n.symver one,first@V1\n.symver two,second@V2\n.globl one,two,third\n"
    )
    path = forge.root / "libfew.so.1"
    flags = ["-shared", "-nostdlib", f"-Wl,--version-script={script},--hash-style=gnu"]
    subprocess.run(["gcc", *flags, "-o", path, forge.root / "code.s"], check=True)
    provider, whole = provider_at(path), TableProvider(read_symbols_path(path))
    assert isinstance(provider, HashProvider)
    others = {f"other_{number}" for number in range(asked_for)}
    for names in ({"first"} | others, {"second"} | others, {"first", "second", "third"} | others):
        assert provider.without(names) == whole.without(names)
        with FileSource(path) as source:
            assert {name for name in names if not defines(open_tables(source), name)} == whole.without(names)
    assert provider.without({"first", "second", "third"} | others) == {"second"} | others


def test_what_is_only_referred_to_or_hidden_is_not_found(forge: Forge) -> None:
    path = forge.so("x.so", defines=["shown"], uses=["elsewhere"], flags=["-Wl,--hash-style=gnu"])
    provider = provider_at(path)
    assert isinstance(provider, HashProvider)
    assert provider.without({"shown", "elsewhere"}) == {"elsewhere"}
    data = bytearray(path.read_bytes())
    symbols = next(it for it in read_sections(MemorySource(bytes(data)), read_header(MemorySource(bytes(data)))) if it.name == ".dynsym")
    for at in range(symbols.offset + 24, symbols.offset + symbols.size, 24):
        data[at + 5] = 2  # STV_HIDDEN
    assert provider_in(open_tables(MemorySource(bytes(data)))).without({"shown"}) == {"shown"}
    assert not defines(open_tables(MemorySource(bytes(data))), "shown")


def test_files_without_a_gnu_hash_table_are_read_whole(forge: Forge) -> None:
    path = forge.so("x.so", defines=["a"], flags=["-Wl,--hash-style=sysv"])
    provider = provider_at(path)
    assert isinstance(provider, TableProvider)
    assert provider.without({"a", "b"}) == {"b"}
    with FileSource(path) as source:
        assert [defines(open_tables(source), name) for name in "ab"] == [True, False]
    assert TableProvider(SymbolTable(defined=frozenset({"abc"}))).weight == 3


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    from elf_forge import Forge  # noqa: PLC0415 - a fixture of the module's, not of each test

    names = [f"name_{number}" for number in range(40)]
    return Forge(tmp_path_factory.mktemp("sample")).so("x.so", defines=names, flags=["-Wl,--hash-style=gnu"]).read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 2047), st.binary(min_size=1, max_size=9)), min_size=1, max_size=5))
def test_corrupted_tables_end_in_an_answer_or_malformed(sample: bytes, edits: list[tuple[int, bytes]]) -> None:
    """A chain that never ends would be a hang."""
    data = bytearray(sample)
    for at, new in edits:
        data[at : at + len(new)] = new
    with contextlib.suppress(MalformedElfError):
        for number in range(50):
            defines(open_tables(MemorySource(bytes(data))), f"name_{number}")
    try:
        provider = provider_in(open_tables(MemorySource(bytes(data))))
        provider.without({f"name_{number}" for number in range(50)})
        provider.satisfies(asked("V_1"))
    except MalformedElfError:
        return


def test_numbers_that_lie_are_malformed(sample: bytes) -> None:
    source = MemorySource(sample)
    table = next(it for it in read_sections(source, read_header(source)) if it.name == ".gnu.hash")
    for field, value in ((0, 0), (0, 1 << 30), (2, 3), (2, 0), (2, 1 << 31)):
        data = bytearray(sample)
        struct.pack_into("<I", data, table.offset + 4 * field, value)
        with pytest.raises(MalformedElfError):
            provider_in(open_tables(MemorySource(bytes(data))))
    assert read_symbols(source).defined
