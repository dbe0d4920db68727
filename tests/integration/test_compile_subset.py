"""A real subset of vLLM, device code and all, compiled twice from the lock's inputs alone: the same bytes, and sm_121a.

Seven units that take a minute of CPU, out of 100 that take 80. Everything is as in a whole build: sources, edits,
toolchain, isolation, launcher. Skipped where there is no compiler for arm64.
"""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from compile_ground import Ground, ground_of

from envbuilder.binaries.elf import read_elf_path
from envbuilder.binaries.fatbin import parse_arch
from envbuilder.binaries.gpu_code import Way, check_gpu_code
from envbuilder.compile import isolation
from envbuilder.compile.building import Build, CompileError, default_jobs, read_records
from envbuilder.errors import ProgramError
from envbuilder.locking.model import read_lock
from envbuilder.targets.catalogue import find_target, lock_folder

if TYPE_CHECKING:
    from envbuilder.targets.model import Machine

pytestmark = [pytest.mark.network, pytest.mark.programs, pytest.mark.timeout(1500)]

STABLE = "CMakeFiles/_C_stable_libtorch.dir/csrc/libtorch_stable"
DEVICE_UNITS = [
    f"{STABLE}/{name}.cu.o"
    for name in (
        "permute_cols",
        "cuda_utils_kernels",
        "quantization/fp4/nvfp4_quant_kernels",
        "quantization/w8a8/cutlass/moe/moe_data",
        "quantization/w8a8/cutlass/scaled_mm_c3x_sm120",
    )
]
HOST_TARGETS = ["spinloop", "cumem_allocator"]


@pytest.fixture(scope="module")
def ground() -> Ground:
    target, path = find_target("dgx-spark")
    spec = target.releases["0.23.0"].compile
    assert spec is not None
    lock = read_lock(lock_folder(path, target, "0.23.0"))
    here: Machine = "aarch64" if platform.machine() == "aarch64" else "x86_64"
    tools = {wheel.name: wheel for wheel in lock.build_wheels(platform.python_version(), here)}
    libraries = {
        wheel.name: wheel for wheel in lock.wheels("serve", platform.python_version(), "aarch64") if wheel.name in {*spec.cuda, "torch"}
    }
    return ground_of(spec, tools=tools, libraries=libraries)


@pytest.fixture(scope="module")
def first(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Build:
    build = ground.build(tmp_path_factory.mktemp("first") / "workspace", jobs=default_jobs())
    build.configure()
    build.run([*HOST_TARGETS, *DEVICE_UNITS])
    link(build)
    return build


def link(build: Build) -> None:
    """Link the device units into one shared object, as ninja links a whole extension."""
    objects = build.isolation.root / "obj"
    command: list[str | Path] = [build.compilers.cxx, "-shared", "-Wl,--as-needed", "-Wl,-s", "-o", objects / "subset.so"]
    command += [objects / unit for unit in DEVICE_UNITS]
    build.isolation.run(command, variables=build.variables(), log=build.log, what="linking the subset")


def outputs(build: Build) -> dict[str, bytes]:
    folder = build.workspace.root / "obj"
    named = [*folder.glob("*.so"), *(folder / unit for unit in DEVICE_UNITS)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in named}


def test_the_subset_holds_sm_121a_code_and_nothing_to_be_compiled_at_first_use(first: Build) -> None:
    gpu = parse_arch("121a")
    assert gpu is not None
    report = check_gpu_code([first.workspace.root / "obj/subset.so"], gpu)
    (file,) = report.files
    assert file.verdict is Way.NATIVE
    assert set(file.cubins) == {"sm_121a"}
    assert file.ptx == {}


def test_it_is_for_the_target_s_machine_and_asks_for_no_folder_of_this_one(first: Build) -> None:
    for path in (first.workspace.root / "obj").glob("*.so"):
        elf = read_elf_path(path)
        assert elf.machine == "aarch64"
        assert elf.runpath == elf.rpath == ()


def test_the_driver_is_named_where_its_functions_are_used(first: Build) -> None:
    """With a stand-in that defines nothing the linker left it out, and the extension would not load on any machine."""
    assert "libcuda.so.1" in read_elf_path(first.workspace.root / "obj/cumem_allocator.abi3.so").needed


def test_every_unit_went_through_the_launcher(first: Build) -> None:
    records = read_records(first.workspace.root)
    assert len(records) == len(DEVICE_UNITS) + len(HOST_TARGETS)
    assert all(record["peak"] > 1 << 20 and record["object"] for record in records)


def test_a_second_build_elsewhere_gives_the_same_bytes(
    ground: Ground, first: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another folder, umask, time zone and number of jobs; from scratch, without a cache."""
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    before = os.umask(0o077)
    try:
        second = ground.build(tmp_path / "quite" / "another place" / "workspace", jobs=1)
        second.configure()
        second.run([*HOST_TARGETS, *DEVICE_UNITS])
        link(second)
    finally:
        os.umask(before)
    if first.isolation.way is isolation.Way.NONE:
        pytest.skip(f"this machine allows no isolation, and without it the paths differ: {first.isolation.why}")
    one, two = outputs(first), outputs(second)
    assert [name for name in one if one[name] != two[name]] == []
    assert one.keys() == two.keys()
    assert len(one) == len(DEVICE_UNITS) + len(HOST_TARGETS) + 1


def test_a_cached_compile_gives_the_same_bytes_and_the_record_says_what_it_was(first: Build) -> None:
    """Ccache with nvcc: a build that it speeds up must not be another build."""
    found = shutil.which("ccache")
    if found is None:
        pytest.skip("ccache is not installed")
    cached, unit = replace(first, ccache=Path(found)), DEVICE_UNITS[0]
    path = first.workspace.root / "obj" / unit
    compiled = path.read_bytes()
    for expected in ("miss", "hit"):
        path.unlink()
        started = cached.begun()
        cached.run([unit])
        assert path.read_bytes() == compiled
        assert [it["cache"] for it in read_records(first.workspace.root, newer=started)] == [expected]


def test_nothing_changed_compiles_nothing_and_a_changed_file_what_includes_it(first: Build) -> None:
    """From here on the first build's source is changed."""
    started = first.begun()
    first.configure()
    first.run([*HOST_TARGETS, *DEVICE_UNITS])
    assert read_records(first.workspace.root, newer=started) == []
    one = first.workspace.root / "src/csrc/libtorch_stable/permute_cols.cu"
    one.write_text(one.read_text() + "\n// changed\n")
    first.run([*HOST_TARGETS, *DEVICE_UNITS])
    assert [it["unit"] for it in read_records(first.workspace.root, newer=started)] == [
        "_C_stable_libtorch/csrc/libtorch_stable/permute_cols.cu"
    ]


def test_a_build_that_reaches_for_the_network_fails(first: Build) -> None:
    if first.isolation.way is isolation.Way.NONE:
        pytest.skip(first.isolation.why)
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"
    with pytest.raises(ProgramError) as error:
        first.isolation.run(
            [first.isolation.python, "-c", code], variables=first.variables(), log=first.log, what="reaching for the network"
        )
    assert "Network is unreachable" in error.value.why


def test_a_source_that_does_not_compile_is_named_with_the_compiler_s_words(first: Build) -> None:
    one = first.workspace.root / "src/csrc/spinloop.cpp"
    one.write_text(one.read_text() + "\n#error broken on purpose\n")
    with pytest.raises(CompileError) as error:
        first.run(["spinloop"])
    assert "spinloop/csrc/spinloop.cpp" in error.value.what
    assert "broken on purpose" in error.value.why
