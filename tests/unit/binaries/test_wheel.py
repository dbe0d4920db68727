"""Hostile wheels: each costs an error, no file outside, and little memory."""

from __future__ import annotations

import struct
import zipfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envbuilder.binaries.wheel import WheelError, unpacked

if TYPE_CHECKING:
    from pathlib import Path


def make(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return path


def attempt(wheel: Path) -> None:
    with unpacked(wheel):
        pass


def test_only_shared_objects_and_torchs_version_are_unpacked(tmp_path: Path) -> None:
    wheel = make(
        tmp_path / "a.whl", {"p/_C.abi3.so": b"1", "p/lib/libx.so.3": b"2", "p/x.py": b"3", "torch/version.py": b"4", "p/so.txt": b"5"}
    )
    with unpacked(wheel) as root:
        found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert found == {"p/_C.abi3.so": b"1", "p/lib/libx.so.3": b"2", "torch/version.py": b"4"}
    assert not root.exists()


@pytest.mark.parametrize("name", ["../out.so", "a/../../out.so", "/etc/out.so", "a\\..\\out.so", "a/..", "ok/x.so\0../../y.so"])
def test_entries_that_climb_out_are_refused(tmp_path: Path, name: str) -> None:
    wheel = tmp_path / "in" / "a.whl"
    wheel.parent.mkdir()
    info = zipfile.ZipInfo("x" * len(name))
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(info, b"content")
    wheel.write_bytes(wheel.read_bytes().replace(("x" * len(name)).encode(), name.encode()))
    with pytest.raises(WheelError):
        attempt(wheel)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    wheel = make(tmp_path / "a.whl", {"x.so": bytes(80 << 20)})
    assert wheel.stat().st_size < 1 << 20
    with pytest.raises(WheelError, match=r"would unpack to 83\.9 MB"):
        attempt(wheel)


def test_a_bomb_that_lies_about_its_size_stops_at_its_lie(tmp_path: Path) -> None:
    wheel = make(tmp_path / "a.whl", {"x.so": bytes(80 << 20)})
    data = wheel.read_bytes().replace(struct.pack("<I", 80 << 20), struct.pack("<I", 1000))
    wheel.write_bytes(data)
    with pytest.raises(WheelError):
        attempt(wheel)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, method: int) -> None:
    """Zipfile gives them no limit per read; no wheel uses them."""
    with pytest.raises(WheelError, match="not packed as wheels are"):
        attempt(make(tmp_path / "a.whl", {"x.so": b"content"}, method))


def test_a_directory_that_would_fill_memory_is_refused(tmp_path: Path) -> None:
    wheel = make(tmp_path / "a.whl", {"x.so": b"content"})
    data = bytearray(wheel.read_bytes())
    struct.pack_into("<I", data, len(data) - 22 + 12, 64 << 20)
    wheel.write_bytes(data)
    with pytest.raises(WheelError, match="far too many files"):
        attempt(wheel)
    struct.pack_into("<I", data, len(data) - 22 + 12, 0xFFFFFFFF)
    wheel.write_bytes(data)
    with pytest.raises(WheelError, match="zip64"):
        attempt(wheel)


def test_a_file_that_is_also_a_folder(tmp_path: Path) -> None:
    with pytest.raises(WheelError):
        attempt(make(tmp_path / "a.whl", {"x.so": b"1", "x.so/y.so": b"2"}))


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip" * 100])
def test_what_is_no_zip(tmp_path: Path, content: bytes) -> None:
    wheel = tmp_path / "a.whl"
    wheel.write_bytes(content)
    with pytest.raises(WheelError, match="not a zip"):
        attempt(wheel)


def test_every_cut_is_an_error(tmp_path: Path) -> None:
    whole = make(tmp_path / "a.whl", {"x.so": b"content" * 50, "y.so": b"more"}).read_bytes()
    for length in range(0, len(whole), 5):
        (tmp_path / "cut.whl").write_bytes(whole[:length])
        with pytest.raises(WheelError):
            attempt(tmp_path / "cut.whl")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make(tmp_path_factory.mktemp("sample") / "a.whl", {"x.so": b"content" * 20, "d/y.so": b"more"}).read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 600), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4))
def test_corrupted_wheels_raise_nothing_else(tmp_path: Path, sample: bytes, edits: list[tuple[int, bytes]]) -> None:
    data = bytearray(sample)
    for at, new in edits:
        data[at : at + len(new)] = new
    (tmp_path / "b.whl").write_bytes(data)
    try:
        attempt(tmp_path / "b.whl")
    except WheelError:
        return
