"""Verdicts over made-up environments: each test is one way in which an extension loads or does not."""

from __future__ import annotations

import json
import shutil
import zipfile
from typing import TYPE_CHECKING

import pytest

from envbuilder import elsewhere
from envbuilder.binaries import loader
from envbuilder.binaries.abi import ExpectedFault, check_environment, check_files, check_wheel
from envbuilder.binaries.abi_text import render, summary
from envbuilder.binaries.environment import shared_objects, torch_at
from envbuilder.binaries.known import MARKER
from envbuilder.binaries.system import System
from envbuilder.binaries.verdicts import AbiReport, ExtensionReport, Kind, Verdict, merged
from envbuilder.errors import ConfigurationError
from envbuilder.facts.extensions import read_extensions

if TYPE_CHECKING:
    from pathlib import Path

    from elf_forge import Forge

LOGGER = "_ZN3c1013MessageLoggerC1ENS_14SourceLocationEib"  # torch 2.11's
OLD_LOGGER = "_ZN3c1013MessageLoggerC1EPKciib"  # torch 2.10's
DEVICE = "_ZN3c104cuda9GetDeviceEPa"


def make_torch(forge: Forge, *, version: str = "2.11.0+cu130", cuda: str | None = "13.0", logger: str = LOGGER, place: str = "") -> None:
    """A torch in the shape of the wheel's, with its CUDA runtime in the nvidia folder beside it."""
    forge.file(f"{place}torch/version.py", f"__version__ = '{version}'\ncuda: Optional[str] = {cuda!r}\n")
    lib = f"{place}torch/lib"
    forge.so(f"{lib}/libc10.so", soname="libc10.so", defines=[logger])
    forge.so(f"{lib}/libtorch_cpu.so", soname="libtorch_cpu.so", defines=["_ZN2at3addEv"], needs=[f"{lib}/libc10.so"], flags=_here())
    forge.so(f"{lib}/libtorch_global_deps.so", soname="libtorch_global_deps.so")
    needs = [f"{lib}/libtorch_cpu.so"]
    if cuda:
        make_cuda(forge, f"{place}nvidia/cu13/lib", cuda.partition(".")[0])
        major = cuda.partition(".")[0]
        runtime = f"{place}nvidia/cu13/lib/libcudart.so.{major}"
        folder = _here("$ORIGIN:$ORIGIN/../../nvidia/cu13/lib")
        forge.so(f"{lib}/libc10_cuda.so", soname="libc10_cuda.so", defines=[DEVICE], needs=[runtime], flags=folder)
        forge.so(f"{lib}/libtorch_cuda.so", soname="libtorch_cuda.so", needs=[f"{lib}/libc10_cuda.so"], flags=folder)
        needs.append(f"{lib}/libtorch_cuda.so")
    forge.so(f"{lib}/libtorch.so", soname="libtorch.so", needs=needs, flags=_here())
    forge.so(
        f"{place}torch/_C.cpython-311-x86_64-linux-gnu.so", defines=["PyInit__C"], needs=[f"{lib}/libtorch.so"], flags=_here("$ORIGIN/lib")
    )


def make_cuda(forge: Forge, folder: str, major: str) -> None:
    script = forge.file("cudart.map", f"libcudart.so.{major} {{ global: cudaMalloc; }};")
    forge.so(
        f"{folder}/libcudart.so.{major}", soname=f"libcudart.so.{major}", defines=["cudaMalloc"], flags=[f"-Wl,--version-script={script}"]
    )


def _here(path: str = "$ORIGIN") -> list[str]:
    return [f"-Wl,--enable-new-dtags,-rpath,{path}"]


def one(report: AbiReport, path: str) -> ExtensionReport:
    return next(extension for extension in report.extensions if extension.path == path)


