"""The compilers that are found or named as missing, the CUDA home made of wheels, and the parts of a workspace."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from envbuilder.binaries.elf import read_symbols_path
from envbuilder.compile import building, toolchain, workspace
from envbuilder.compile.toolchain import Compilers, find_compilers, make_cuda_home, toolchain_file
from envbuilder.compile.wheels import below, unpack, whole
from envbuilder.compile.workspace import Workspace, constant, write_if_other
from envbuilder.errors import ProgramError, VerificationError


def wheel(path: Path, files: dict[str, bytes], *, executable: tuple[str, ...] = ()) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o755 if name in executable else 0o644) << 16
            archive.writestr(entry, content)
    return path


def compilers(machine: str = "aarch64", *, cross: bool = True) -> Compilers:
    return Compilers(
        machine=machine,
        cross=cross,
        cc=Path("gcc"),
        cxx=Path("/usr/bin/g++"),
        version="g++ 12",
        python_include=Path("/usr/include/python3.11"),
        python_version="3.11",
    )


ROOT = "nvidia/cu13/"
TOOLS = {f"{ROOT}bin/{name}": b"#!/bin/sh" for name in ("nvcc", "cudafe++", "ptxas", "fatbinary", "nvlink", "bin2c")}
TOOLS |= {f"{ROOT}nvvm/bin/cicc": b"", f"{ROOT}nvvm/libdevice/libdevice.10.bc": b"", f"{ROOT}include/nvvm.h": b"of the builder"}
LIBRARIES = {
    f"{ROOT}include/{name}": b"of the target"
    for name in ("cuda_runtime.h", "crt/host_runtime.h", "fatbinary_section.h", "cccl/cuda/atomic")
}
LIBRARIES[f"{ROOT}include/cuda.h"] = b"#define cuMemFree cuMemFree_v2\nCUresult CUDAAPI cuInit(unsigned int Flags);\n"
LIBRARIES |= {f"{ROOT}lib/libcudart.so.13": b"real", f"{ROOT}lib/libcublasLt.so.13": b"600 MB of it", f"{ROOT}bin/nvcc": b"of the target"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tools = wheel(tmp_path / "tools.whl", TOOLS, executable=(f"{ROOT}bin/nvcc",))
    libraries = wheel(tmp_path / "libraries.whl", LIBRARIES)
    make_cuda_home(tmp_path / "cuda", tools={"nvcc": tools}, libraries={"all": libraries}, compilers=compilers())
    return tmp_path / "cuda"


def test_programs_are_the_builder_s_and_headers_the_target_s(home: Path) -> None:
    """The aarch64 nvcc cannot run on x86_64, and the x86_64 headers would compile for the wrong machine."""
    assert (home / "bin/nvcc").read_bytes() == b"#!/bin/sh"
    assert (home / "bin/nvcc").stat().st_mode & 0o111
    assert (home / "include/cuda_runtime.h").read_bytes() == b"of the target"
    assert not (home / "include/nvvm.h").exists()


def test_nvcc_s_folder_is_a_real_one(home: Path) -> None:
    """It finds everything else from the folder above its own: behind a link, that is another one."""
    assert not (home / "bin").is_symlink()
    assert (home / "targets/aarch64-linux").resolve() == (home / "targets/sbsa-linux").resolve()


def test_what_is_only_to_be_found_is_a_stand_in_with_the_right_soname(home: Path) -> None:
    library = home / "lib64/libcublasLt.so"
    assert library.readlink() == Path("libcublasLt.so.13")
    assert library.read_bytes()[:4] == b"\x7fELF"
    assert b"libcublasLt.so.13\0" in library.read_bytes()
    assert (home / "lib/libcudart.so").read_bytes() == b"real"
    assert b"libcuda.so.1\0" in (home / "lib/libcuda.so").read_bytes()


def test_the_stand_in_for_the_driver_has_its_functions(home: Path) -> None:
    """Without them the linker drops the library, and cumem_allocator does not load where the real driver is."""
    assert {"cuInit", "cuMemFree", "cuMemFree_v2"} <= read_symbols_path(home / "lib/libcuda.so.1").defined


def test_wheels_that_make_no_toolkit_are_refused_by_name(tmp_path: Path) -> None:
    tools = wheel(tmp_path / "tools.whl", {name: content for name, content in TOOLS.items() if not name.endswith("cicc")})
    with pytest.raises(VerificationError) as error:
        make_cuda_home(tmp_path / "cuda", tools={"nvcc": tools}, libraries={}, compilers=compilers())
    assert "include/cuda.h" in error.value.why
    assert "nvvm/bin/cicc" in error.value.why


def test_the_toolchain_file_says_when_it_crosses_and_only_then() -> None:
    """Where the system's name is set CMake believes that it crosses, and skips what it could try."""
    assert "-target-dir sbsa-linux" in toolchain_file(compilers(), cuda=Path("/build/cuda"))
    assert "CMAKE_SYSTEM_NAME" not in toolchain_file(compilers(cross=False), cuda=Path("/build/cuda"))


