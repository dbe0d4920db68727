"""Reading bytes by position: from memory, a file, and a stream of which only parts are kept."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envbuilder.binaries.elf import read_elf, read_elf_path, read_symbols, read_symbols_path
from envbuilder.binaries.layout import read_header, read_segments
from envbuilder.binaries.source import ByteSource, FileSource, MemorySource, OutOfRangeError, StreamedSource

if TYPE_CHECKING:
    from pathlib import Path

    from elf_forge import Forge


@given(st.binary(max_size=60), st.integers(-5, 70), st.integers(-5, 70))
def test_all_kinds_give_the_same_bytes(data: bytes, offset: int, length: int) -> None:
    sources: list[ByteSource] = [MemorySource(data), StreamedSource(io.BytesIO(data), len(data), ends=60, pieces=lambda _: [])]
    for source in sources:
        if offset < 0 or length < 0 or offset + length > len(data):
            with pytest.raises(OutOfRangeError):
                source.read(offset, length)
        else:
            assert source.read(offset, length) == data[offset : offset + length]


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    """A mapping would die of SIGBUS here."""
    path = tmp_path / "x"
    path.write_bytes(bytes(1000))
    with FileSource(path) as source:
        path.write_bytes(bytes(10))
        assert source.size == 1000
        with pytest.raises(OutOfRangeError, match="became shorter"):
            source.read(0, 1000)


def test_a_stream_is_kept_at_its_ends_and_where_it_was_asked_to_be() -> None:
    data = bytes(range(256)) * 40
    source = StreamedSource(io.BytesIO(data), len(data), ends=1000, pieces=lambda start: [(5000, start.read(3, 1)[0]), (500, 9)])
    assert source.read(0, 1000) == data[:1000]
    assert source.read(5000, 3) == data[5000:5003]
    assert source.read(len(data) - 1000, 1000) == data[-1000:]
    for offset, length in ((999, 2), (4999, 2), (len(data) - 1001, 5)):
        with pytest.raises(OutOfRangeError):
            source.read(offset, length)


def test_a_stream_that_ends_too_early() -> None:
    with pytest.raises(OutOfRangeError, match="too early"):
        StreamedSource(io.BytesIO(bytes(100)), 200, ends=50, pieces=lambda _: [])


def test_an_elf_file_is_read_from_its_kept_parts(forge: Forge) -> None:
    """So torch's 1.6 GB need no disk: the atlas reads them as they are unpacked."""
    path = forge.so("x.so", soname="libx.so", defines=["a", "b"], uses=["c"], flags=["-Wl,-z,max-page-size=65536"])
    with path.open("ab") as file:
        file.write(bytes(200_000))
    data = path.read_bytes()
    place = read_segments(MemorySource(data), read_header(MemorySource(data)))[1]
    assert place is not None
    assert place.offset > 30_000, "else this proves nothing"
    source = StreamedSource(io.BytesIO(data), len(data), ends=30_000, pieces=lambda _: [(place.offset, place.size)])
    assert read_elf(source) == read_elf_path(path)
    assert read_symbols(source) == read_symbols_path(path)