def vllm(forge: Forge, name: str = "vllm/_C.abi3.so", **options: object) -> None:
    """An extension in the shape of vLLM's: no RUNPATH, libraries that only an imported torch makes known."""
    needs = ["torch/lib/libtorch.so", "torch/lib/libc10.so", "torch/lib/libc10_cuda.so", "nvidia/cu13/lib/libcudart.so.13"]
    forge.so(name, **{"uses": [LOGGER, DEVICE, "cudaMalloc"], "needs": needs, **options})  # type: ignore[arg-type]


def test_libraries_that_torch_has_loaded_are_found_without_a_runpath(forge: Forge) -> None:
    """Every vLLM extension finds libtorch and libcudart that way; ldd would call each of them missing."""
    make_torch(forge)
    vllm(forge)
    report = check_environment(forge.root)
    extension = one(report, "vllm/_C.abi3.so")
    assert extension.verdict is Verdict.OK
    assert report.ok
    assert {need.soname: need.found for need in extension.needed}["libcudart.so.13"] == "nvidia/cu13/lib/libcudart.so.13"
    assert report.torch is not None
    assert (report.torch.version, report.torch.cuda, report.machine) == ("2.11.0+cu130", "13.0", "x86_64")


def test_a_torch_without_cuda_is_the_root_cause_and_stands_first(forge: Forge) -> None:
    """The published trap: torch 2.10.0+cpu; eighteen symbols are its consequences."""
    make_torch(forge)
    vllm(forge)
    make_torch(forge, version="2.10.0+cpu", cuda=None, logger=OLD_LOGGER, place="other/")
    report = check_environment(forge.root, torch=torch_at(forge.root / "other"))
    extension = one(report, "vllm/_C.abi3.so")
    assert extension.verdict is Verdict.MISSING_LIBRARY
    kinds = {symbol.symbol: symbol.kind for symbol in extension.missing}
    assert kinds == {
        DEVICE: Kind.CPU_ONLY_TORCH,
        LOGGER: Kind.TORCH_VERSION,
        "cudaMalloc@libcudart.so.13": Kind.CPU_ONLY_TORCH,
    }
    assert [cause.kind for cause in report.causes] == [Kind.CPU_ONLY_TORCH, Kind.TORCH_VERSION]
    assert report.causes[0].text.startswith("this torch has no CUDA: torch 2.10.0+cpu")
    assert "c10::MessageLogger::MessageLogger(c10::SourceLocation, int, bool)" in report.causes[1].text
    assert not report.ok
    assert "this torch has no CUDA" in render(report, title="x").splitlines()[1]


def test_another_torch_release_is_told_by_its_symbols(forge: Forge) -> None:
    make_torch(forge)
    vllm(forge)
    make_torch(forge, version="2.10.0+cu130", logger=OLD_LOGGER, place="other/")
    report = check_environment(forge.root, torch=torch_at(forge.root / "other"))
    extension = one(report, "vllm/_C.abi3.so")
    assert extension.verdict is Verdict.UNDEFINED_SYMBOLS
    assert [(symbol.symbol, symbol.kind) for symbol in extension.missing] == [(LOGGER, Kind.TORCH_VERSION)]


def test_a_library_of_torchs_that_was_not_linked_is_told_as_such(forge: Forge) -> None:
    """It said "built for another torch than 2.11.0, which does not define" what 2.11.0 does define."""
    make_torch(forge)
    forge.so("ext/_C.abi3.so", uses=[LOGGER])
    report = check_environment(forge.root)
    assert [(it.symbol, it.kind) for it in one(report, "ext/_C.abi3.so").missing] == [(LOGGER, Kind.NOT_LINKED)]
    assert one(report, "ext/_C.abi3.so").verdict is Verdict.UNDEFINED_SYMBOLS
    assert report.causes[0].text.startswith("torch 2.11.0+cu130 or the C++ runtime defines it, but the extension does not name the library")
    forge.so("ext/_C.abi3.so", uses=[OLD_LOGGER])
    assert check_environment(forge.root).causes[0].kind is Kind.TORCH_VERSION