def test_a_missing_compiler_is_named_with_its_debian_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.shutil, "which", lambda *_, **__: None)
    with pytest.raises(ProgramError, match="aarch64-linux-gnu-gcc is not installed") as error:
        find_compilers("aarch64", here="x86_64")
    assert "apt install gcc-aarch64-linux-gnu" in error.value.next
    with pytest.raises(ProgramError) as error:
        find_compilers("aarch64", here="aarch64")
    assert "apt install gcc)" in error.value.next


def test_a_compiler_of_the_user_s_own_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An isolated place does not hold conda's g++, and Debian's /usr/lib/ccache/g++ would put a cache into every build."""
    for name in ("ccache", "none-such"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(toolchain, "SYSTEM_PATH", str(tmp_path / "system"))
    with pytest.raises(ProgramError, match="is not installed") as error:
        toolchain._require_program("none-such", package="none-such")
    assert f"{tmp_path / 'none-such'} is not taken" in error.value.why
    monkeypatch.setenv("ENVBUILDER_CCACHE", "1")
    monkeypatch.setattr(building, "SYSTEM_PATH", str(tmp_path / "system"))
    with pytest.raises(ProgramError, match="ccache is not installed"):
        building.find_ccache()


def test_missing_headers_are_named_with_their_debian_package() -> None:
    with pytest.raises(ProgramError, match=r"Python\.h for riscv64") as error:
        toolchain._python_headers("riscv64", cross=False)
    assert "python3-dev" in error.value.next


# -- wheels ------------------------------------------------------------------------------------------------------


def test_only_what_is_asked_for_is_unpacked(tmp_path: Path) -> None:
    path = wheel(tmp_path / "x.whl", {"a/b/c": b"1", "a/d": b"2", "e": b"3"})
    assert unpack(path, tmp_path / "one", below("a/")) == 2
    assert (tmp_path / "one/b/c").read_bytes() == b"1"
    assert unpack(path, tmp_path / "two", whole("a/b/")) == 1
    assert (tmp_path / "two/a/b/c").read_bytes() == b"1"


@pytest.mark.parametrize("name", ["a/../../out", "a//etc/passwd"])
def test_a_wheel_that_climbs_out_is_refused(tmp_path: Path, name: str) -> None:
    path = wheel(tmp_path / "x.whl", {name: b"1"})
    with pytest.raises(VerificationError, match="outside itself"):
        unpack(path, tmp_path / "one", below("a/"))
    assert not (tmp_path / "out").exists()


def test_what_is_no_wheel_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_bytes(b"PK cut")
    with pytest.raises(VerificationError, match="not a sound wheel"):
        unpack(tmp_path / "x.whl", tmp_path, whole(""))


# -- the workspace -----------------------------------------------------------------------------------------------


def test_a_part_is_made_once_for_its_inputs_and_again_when_it_was_cut_off(tmp_path: Path) -> None:
    made = []
    place = Workspace(tmp_path)

    def make(path: Path) -> None:
        made.append(path.name)
        (path / "file").write_text("x")

    def cut_off(path: Path) -> None:
        (path / "half").write_text("x")
        raise KeyboardInterrupt

    place._part("p", ["1"], make)
    place._part("p", ["1"], make)
    assert len(made) == 1
    with pytest.raises(KeyboardInterrupt):
        place._part("p", ["2"], cut_off)
    assert not (tmp_path / "p").exists()
    place._part("p", ["2"], make)
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["file"]


def test_a_file_that_says_the_same_keeps_its_time(tmp_path: Path) -> None:
    """CMake configures anew, and ninja builds anew, whatever is newer than what was made of it."""
    path = tmp_path / "x"
    write_if_other(path, "a")
    before = path.stat().st_mtime_ns, path.stat().st_ino
    write_if_other(path, "a")
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    write_if_other(path, "b")
    assert path.read_text() == "b"


def test_torch_s_flags_are_read_without_running_torch(tmp_path: Path) -> None:
    path = tmp_path / "cpp_extension.py"
    path.write_text("import not_there\nCOMMON_NVCC_FLAGS = [\n  '-a',\n  '--b'\n]\n")
    assert constant(path, "COMMON_NVCC_FLAGS") == ["-a", "--b"]
    with pytest.raises(VerificationError, match="no constant"):
        constant(path, "GONE")


def test_the_stand_in_for_torch_answers_what_vllm_s_cmake_asks(tmp_path: Path) -> None:
    torch = tmp_path / "torch/torch/utils"
    torch.mkdir(parents=True)
    (torch / "cpp_extension.py").write_text("COMMON_NVCC_FLAGS = ['-x']\n")
    workspace._stand_in_for_torch(tmp_path / "python", tmp_path / "torch", Path("/build"))
    code = compile((tmp_path / "python/torch/utils/__init__.py").read_text(), "x", "exec")
    names: dict[str, str] = {}
    exec(code, names)  # noqa: S102 - three lines that were written above
    assert names["cmake_prefix_path"] == "/build/torch/torch/share/cmake"
    assert "['-x']" in (tmp_path / "python/torch/utils/cpp_extension.py").read_text()
