"""The ELF reader against files of known content, and against files that lie."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from pathlib import Path

import pytest
from elf_forge import Forge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envbuilder.binaries import elf
from envbuilder.binaries.elf import (
    ElfFile,
    Reference,
    SymbolTable,
    Tables,
    open_tables,
    read_elf,
    read_elf_path,
    read_symbols,
    read_symbols_path,
    references_of,
)
from envbuilder.binaries.layout import MalformedElfError, read_header, read_sections, read_segments
from envbuilder.binaries.source import FileSource, MemorySource


def test_dynamic_section_is_read_whole(forge: Forge) -> None:
    """Without it no library would be followed."""
    forge.so("libone.so.1", soname="libone.so.1", defines=["one"])
    path = forge.so("x.so", soname="libx.so.3", uses=["one"], needs=["libone.so.1"], flags=["-Wl,--enable-new-dtags,-rpath,$ORIGIN/a:/b"])
    elf = read_elf_path(path)
    assert elf.soname == "libx.so.3"
    assert elf.needed == ("libone.so.1",)
    assert elf.runpath == ("$ORIGIN/a", "/b")
    assert elf.rpath == ()
    old = read_elf_path(forge.so("y.so", flags=["-Wl,--disable-new-dtags,-rpath,/c"]))
    assert (old.rpath, old.runpath) == (("/c",), ())


@pytest.mark.parametrize("style", ["gnu", "sysv", "both"])
def test_symbols_are_found_by_either_hash_table(forge: Forge, style: str) -> None:
    """The number of symbols stands nowhere; it follows from the hash table, whichever there is."""
    path = forge.so("x.so", defines=["alpha", "beta", "gamma"], uses=["needed"], weak=["maybe"], flags=[f"-Wl,--hash-style={style}"])
    table = read_symbols_path(path)
    assert {"alpha", "beta", "gamma"} <= table.defined
    assert {reference.name: reference.weak for reference in table.undefined} == {"needed": False, "maybe": True}


def test_a_file_that_defines_nothing_is_counted_by_its_relocations(forge: Forge, tmp_path: Path) -> None:
    """Its GNU hash table lists nothing: without the relocations its needs would go unseen."""
    hidden = tmp_path / "hidden.map"
    hidden.write_text("{ local: *; };")
    table = read_symbols_path(forge.so("x.so", uses=["first", "second"], flags=[f"-Wl,--version-script={hidden}"]))
    assert sorted(reference.name for reference in table.undefined) == ["first", "second"]
    assert table.defined == frozenset()


def test_hidden_symbols_satisfy_nobody(forge: Forge) -> None:
    """A hidden symbol in .dynsym would hide a real gap."""
    source = forge.file("h.c", '__attribute__((visibility("protected"))) void shown(void) {} void plain(void) {}')
    goal = source.with_suffix(".so")
    subprocess.run(["gcc", "-shared", "-fPIC", "-nostdlib", "-o", goal, source], check=True)
    assert {"shown", "plain"} <= read_symbols_path(goal).defined
    data = bytearray(goal.read_bytes())
    symbols = _dynsym(data)
    for at in symbols:
        data[at + 5] = 2  # STV_HIDDEN
    assert read_symbols(MemorySource(bytes(data))).defined == frozenset()


def test_an_undefined_symbol_is_seen_wherever_it_stands(forge: Forge) -> None:
    """Linkers put the undefined ones first, and only so far is the table looked at: one at the end must move that end."""
    data = bytearray(forge.so("x.so", defines=["alpha", "beta"], uses=["first"]).read_bytes())
    last = _dynsym(data)[-1]
    assert data[last + 6 : last + 8] != bytes(2)
    data[last + 6 : last + 8] = (256).to_bytes(2, "little")  # a section whose low byte is 0 is one all the same
    assert {it.name for it in read_symbols(MemorySource(bytes(data))).undefined} == {"first"}
    data[last + 6 : last + 8] = bytes(2)
    assert len(read_symbols(MemorySource(bytes(data))).undefined) == 2


def test_what_may_stay_undefined_or_is_judged_otherwise_can_be_left_out(forge: Forge, tmp_path: Path) -> None:
    """Half of an extension's references are glibc's, and judged by their version: no object is made of those."""
    script = tmp_path / "v.map"
    script.write_text("V_1 { global: one; };")
    forge.so("libv.so.1", soname="libv.so.1", defines=["one"], flags=[f"-Wl,--version-script={script}"])
    with FileSource(forge.so("x.so", uses=["one", "plain"], weak=["maybe"], needs=["libv.so.1"])) as source:
        tables = open_tables(source)
        assert {it.name for it in references_of(tables)} == {"one", "plain", "maybe"}
        assert references_of(tables, weak=False) == (
            Reference("one", weak=False, version="V_1", library="libv.so.1"),
            Reference("plain", weak=False),
        )
        assert {it.name for it in references_of(tables, but_to={"libv.so.1"})} == {"plain", "maybe"}
        assert {it.name for it in references_of(tables, but=re.compile("pl|ma").match)} == {"one"}


def test_a_long_name_far_inside_is_read_whole(forge: Forge) -> None:
    """Most are short, and only so much is read at first: a name of 400 bytes must not be taken for one without end."""
    path = forge.so("x.so", soname="lib" + "x" * 400 + ".so", defines=[f"name_of_some_length_{number}" for number in range(1000)])
    assert read_elf_path(path).soname == "lib" + "x" * 400 + ".so"


def test_names_far_apart_are_read_one_by_one_and_the_same(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's table of names has 14 MB, of which a few hundred names are wanted."""
    path = forge.so("x.so", uses=["first", "l" * 300, "last"], defines=[f"s{i}" for i in range(50)])
    whole = read_symbols_path(path)
    monkeypatch.setattr(elf, "_SPARSE", 0)
    monkeypatch.setattr(elf, "raw_strings", None)  # the whole table is not read
    assert read_symbols_path(path) == whole
    assert {it.name for it in whole.undefined} >= {"first", "l" * 300, "last"}