def test_torchs_python_binding_is_torchs(forge: Forge) -> None:
    """Its functions lie in no namespace: each release that changes one was "an incomplete build" to whoever was compiled before."""
    make_torch(forge)
    vllm(forge, uses=["_Z16THPVariable_WrapN2at6TensorE", "_ZN8pybind116detail11type_casterIN2at6TensorEvE4loadENS_6handleEb"])
    report = check_environment(forge.root)
    assert one(report, "vllm/_C.abi3.so").verdict is Verdict.UNDEFINED_SYMBOLS
    assert [cause.kind for cause in report.causes] == [Kind.TORCH_VERSION]


def test_the_old_string_abi_has_its_own_name(forge: Forge) -> None:
    """vllm#13608: `undefined symbol: _ZN5torch3jit17parseSchemaOrNameERKSsb`."""
    make_torch(forge)
    vllm(forge, uses=["_ZN5torch3jit17parseSchemaOrNameERKSsb"])
    report = check_environment(forge.root)
    assert report.causes[0].kind is Kind.OLD_CXX11_ABI


def test_a_function_nobody_should_define_means_an_incomplete_build(forge: Forge) -> None:
    """vllm#23925: a source that was not compiled; its arguments are torch's, its name is not."""
    make_torch(forge)
    name = "_Z24silu_and_mul_nvfp4_quantRN2at6TensorES1_S1_S1_"
    vllm(forge, uses=[name])
    extension = one(check_environment(forge.root), "vllm/_C.abi3.so")
    assert extension.verdict is Verdict.INCOMPLETE_BUILD
    assert extension.missing[0].demangled == "silu_and_mul_nvfp4_quant(at::Tensor&, at::Tensor&, at::Tensor&, at::Tensor&)"


def test_a_library_of_another_cuda_major_is_told_as_such(forge: Forge) -> None:
    """vllm#52300, cudart12-missing: pip check is clean, the import is not."""
    make_torch(forge)
    make_cuda(forge, "old", "12")
    forge.so("ext/_C.abi3.so", uses=["cudaMalloc"], needs=["old/libcudart.so.12"])
    (forge.root / "old/libcudart.so.12").unlink()
    report = check_environment(forge.root)
    assert one(report, "ext/_C.abi3.so").verdict is Verdict.MISSING_LIBRARY
    assert report.causes[0].kind is Kind.CUDA_MAJOR
    assert "libcudart.so.12" in report.causes[0].text


def test_a_bare_torch_of_another_cuda_major_is_told_as_such(forge: Forge) -> None:
    """VLLM 0.20 on x86_64 with torch 2.10.0 (cu128): no file here has the name, and the number alone tells."""
    make_torch(forge, version="2.10.0+cu128", cuda="12.8", place="wheel/")
    make_cuda(forge, "new", "13")
    forge.so("ext/_C.abi3.so", uses=["cudaMalloc", OLD_LOGGER], needs=["new/libcudart.so.13"])
    shutil.rmtree(forge.root / "wheel/nvidia")
    report = check_environment(forge.root / "ext", torch=torch_at(forge.root / "wheel"))
    assert report.causes[0].kind is Kind.CUDA_MAJOR
    assert "(CUDA 12.8): libcudart.so.13" in report.causes[0].text


def test_a_library_elsewhere_in_the_environment_is_not_found(forge: Forge) -> None:
    """Tilelang's stub of libcuda would hide a real gap if "anywhere" were enough."""
    make_torch(forge)
    forge.so("tilelang/lib/libodd.so.1", soname="libodd.so.1", defines=["odd"])
    forge.so("ext/_C.abi3.so", uses=["odd"], needs=["tilelang/lib/libodd.so.1"])
    extension = one(check_environment(forge.root), "ext/_C.abi3.so")
    assert extension.verdict is Verdict.MISSING_LIBRARY
    assert {need.soname: need.found for need in extension.needed} == {"libodd.so.1": None}


