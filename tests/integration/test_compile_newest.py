"""The newest release of dgx-spark, vLLM 0.32.0 with torch 2.13, by the same stage: all of it configured for sm_121a, a part compiled.

Nine units that take two minutes of CPU, out of 109. Run by `just integration test_compile_newest`.

Its build files ask for CUTLASS v4.7.1, which no wheel on the package index carries. Here FlashInfer's 4.5.0 lies in its
place, for units that read no header of it: the compiler's own list of what each unit read is looked at. Nothing here
says that the whole of it builds with another CUTLASS than the one asked for.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import tomllib
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from compile_ground import Ground, ground_of

from envbuilder.binaries.elf import read_elf_path
from envbuilder.binaries.fatbin import parse_arch
from envbuilder.binaries.gpu_code import Way, check_gpu_code
from envbuilder.compile import isolation
from envbuilder.compile.building import default_jobs, read_records
from envbuilder.compile.packing import owner_of
from envbuilder.compile.sources import read_source
from envbuilder.console import Console
from envbuilder.locking.model import read_lock
from envbuilder.store.cache import Store, Wanted, default_root
from envbuilder.store.fetch import fetch
from envbuilder.store.settings import read_settings
from envbuilder.targets.catalogue import find_target, lock_folder
from envbuilder.targets.model import Compile, SourceTree

if TYPE_CHECKING:
    from envbuilder.compile.building import Build
    from envbuilder.targets.model import Machine

pytestmark = [pytest.mark.network, pytest.mark.programs, pytest.mark.slow, pytest.mark.timeout(3000)]

RELEASE = "0.32.0"
DEVICE_UNITS = [
    f"CMakeFiles/_C_stable_libtorch.dir/csrc/{name}.cu.o"
    for name in (
        "quantization/marlin/sm80_kernel_bfloat16_u4b8_bfloat16",  # W4A16, as compressed-tensors has it
        "quantization/marlin/gptq_marlin_repack",
        "quantization/marlin/marlin_int4_fp8_preprocess",
        "attention/merge_attn_states",
        "layernorm_kernels",
        "quantization/fp4/nvfp4_quant_kernels",
    )
]
NEEDED_TO_CONFIGURE = {"gcc-12", "patched-header-once"}
HOST_TARGETS = ["spinloop", "cumem_allocator", "fs_io_C"]
# Without the edits, though asked for 12.1a: docs/source-build.md.
LEFT_TO_PTX = {
    "csrc/quantization/marlin/marlin.cu": "compute_80",
    "csrc/quantization/marlin/marlin_int4_fp8_preprocess.cu": "compute_80",
    "csrc/quantization/marlin/gptq_marlin_repack.cu": "compute_80",
    "csrc/quantization/marlin/awq_marlin_repack.cu": "compute_80",
    "csrc/moe/marlin_moe_wna16/ops.cu": "compute_80",
    "csrc/quantization/hadamard/hadacore/hadamard_transform_cuda.cu": "compute_90",
    "csrc/quantization/w8a8/cutlass/scaled_mm_c2x.cu": "compute_89",
}
IN_PLACE_OF_CUTLASS = (
    SourceTree(
        name="cutlass",
        distribution="flashinfer-python",
        path="flashinfer/data/cutlass/include",
        goal="cutlass/include",
        sha256="4b2d319fa938b805e2711649c33114d1aa1d143627140757e5f0d338c9f66587",
    ),
    SourceTree(
        name="cutlass-util",
        distribution="flashinfer-python",
        path="flashinfer/data/cutlass/tools/util",
        goal="cutlass/tools/util",
        sha256="633f0f6a7b9df3496b4e45a379dc85ba19ffed40da114b174c2fe85bc0ca30a9",
    ),
)


# -- what it stands on -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ground() -> Ground:
    target, path = find_target("dgx-spark")
    facts = tomllib.loads(Path(__file__).with_name("compile-0.32.0.toml").read_text(encoding="utf-8"))
    spec = Compile.model_validate(facts["releases"][RELEASE]["compile"]).model_copy(update={"trees": IN_PLACE_OF_CUTLASS})
    here: Machine = "aarch64" if platform.machine() == "aarch64" else "x86_64"
    serve = {it.name: it for it in read_lock(lock_folder(path, target, RELEASE)).wheels("serve", platform.python_version(), "aarch64")}
    # The lock of this release has no tools for a build yet: those of the other one are the same CUDA 13.0 and the same CMake.
    tools = {it.name: it for it in read_lock(lock_folder(path, target, "0.23.0")).build_wheels(platform.python_version(), here)}
    tools["flashinfer-python"] = serve["flashinfer-python"]
    libraries = {name: serve[name] for name in (*spec.cuda, "torch")}
    return ground_of(spec, tools=tools, libraries=libraries)


@pytest.fixture(scope="module")
def first(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Build:
    build = ground.build(tmp_path_factory.mktemp("first") / "workspace", jobs=default_jobs())
    compile_subset(build)
    return build


def compile_subset(build: Build) -> None:
    """Configure, compile the units, and link those with device code into one shared object."""
    build.configure()
    build.run([*HOST_TARGETS, *DEVICE_UNITS])
    objects = build.isolation.root / "obj"
    command: list[str | Path] = [build.compilers.cxx, "-shared", "-Wl,--as-needed", "-Wl,-s", "-o", objects / "subset.so"]
    command += [objects / unit for unit in DEVICE_UNITS]
    build.isolation.run(command, variables=build.variables(), log=build.log, what="linking the subset")


def outputs(build: Build) -> dict[str, bytes]:
    folder = build.workspace.root / "obj"
    named = [*folder.glob("*.so"), *(folder / unit for unit in DEVICE_UNITS)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in named}


def configured(build: Build) -> dict[str, set[str]]:
    """Return the GPU code that each unit will be made into, by its source, from what CMake wrote for ninja."""
    units: dict[str, set[str]] = {}
    text = (build.workspace.root / "obj/build.ninja").read_text(encoding="utf-8")
    for source, flags in re.findall(r"^build CMakeFiles/\S+\.dir/(\S+)\.o: .*\n(?:  (?!FLAGS).*\n)*  FLAGS = (.*)$", text, re.MULTILINE):
        units[source] = set(re.findall(r"\bcode=(\w+)", flags))
    return units


# -- configured --------------------------------------------------------------------------------------------------


def test_every_unit_of_the_whole_is_configured_for_sm_121a_and_none_for_ptx(first: Build) -> None:
    units = configured(first)
    kernels = {source: codes for source, codes in units.items() if source.endswith(".cu")}
    assert {source: codes for source, codes in kernels.items() if codes != {"sm_121a"}} == {}
    assert len(kernels) == 103
    assert len(units) == 109


def test_every_component_that_is_built_here_has_a_target(first: Build) -> None:
    """A component that ninja does not know would end the whole build when all else is compiled."""
    text = (first.workspace.root / "obj/build.ninja").read_text(encoding="utf-8")
    assert [name for name in first.ninja_targets() if f"\nbuild {name}.abi3.so: " not in text] == []


def test_every_file_of_the_published_wheel_is_somebody_s(ground: Ground) -> None:
    """A file that nobody accounts for would end the packing; an extension of a new vLLM comes as one."""
    target, path = find_target("dgx-spark")
    serve = read_lock(lock_folder(path, target, RELEASE)).wheels("serve", platform.python_version(), "aarch64")
    (vllm,) = (it for it in serve if it.name == "vllm")
    store, file = Store(default_root()), vllm.file
    wanted = Wanted(project="vllm", filename=file.filename, sha256=file.sha256, size=file.size)
    fetch([wanted], store=store, settings=read_settings(), console=Console())
    source = read_source(ground.inputs.sources["vllm"])
    with zipfile.ZipFile(store.path(file.sha256, file.filename)) as wheel:
        names = [name for name in wheel.namelist() if not name.endswith("/") and ".dist-info/" not in name]
    owners = {name: owner_of(name, ground.inputs.spec.components) for name in names}
    assert [name for name, owner in owners.items() if owner is None and name not in source] == []
    assert {owner.name for owner in owners.values() if owner} == {component.name for component in ground.inputs.spec.components}


# -- compiled ----------------------------------------------------------------------------------------------------


def test_the_subset_holds_sm_121a_code_and_nothing_to_be_compiled_at_first_use(first: Build) -> None:
    gpu = parse_arch("121a")
    assert gpu is not None
    (file,) = check_gpu_code([first.workspace.root / "obj/subset.so"], gpu).files
    assert file.verdict is Way.NATIVE
    assert set(file.cubins) == {"sm_121a"}
    assert file.ptx == {}


def test_it_is_for_the_target_s_machine(first: Build) -> None:
    found = [read_elf_path(path) for path in (first.workspace.root / "obj").glob("*.so")]
    assert len(found) == len(HOST_TARGETS) + 1
    assert {elf.machine for elf in found} == {"aarch64"}


def test_no_unit_of_it_read_a_header_of_the_other_cutlass(first: Build) -> None:
    """Else these kernels would be compiled with a CUTLASS that this vLLM does not ask for."""
    workspace = first.workspace
    read = {}
    for unit in DEVICE_UNITS:
        command: list[str | Path] = [workspace.root / workspace.ninja, "-C", workspace.root / "obj", "-t", "deps", unit]
        read[unit] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    # Else there would be no list at all: a unit is the first thing that its compiler read.
    assert all(any(path.endswith(unit.partition(".dir/")[2].removesuffix(".o")) for path in paths) for unit, paths in read.items())
    assert [path for paths in read.values() for path in paths if "cutlass/include" in path or "cutlass/tools" in path] == []


def test_a_second_build_elsewhere_gives_the_same_bytes(
    ground: Ground, first: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another folder, umask, time zone and number of jobs; from scratch, without a cache."""
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    before = os.umask(0o077)
    try:
        second = ground.build(tmp_path / "quite" / "another place" / "workspace", jobs=1)
        compile_subset(second)
    finally:
        os.umask(before)
    if first.isolation.way is isolation.Way.NONE:
        pytest.skip(f"this machine allows no isolation, and without it the paths differ: {first.isolation.why}")
    one, two = outputs(first), outputs(second)
    assert [name for name in one if one[name] != two[name]] == []
    assert len(one) == len(two) == len(DEVICE_UNITS) + len(HOST_TARGETS) + 1