def _dynsym(data: bytearray) -> list[int]:
    """The places of the entries of .dynsym, by the section headers."""
    source = MemorySource(bytes(data))
    section = next(section for section in read_sections(source, read_header(source)) if section.name == ".dynsym")
    return list(range(section.offset + 24, section.offset + section.size, 24))


def test_versions_are_read_on_both_sides(forge: Forge, tmp_path: Path) -> None:
    """Libcudart and glibc give versions to their symbols; the loader refuses a file whose version is missing."""
    script = tmp_path / "v.map"
    script.write_text("V_1 { global: one; }; V_2 { global: two; } V_1;")
    library = forge.so("libv.so.1", soname="libv.so.1", defines=["one", "two"], flags=[f"-Wl,--version-script={script}"])
    user = forge.so("x.so", uses=["two"], needs=["libv.so.1"])
    elf, table = read_elf_path(library), read_symbols_path(library)
    assert elf.provides == {"V_1", "V_2"}
    assert {"one", "one@V_1", "two@V_2"} <= table.defined
    assert "two@V_1" not in table.defined
    assert read_symbols_path(user).undefined == (Reference("two", weak=False, version="V_2", library="libv.so.1"),)
    assert [(need.library, need.version) for need in read_elf_path(user).requires] == [("libv.so.1", "V_2")]


def test_an_unversioned_symbol_beside_versions_satisfies_both(forge: Forge, tmp_path: Path) -> None:
    script = tmp_path / "v.map"
    script.write_text("V_1 { global: one; };")
    table = read_symbols_path(forge.so("libv.so.1", defines=["one", "base"], flags=[f"-Wl,--version-script={script}"]))
    assert "base@" in table.defined
    assert "one@" not in table.defined