def test_runpath_and_rpath_differ_in_who_inherits(forge: Forge) -> None:
    """ld.so(8): RPATH serves the libraries of one's libraries too, RUNPATH does not."""
    forge.so("a/lib2.so.1", soname="lib2.so.1", defines=["two"])
    forge.so("a/lib1.so.1", soname="lib1.so.1", uses=["two"], needs=["a/lib2.so.1"])
    forge.so("new.abi3.so", needs=["a/lib1.so.1"], flags=["-Wl,--allow-shlib-undefined", *_here("$ORIGIN/a")])
    forge.so("old.abi3.so", needs=["a/lib1.so.1"], flags=["-Wl,--allow-shlib-undefined,--disable-new-dtags,-rpath,${ORIGIN}/a"])
    report = check_environment(forge.root)
    assert one(report, "old.abi3.so").verdict is Verdict.OK
    new = one(report, "new.abi3.so")
    assert new.verdict is Verdict.MISSING_LIBRARY
    assert [(need.soname, need.via) for need in new.needed if need.found is None] == [("lib2.so.1", "a/lib1.so.1")]


def test_weak_and_python_and_driver_symbols_are_not_missed(forge: Forge) -> None:
    """The interpreter brings Py*, the driver cu*; weak ones may stay unresolved."""
    forge.so("stub/libcuda.so.1", soname="libcuda.so.1", defines=["cuInit"])
    forge.so("ext.abi3.so", uses=["PyObject_Call", "_Py_Dealloc", "cuInit"], weak=["__gmon_start__"], needs=["stub/libcuda.so.1"])
    extension = one(check_environment(forge.root), "ext.abi3.so")
    assert extension.verdict is Verdict.OK
    assert extension.needed[0].found == "driver"


def test_the_drivers_functions_need_the_drivers_library(forge: Forge) -> None:
    forge.so("ext.abi3.so", uses=["cuInit"])
    assert one(check_environment(forge.root), "ext.abi3.so").missing[0].kind is Kind.CUDA_LIBRARY


def test_a_renamed_copy_does_not_stand_for_the_system(forge: Forge) -> None:
    """Torchvision ships ld-linux and libz under other names with the old sonames; they define nothing that others need."""
    forge.so("pkg.libs/libz-1234.so.1", soname="libz.so.1", defines=["adler32"])
    forge.so("pkg/ext.abi3.so", uses=["adler32"], needs=["pkg.libs/libz-1234.so.1"])
    (extension,) = check_environment(forge.root).extensions
    assert extension.needed[0].found == "system"
    assert extension.verdict is Verdict.OK
    bare = System(name="no zlib", sonames=frozenset({"libc.so.6"}))
    (extension,) = check_environment(forge.root, system=bare).extensions
    assert extension.verdict is Verdict.MISSING_LIBRARY


def test_a_newer_system_than_there_is_is_told_by_the_version(forge: Forge, tmp_path: Path) -> None:
    """What the loader says: /lib/libc.so.6: version `GLIBC_2.99' not found."""
    script = tmp_path / "v.map"
    script.write_text("GLIBC_2.99 { global: fresh; };")
    forge.so("fake/libc.so.6", soname="libc.so.6", defines=["fresh"], flags=[f"-Wl,--version-script={script}"])
    forge.so("ext.abi3.so", uses=["fresh"], needs=["fake/libc.so.6"])
    report = check_environment(forge.root)
    extension = one(report, "ext.abi3.so")
    assert extension.verdict is Verdict.UNDEFINED_SYMBOLS
    assert [symbol.kind for symbol in extension.missing] == [Kind.SYSTEM_TOO_OLD]
    assert check_environment(forge.root, system=System(name="new", ceilings={"GLIBC": (2, 100)})).ok