def test_configuring_again_compiles_nothing(first: Build) -> None:
    """The header that vLLM patches for torch 2.13 is written by every configure run: a killed build would begin anew."""
    started = first.begun()
    first.configure()
    first.run([*HOST_TARGETS, *DEVICE_UNITS])
    assert read_records(first.workspace.root, newer=started) == []


def test_without_the_edits_seven_units_are_left_to_ptx_and_none_is_for_this_gpu(ground: Ground, first: Build) -> None:
    """What the edits are for; from here on the first build's source is the stock one, but for what cannot be fetched."""
    kept = tuple(edit for edit in ground.inputs.spec.edits if edit.name.startswith("without-") or edit.name in NEEDED_TO_CONFIGURE)
    spec = ground.inputs.spec.model_copy(update={"edits": kept})
    first.workspace.make(replace(ground.inputs, spec=spec), first.compilers, inside=first.isolation.root)
    first.configure()
    kernels = {source: codes for source, codes in configured(first).items() if source.endswith(".cu")}
    ptx = {source: code for source, codes in kernels.items() for code in codes if code.startswith("compute_")}
    assert ptx == LEFT_TO_PTX
    rest = {code for source, codes in kernels.items() if source not in LEFT_TO_PTX for code in codes}
    assert rest == {"sm_120", "sm_120f"}
