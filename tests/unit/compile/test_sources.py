"""The source: unpacked, edited, kept in step, and read for what it would fetch."""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING

import pytest

from envbuilder.compile.sources import EditError, Pin, edited, pins_of, read_source, require_pin, synchronize, tree_hash
from envbuilder.errors import ConfigurationError, VerificationError
from envbuilder.targets.catalogue import find_target
from envbuilder.targets.model import Edit

if TYPE_CHECKING:
    from pathlib import Path


def sdist(path: Path, files: dict[str, bytes], *, link: str = "") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        if link:
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
    return path


def edit(find: str, replace: str = "new", path: str = "CMakeLists.txt") -> Edit:
    return Edit(name=f"edit {find}", path=path, find=find, replace=replace, reason="because")


def test_only_what_is_compiled_is_unpacked(tmp_path: Path) -> None:
    archive = sdist(tmp_path / "v-1.tar.gz", {"v-1/CMakeLists.txt": b"x", "v-1/docs/a.md": b"y", "v-1/csrc/a.cu": b"z"})
    assert read_source(archive, prefixes=("CMakeLists.txt", "csrc/")) == {"CMakeLists.txt": b"x", "csrc/a.cu": b"z"}


@pytest.mark.parametrize("name", ["v-1/../../etc/x", "../v-1/x"])
def test_an_archive_that_climbs_out_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(VerificationError, match="which no source should"):
        read_source(sdist(tmp_path / "v-1.tar.gz", {name: b"x"}))


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    """It would let the compile read, or write, a file of the machine."""
    with pytest.raises(VerificationError, match="which no source should"):
        read_source(sdist(tmp_path / "v-1.tar.gz", {}, link="v-1/csrc"))


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08\x00cut"])
def test_what_is_no_archive_is_said_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "v-1.tar.gz").write_bytes(content)
    with pytest.raises(VerificationError, match="not a sound source"):
        read_source(tmp_path / "v-1.tar.gz")


def test_an_edit_changes_its_one_place() -> None:
    assert edited({"CMakeLists.txt": b"a b c"}, [edit("b")]) == {"CMakeLists.txt": b"a new c"}


@pytest.mark.parametrize(("text", "said"), [(b"a c", "0 times"), (b"b b", "2 times")])
def test_an_edit_that_does_not_fit_exactly_once_is_an_error(text: bytes, said: str) -> None:
    """A silent no-op is how a build without a single sm_121a kernel comes about."""
    with pytest.raises(EditError) as error:
        edited({"CMakeLists.txt": text}, [edit("b")])
    assert said in error.value.why
    assert "edit b" in error.value.why


def test_all_edits_that_do_not_fit_are_named_at_once() -> None:
    with pytest.raises(EditError) as error:
        edited({"CMakeLists.txt": b"x"}, [edit("b"), edit("c"), edit("d", path="gone.cmake")])
    assert error.value.what == "3 edits of the source do not fit"
    assert "there is no gone.cmake" in error.value.why


def test_synchronizing_touches_only_what_changed(tmp_path: Path) -> None:
    """By its times ninja decides: a file that is written again is compiled again, with all that includes it."""
    assert synchronize({"a.h": b"1", "b/c.cu": b"2"}, tmp_path) == 2
    os.utime(tmp_path / "a.h", (1, 1))
    (tmp_path / "generated.cu").write_text("by configure")
    assert synchronize({"a.h": b"1", "d.cu": b"3"}, tmp_path) == 1
    assert (tmp_path / "a.h").stat().st_mtime == 1
    assert not (tmp_path / "b/c.cu").exists()
    assert (tmp_path / "generated.cu").exists()


def test_what_cmake_would_fetch_is_read_from_the_source_itself() -> None:
    """Pins differ from one vLLM to the next; a table of them would be wrong with the next release."""
    files = {
        "CMakeLists.txt": b"""
          set(CUTLASS_REVISION "v4.4.2")
          FetchContent_Declare(cutlass SOURCE_DIR ${DIR})
          FetchContent_Declare(
            cutlass
            GIT_REPOSITORY https://host.example/nvidia/cutlass.git
            # GIT_TAG old
            GIT_TAG ${CUTLASS_REVISION})""",
        "cmake/x.cmake": b'set(MLA_GIT "https://host.example/v/MLA")\nFetchContent_Declare(mla GIT_REPOSITORY ${MLA_GIT} GIT_TAG abc123 GIT_PROGRESS TRUE)',
        "cmake/quoted.cmake": b'FetchContent_Populate(gemm\n  GIT_REPOSITORY "https://host/d/Gemm"\n  GIT_TAG "v7"\n)\n'
        b"FetchContent_Declare(gemm GIT_REPOSITORY https://host/d/Gemm.git GIT_TAG v7)",
        "csrc/readme.txt": b"FetchContent_Declare(no GIT_REPOSITORY a/b/c GIT_TAG d)",
    }
    assert pins_of(files) == (
        Pin(name="cutlass", repository="nvidia/cutlass", revision="v4.4.2"),
        Pin(name="gemm", repository="d/Gemm", revision="v7"),
        Pin(name="mla", repository="v/MLA", revision="abc123"),
    )


def test_a_target_that_gives_another_revision_than_vllm_asks_for_is_refused() -> None:
    pins = [Pin(name="cutlass", repository="n/c", revision="v5")]
    require_pin(pins, "cutlass", "v5")
    with pytest.raises(ConfigurationError, match=r"cutlass v4\.4\.2"):
        require_pin(pins, "cutlass", "v4.4.2")


def test_a_tree_s_hash_knows_paths_bytes_and_modes_and_no_times(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub/file").write_text("x")
    os.utime(tmp_path / "two/sub/file", (1, 1))
    (tmp_path / "two/sub/file").chmod(0o600)
    first = tree_hash(tmp_path / "one")
    assert tree_hash(tmp_path / "two") == first
    (tmp_path / "two/sub/file").chmod(0o700)
    assert tree_hash(tmp_path / "two") != first
    (tmp_path / "one/sub/file").rename(tmp_path / "one/file")
    assert tree_hash(tmp_path / "one") != first


def test_the_target_s_own_edits_have_a_reason_each_and_leave_out_every_fetch() -> None:
    """An external project whose `include` stays in the build files would want the network."""
    compile_ = find_target("dgx-spark")[0].releases["0.23.0"].compile
    assert compile_ is not None
    assert all(it.reason for it in (*compile_.edits, *compile_.components))
    left_out = {it.find.rpartition("/")[2].removesuffix(".cmake)") for it in compile_.edits if "external_projects" in it.find}
    assert left_out == {"deepgemm", "flashmla", "qutlass", "triton_kernels", "vllm_flash_attn"}