def test_another_machine(forge: Forge) -> None:
    make_torch(forge)
    vllm(forge, machine=183)
    report = check_environment(forge.root)
    assert one(report, "vllm/_C.abi3.so").verdict is Verdict.WRONG_MACHINE
    assert report.causes[0].text == "built for aarch64, and the environment is for x86_64"


def test_a_library_of_another_machine_is_passed_over(forge: Forge) -> None:
    """The loader looks on in the next folder."""
    forge.so("a/libodd.so.1", soname="libodd.so.1", defines=["odd"])
    forge.so("ext.abi3.so", uses=["odd"], needs=["a/libodd.so.1"], flags=_here("$ORIGIN/b:$ORIGIN/a"))
    forge.so("b/libodd.so.1", soname="libodd.so.1", defines=["odd"], machine=183)
    (extension,) = check_environment(forge.root, machine="x86_64").extensions
    assert extension.needed[0].found == "a/libodd.so.1"


def test_extensions_of_other_pythons_are_set_aside(forge: Forge) -> None:
    """deep_gemm ships five; four of them are not this interpreter's."""
    for tag in ("310", "311", "313"):
        forge.so(f"g/_C.cpython-{tag}-x86_64-linux-gnu.so", uses=["nowhere"])
    forge.so("other.cpython-311-x86_64-linux-gnu.so")
    report = check_environment(forge.root)
    assert [extension.path for extension in report.extensions if extension.fails] == ["g/_C.cpython-311-x86_64-linux-gnu.so"]
    assert len(report.skipped) == 2
    report = check_environment(forge.root, python="313")
    assert [extension.path for extension in report.extensions] == ["g/_C.cpython-313-x86_64-linux-gnu.so"]


def test_extensions_are_enumerated_never_listed(forge: Forge) -> None:
    """By their tag, their init function, or their need of torch; the rest are libraries."""
    make_torch(forge)
    forge.so("a/_new_name_C.abi3.so")
    forge.so("b/plain.so", defines=["PyInit_plain"])
    forge.so("c/ops.so", needs=["torch/lib/libc10.so"])
    forge.so("d/plugin.so", uses=["fi_getinfo"])
    forge.so("e/libthing.so.3", uses=["nowhere"])
    forge.file("f/text.so", "INPUT(libfoo.so)\n")
    report = check_environment(forge.root)
    assert {extension.path for extension in report.extensions} == {
        "a/_new_name_C.abi3.so",
        "b/plain.so",
        "c/ops.so",
        "torch/_C.cpython-311-x86_64-linux-gnu.so",
    }
    assert [skipped.path for skipped in report.skipped] == ["f/text.so"]
    assert report.ok


def test_folders_that_hold_no_modules_are_not_entered(forge: Forge) -> None:
    """Four hundred of an environment's folders hold metadata or bytecode; a folder that only sounds so is entered."""
    for folder in ("a", "a.libs", "dist-info", "a-1.dist-info", "a/__pycache__"):
        forge.file(f"{folder}/x.so.1")
    assert sorted(path.removeprefix(f"{forge.root}/") for path in shared_objects(forge.root)) == [
        "a.libs/x.so.1",
        "a/x.so.1",
        "dist-info/x.so.1",
    ]