def test_other_machines_are_read_too(forge: Forge) -> None:
    """An aarch64 environment is looked at on x86_64."""
    path = forge.so("x.so", defines=["a"], machine=183)
    assert read_elf_path(path).machine == "aarch64"
    assert "a" in read_symbols_path(path).defined


def test_32_bit_and_big_endian_files_are_named_and_no_more(forge: Forge) -> None:
    data = bytearray(forge.so("x.so", defines=["a"]).read_bytes())
    data[4] = 1
    assert read_elf(MemorySource(bytes(data))) == ElfFile(machine="x86_64 (32-bit)")
    data[4], data[5] = 2, 2
    data[18:20] = (21).to_bytes(2, "big")
    assert read_elf(MemorySource(bytes(data))) == ElfFile(machine="ppc64 (big-endian)")
    assert read_symbols(MemorySource(bytes(data))) == SymbolTable()


@pytest.mark.parametrize("content", [b"", b"\x7f", b"MZ", b"INPUT(libfoo.so)\n", b"\xcf\xfa\xed\xfe" + bytes(100)])
def test_what_is_not_elf_is_said_to_be_none(content: bytes) -> None:
    with pytest.raises(MalformedElfError) as caught:
        read_elf(MemorySource(content))
    assert not caught.value.is_elf


def test_a_named_pipe_does_not_hang_the_reader(tmp_path: Path) -> None:
    """A walk meets whatever is named .so."""
    pipe = tmp_path / "x.so"
    os.mkfifo(pipe)
    with pytest.raises((MalformedElfError, OSError)):
        read_elf_path(pipe)


def test_a_million_sections_are_refused_before_they_are_read(forge: Forge) -> None:
    data = bytearray(forge.so("x.so", defines=["a"]).read_bytes())
    data[60:62] = bytes(2)  # e_shnum 0: the count stands in section 0
    (shoff,) = struct.unpack_from("<Q", data, 40)
    struct.pack_into("<Q", data, shoff + 32, 1_000_000)
    source = MemorySource(bytes(data))
    with pytest.raises(MalformedElfError, match="1000000 sections"):
        read_sections(source, read_header(source))


