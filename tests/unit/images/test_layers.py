"""Layers as bytes: the tar that every tool reads, and the same one whichever Python wrote it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envbuilder.errors import VerificationError
from envbuilder.images.layers import Compression, Layer, LayerStore, tar_header, unpacked, write_tar
from envbuilder.images.tree import Entry, Kind, file, folder, symlink
from envbuilder.images.wheels import Wheel, wheel_entries
from tests.unit.images.small import wheel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack
    from pathlib import Path

names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60).filter(
    lambda part: part not in {".", ".."}
)
paths = st.lists(names, min_size=1, max_size=6).map("/".join)
numbers = st.sampled_from([0, 1000, 8**7 - 1, 8**7])
entries = st.one_of(
    st.builds(file, paths, st.binary(max_size=1100), mode=st.integers(0, 0o7777), uid=numbers, gid=numbers),
    st.builds(folder, paths, mode=st.integers(0, 0o7777)),
    st.builds(symlink, paths, paths),
    st.builds(lambda path, target: Entry(path=path, kind=Kind.HARDLINK, target=target), paths, paths),
)


@given(st.lists(entries, max_size=4))
def test_a_tar_is_what_tarfile_would_write(found: list[Entry]) -> None:
    """Plain headers are packed by hand: one byte off, and no tool reads the layer, or every digest changes."""
    ours, theirs = io.BytesIO(), io.BytesIO()
    write_tar(found, ours)
    with tarfile.open(fileobj=theirs, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in found:
            archive.addfile(tar_header(entry), entry.open())
    assert ours.getvalue() == theirs.getvalue()


def test_a_file_of_eight_gigabytes_has_its_length() -> None:
    """Its header does not fit the plain form: eleven octal digits end there."""
    entry = Entry(path="large", size=9 << 30, opener=io.BytesIO)
    goal = io.BytesIO()
    with pytest.raises(EOFError, match="bytes are missing"):
        write_tar([entry], goal)
    goal.write(bytes(1024))
    goal.seek(0)
    first = tarfile.TarFile(fileobj=goal).next()
    assert first is not None
    assert first.size == 9 << 30


def test_a_damaged_wheel_in_the_store_is_said(tmp_path: Path) -> None:
    """Its hash was checked when it came; a disk may rot after that. The layer must not be half of one."""
    content = bytearray(wheel("one", {"one/data.bin": hashlib.sha256(b"x").digest() * 4000}))
    place = content.index(b"one/data.bin") + 40
    content[place] ^= 0xFF
    path = tmp_path / "one-1.0-py3-none-any.whl"
    path.write_bytes(content)
    made = Wheel(name="one", version="1.0", sha256="0" * 64, path=path)

    def make(stack: ExitStack) -> Mapping[str, Entry]:
        return {entry.path: entry for entry in wheel_entries(made, "3.11", stack)}

    store = LayerStore(tmp_path / "store")
    with pytest.raises(VerificationError, match=r"layer 'one 1\.0' cannot be made"):
        store.get(Layer(name="one 1.0", inputs=1, make=make), Compression(level=1, library="1"))
    assert not list((tmp_path / "store/layers/blobs").iterdir())


def test_a_layer_packed_in_an_unknown_way_is_refused() -> None:
    with pytest.raises(VerificationError, match="of a kind that is not known"):
        unpacked(io.BytesIO(), "application/vnd.oci.image.layer.v1.tar+brotli")