def test_every_folder_of_many_is_walked_once(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are many, every second one is walked in a child: none is left out, at whatever depth, and none comes twice."""
    children = []
    start = elsewhere.start
    monkeypatch.setattr(elsewhere, "start", lambda work, **limit: children.append(work) or start(work, **limit))
    expected = {forge.file(f"p{number}/{'d/' * (number % 5)}x.so") for number in range(400)}
    found = shared_objects(forge.root)
    assert len(found) == 400
    assert set(found) == set(map(str, expected))
    assert len(children) == 1, "this is not what the test is about"


def test_a_text_named_as_an_extension_is_a_fault(forge: Forge) -> None:
    forge.file("x.abi3.so", "version https://git-lfs.github.com/spec/v1\n")
    report = check_environment(forge.root)
    assert one(report, "x.abi3.so").verdict is Verdict.NOT_ELF
    assert report.causes[0].kind is Kind.MALFORMED


def test_a_cut_extension_is_told_as_cut(forge: Forge) -> None:
    """What a full disk leaves of vLLM's 300 MB: its tables are whole, its code is not."""
    data = forge.so("x.abi3.so", defines=["PyInit_x"], uses=["PyObject_Call"]).read_bytes()
    (forge.root / "x.abi3.so").write_bytes(data[: data.index(b"\0.shstrtab") // 2])
    extension = one(check_environment(forge.root), "x.abi3.so")
    assert extension.verdict is Verdict.NOT_ELF
    assert extension.detail.startswith("cut short: ")


def test_a_library_that_lies_makes_its_users_fail_and_nothing_else(forge: Forge) -> None:
    forge.so("a/libodd.so.1", soname="libodd.so.1", defines=["odd"])
    forge.so("ext.abi3.so", uses=["odd"], needs=["a/libodd.so.1"], flags=_here("$ORIGIN/a"))
    library = forge.root / "a/libodd.so.1"
    data = library.read_bytes()
    for length in (40, 70, 500, len(data) // 2):
        library.write_bytes(data[:length])
        assert not check_environment(forge.root).ok


def test_torch_itself_is_checked_and_its_fault_is_not_told_of_others(forge: Forge) -> None:
    """No cascades: a broken torch is one finding."""
    make_torch(forge)
    vllm(forge)
    forge.so("torch/lib/libtorch_cpu.so", soname="libtorch_cpu.so", defines=["_ZN2at3addEv"], uses=["_ZN2at6brokenEv"])
    report = check_environment(forge.root)
    assert [extension.path for extension in report.extensions if extension.fails] == ["torch/_C.cpython-311-x86_64-linux-gnu.so"]


def test_what_torch_loads_for_all_is_in_scope_without_being_needed(forge: Forge) -> None:
    """libtorch_global_deps is opened with RTLD_GLOBAL."""
    make_torch(forge)
    lib = "torch/lib"
    forge.so(f"{lib}/libglobal.so", soname="libglobal.so", defines=["everywhere"])
    forge.so(f"{lib}/libtorch_global_deps.so", soname="libtorch_global_deps.so", needs=[f"{lib}/libglobal.so"], flags=_here())
    forge.so("ext.abi3.so", uses=["everywhere"])
    forge.so("other.abi3.so", uses=["_ZN2at3addEv"])
    report = check_environment(forge.root)
    assert one(report, "ext.abi3.so").verdict is Verdict.OK
    assert one(report, "other.abi3.so").verdict is Verdict.UNDEFINED_SYMBOLS, "libtorch_cpu is loaded, but not for all"


def test_what_torch_loads_by_path_is_there(forge: Forge) -> None:
    """VLLM's spinloop finds libnvrtc because torch/__init__.py has opened it from the nvidia folder."""
    make_torch(forge)
    folder = "nvidia/cu13/lib"
    for soname in ("libcublasLt.so.13", "libcublas.so.13", "libcudnn.so.9", "libnvrtc.so.13"):
        forge.so(f"{folder}/{soname}", soname=soname)
    forge.so("ext.abi3.so", needs=[f"{folder}/libnvrtc.so.13"])
    assert one(check_environment(forge.root), "ext.abi3.so").verdict is Verdict.OK
    (forge.root / folder / "libcublas.so.13").unlink()
    assert one(check_environment(forge.root), "ext.abi3.so").verdict is Verdict.MISSING_LIBRARY, (
        "torch gives up at the first that is absent"
    )


def test_a_bare_torch_is_taken_to_have_its_dependencies(forge: Forge) -> None:
    """A torch wheel has no CUDA runtime in it; its absence says nothing."""
    make_torch(forge)
    vllm(forge)
    make_torch(forge, place="wheel/")
    shutil.rmtree(forge.root / "wheel/nvidia")
    for place in ("wheel", "wheel/torch", "wheel/torch/lib"):
        report = check_environment(forge.root / "vllm", torch=torch_at(forge.root / place))
        (extension,) = report.extensions
        assert extension.verdict is Verdict.OK, place
        assert {need.soname: need.found for need in extension.needed}["libcudart.so.13"] == "with torch's dependencies"


def test_a_bare_torch_answers_for_its_own_functions(forge: Forge) -> None:
    """Its CUDA runtime is assumed, its own C functions are not: the stable ABI grows by such names with each release."""
    make_torch(forge, place="wheel/")
    vllm_needs = ["wheel/torch/lib/libtorch.so", "wheel/nvidia/cu13/lib/libcudart.so.13"]
    forge.so("ext/_C_stable.abi3.so", uses=["torch_dtype_float4_e2m1fn_x2", "cudaMalloc"], needs=vllm_needs)
    shutil.rmtree(forge.root / "wheel/nvidia")
    (extension,) = check_environment(forge.root / "ext", torch=torch_at(forge.root / "wheel")).extensions
    assert [(it.symbol, it.kind) for it in extension.missing] == [("torch_dtype_float4_e2m1fn_x2", Kind.TORCH_VERSION)]


def test_many_hostile_files_do_not_fill_memory(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file's names are bounded, and so is their sum."""
    monkeypatch.setattr(loader, "_MAX_HELD", 3000)
    for number in range(3):
        forge.so(f"a/lib{number}.so.1", soname=f"lib{number}.so.1", defines=[f"{'x' * 40}{number}_{i}" for i in range(30)])
    forge.so("ext.abi3.so", uses=["nowhere"], needs=[f"a/lib{number}.so.1" for number in range(3)], flags=_here("$ORIGIN/a"))
    (extension,) = check_environment(forge.root).extensions
    assert extension.verdict is Verdict.NOT_ELF
    assert "exceed" in extension.detail


def test_no_torch_at_all(forge: Forge) -> None:
    make_torch(forge)
    vllm(forge)
    report = check_environment(forge.root / "vllm")
    assert report.torch is None
    assert [cause.kind for cause in report.causes][:1] == [Kind.NO_TORCH]
    with pytest.raises(ConfigurationError):
        torch_at(forge.root / "vllm")


def test_one_file_is_checked_against_the_torch_around_it(forge: Forge) -> None:
    make_torch(forge)
    vllm(forge, "vllm/odd name.so")
    report = check_files([forge.root / "vllm" / "odd name.so"])
    assert report.ok
    assert report.torch is not None
    assert report.extensions[0].path == "vllm/odd name.so"


def test_expected_faults_are_told_and_do_not_fail(forge: Forge) -> None:
    """Target cpu keeps torchvision's CUDA build: known, and of no consequence."""
    make_torch(forge)
    vllm(forge, "torchvision/_C.so")
    make_torch(forge, version="2.13.0+cpu", cuda=None, place="other/")
    torch = torch_at(forge.root / "other")
    expected = ExpectedFault(path="torchvision/*.so", verdict=Verdict.MISSING_LIBRARY, reason="no operator of it is used")
    report = check_environment(forge.root, torch=torch, expected=[expected])
    assert report.ok
    assert one(report, "torchvision/_C.so").expected == "no operator of it is used"
    assert report.causes == ()
    assert "1 accepted fault" in summary(report)
    other = ExpectedFault(path="torchvision/*.so", verdict=Verdict.UNDEFINED_SYMBOLS, reason="another verdict")
    assert not check_environment(forge.root, torch=torch, expected=[other]).ok


def test_an_environment_carries_what_its_target_accepts(forge: Forge) -> None:
    """`envbuilder abi ENV` anywhere, and the gate of its build, say the same."""
    forge.so("stub/libodd.so.1", soname="libodd.so.1")
    forge.so("a/ext.abi3.so", needs=["stub/libodd.so.1"])
    venv = forge.root.parent / "venv"
    (venv / "lib/python3.11").mkdir(parents=True)
    site = forge.root.rename(venv / "lib/python3.11/site-packages")
    assert not check_environment(site).ok
    rule = {"path": "a/*.so", "verdict": "missing-library", "reason": "nobody imports it"}
    (venv / MARKER).write_text(json.dumps({"expected-abi": [rule]}))
    report = check_environment(site)
    assert report.ok
    assert report.extensions[0].expected == "nobody imports it"
    (venv / MARKER).write_text('{"expected-abi": [{"path": 1}]}')
    assert not check_environment(site).ok


def test_stand_ins_of_an_overlay_are_loaded_first(forge: Forge) -> None:
    """Libnuma on a machine without it: a build writes a stub, which is loaded before vLLM."""
    forge.so("_envbuilder_lib/libnuma.so.1", soname="libnuma.so.1", defines=["numa_available"])
    forge.so("vllm/_C.abi3.so", uses=["numa_available"], needs=["_envbuilder_lib/libnuma.so.1"])
    (extension,) = check_environment(forge.root).extensions
    assert extension.needed[0].found == "_envbuilder_lib/libnuma.so.1"
    assert extension.verdict is Verdict.OK


def test_a_report_goes_to_json_and_back(forge: Forge) -> None:
    """A judgement is replayed on another machine from its facts."""
    make_torch(forge)
    vllm(forge)
    make_torch(forge, version="2.10.0+cpu", cuda=None, logger=OLD_LOGGER, place="other/")
    forge.so("g/_C.cpython-310-x86_64-linux-gnu.so")
    report = check_environment(forge.root, torch=torch_at(forge.root / "other"), python="311")
    assert report.skipped
    assert AbiReport.from_json(json.loads(json.dumps(report.as_json()))) == report
    assert merged([report]).as_json() == report.as_json()
    with pytest.raises(ValueError, match="schema"):
        AbiReport.from_json({**report.as_json(), "schema": "envbuilder/abi/0"})


def test_a_folder_with_nothing_in_it_is_fine(tmp_path: Path) -> None:
    report = check_environment(tmp_path)
    assert report.ok
    assert report.extensions == ()


def test_rendering_keeps_to_80_columns(forge: Forge) -> None:
    make_torch(forge)
    vllm(forge, uses=["_Z" + "24silu_and_mul_nvfp4_quant" + "RN2at6Tensor" + "ES1_" * 60])
    text = render(check_environment(forge.root), title="env")
    assert max(map(len, text.splitlines())) <= 80


def test_a_wheel_is_checked_like_an_environment(forge: Forge, tmp_path: Path) -> None:
    make_torch(forge)
    vllm(forge)
    wheel = tmp_path / "vllm-1-cp38-abi3-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(forge.root / "vllm/_C.abi3.so", "vllm/_C.abi3.so")
        archive.writestr("vllm/__init__.py", "")
    report = check_wheel(wheel, torch=torch_at(forge.root))
    assert report.ok
    assert [extension.path for extension in report.extensions] == ["vllm/_C.abi3.so"]


def test_the_doctor_names_what_the_loader_meets_first(forge: Forge) -> None:
    """A module that lacks a library never comes to its symbols; one that lacks symbols alone names them as a person reads them."""
    make_torch(forge)
    vllm(forge, uses=[OLD_LOGGER])
    gone = forge.so("gone/libgone.so.1", soname="libgone.so.1")
    forge.so("torchvision/_C.so", uses=[OLD_LOGGER], needs=["gone/libgone.so.1"])
    gone.unlink()
    symbols = {one["path"]: (one["not_found"], one["symbols"]) for one in read_extensions(forge.root)}
    assert symbols == {
        "vllm/_C.abi3.so": ((), ("c10::MessageLogger::MessageLogger(char const*, int, int, bool)",)),
        "torchvision/_C.so": (("libgone.so.1",), ()),
    }