def test_what_is_looked_for_in_too_many_places_is_refused(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    """65,000 needed names and a RUNPATH of 32,000 folders in a file of a megabyte: two thousand million look-ups, hours of them."""
    with pytest.raises(MalformedElfError, match="a search path of 5012 characters"):
        read_elf_path(
            forge.so("long.so", flags=["-Wl,--enable-new-dtags,-rpath," + ":".join(f"/{number}/xy" for number in range(1000, 1557))])
        )
    monkeypatch.setattr(elf, "_MAX_NEEDED", 2)
    needs = [str(forge.so(f"lib{number}.so", soname=f"lib{number}.so").relative_to(forge.root)) for number in range(3)]
    assert len(read_elf_path(forge.so("two.so", needs=needs[:2])).needed) == 2
    with pytest.raises(MalformedElfError, match="it needs 3 libraries"):
        read_elf_path(forge.so("three.so", needs=needs))


@pytest.mark.parametrize("sparse", [2048, 0])
def test_overlapping_names_do_not_fill_memory(forge: Forge, monkeypatch: pytest.MonkeyPatch, sparse: int) -> None:
    """4,000 symbols, each naming another place in one long string: 80 MB of names from a file of 100 kB, and so on upwards."""
    names = [f"s{i}" for i in range(4000)]
    path = forge.so("x.so", defines=names, flags=["-Wl,--hash-style=sysv"])
    data = bytearray(path.read_bytes())
    source = MemorySource(bytes(data))
    strings = next(section for section in read_sections(source, read_header(source)) if section.name == ".dynstr")
    data[strings.offset : strings.offset + strings.size - 1] = b"A" * (strings.size - 1)
    for number, at in enumerate(_dynsym(data)):
        struct.pack_into("<I", data, at, number % 100 + 1)
    monkeypatch.setattr(elf, "_SPARSE", sparse)
    if not sparse:  # a name alone is at most 64 kB
        monkeypatch.setattr(elf, "_MAX_NAME", 1 << 20)
    with pytest.raises(MalformedElfError, match="overlap without bound"):
        read_symbols(MemorySource(bytes(data)))


def test_every_cut_gives_a_verdict(forge: Forge) -> None:
    """A file cut anywhere is malformed, or complete without what was cut off; nothing else may be raised."""
    data = forge.so("x.so", defines=["a", "b"], uses=["c"], soname="libx.so").read_bytes()
    whole = read_elf(MemorySource(data))
    complete = 0
    for length in range(0, len(data), 7):
        source = MemorySource(data[:length])
        try:
            complete += read_elf(source) == whole
            read_symbols(source)
        except MalformedElfError:
            pass
    assert 0 < complete < len(data) // 7


def test_a_file_cut_behind_its_tables_is_cut_all_the_same(forge: Forge) -> None:
    """All that is read of it lies at its start: it "would load", and the process dies of SIGBUS at its first access."""
    data = forge.so("x.so", defines=["a"], uses=["b"]).read_bytes()
    header = read_header(MemorySource(data))
    end = max(segment.offset + segment.size for segment in read_segments(MemorySource(data), header)[0])
    assert read_elf(MemorySource(data[:end])) == read_elf(MemorySource(data)), "what strip takes off is not missed"
    for reader in (read_elf, read_symbols):
        with pytest.raises(MalformedElfError, match=f"cut short: {end - 1} bytes are here, and its segments need {end}$"):
            reader(MemorySource(data[: end - 1]))


def test_a_table_behind_the_end_is_told_as_one() -> None:
    """It was told as "-37300186 bytes at 56741986 of 19441800"."""
    with pytest.raises(MalformedElfError, match="a table at 200, behind the file's 100 bytes"):
        Tables(source=MemorySource(bytes(100)), machine="x86_64").upto(200, 10)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = tmp_path_factory.mktemp("sample")
    script = root / "v.map"
    script.write_text("V_1 { global: one; }; V_2 { global: two; };")
    forge = Forge(root)
    forge.so("libv.so.1", soname="libv.so.1", defines=["one", "two"], flags=[f"-Wl,--version-script={script}"])
    flags = [f"-Wl,--version-script={script}", "-Wl,-rpath,$ORIGIN"]
    return forge.so("x.so", defines=["two", "three"], uses=["one", "four"], needs=["libv.so.1"], flags=flags).read_bytes()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=9)), min_size=1, max_size=6))
def test_corrupted_files_raise_nothing_else(sample: bytes, edits: list[tuple[int, bytes]]) -> None:
    """Bytes written over anywhere (the headers and tables of this file lie in its first pages) end in a result or MalformedElfError."""
    data = bytearray(sample)
    for at, new in edits:
        data[at : at + len(new)] = new
    source = MemorySource(bytes(data))
    for reader in (read_elf, read_symbols):
        try:
            reader(source)
        except MalformedElfError:
            continue


@given(st.binary(max_size=400).map(lambda rest: b"\x7fELF\x02\x01\x01" + rest))
def test_noise_behind_the_magic_raises_nothing_else(data: bytes) -> None:
    source = MemorySource(data)
    for reader in (read_elf, read_symbols):
        try:
            reader(source)
        except MalformedElfError:
            continue


def test_agrees_with_readelf_on_the_interpreters_own_libraries() -> None:
    """A file of real size, whose content nobody here chose."""
    path = next(Path("/lib").glob("*-linux-gnu/libc.so.6"), None) or Path("/lib64/libc.so.6")
    defined = {name.partition("@")[0] for name in read_symbols_path(path).defined}
    assert {"malloc", "dlopen", "pthread_create"} <= defined
    assert "GLIBC_2.34" in read_elf_path(path).provides
