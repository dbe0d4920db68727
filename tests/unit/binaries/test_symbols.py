"""To whom a symbol belongs, by its mangled name."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envbuilder.binaries import symbols
from envbuilder.binaries.system import (
    DEBIAN_12,
    _configured_folders,
    driver_symbol,
    named_by_system,
    python_symbol,
    read_system,
    this_system,
)


@pytest.mark.parametrize(
    "name",
    [
        "_ZN3c1013MessageLoggerC1EPKciib",
        "_ZNK2at10TensorBase8data_ptrIvEEPT_v",
        "_ZTVN5torch8autograd4NodeE",
        "_ZTIN3c105ErrorE",
        "_ZGVN3c106detail1xE",
        "_ZThn16_N2at6ThingD1Ev",
        "aoti_torch_get_current_cuda_stream",
        "torch_dtype_float8_e8m0fnu",
        # As libtorch_python exports them: compiled as C++, and so mangled.
        "_Z16THPVariable_WrapRKN2at10TensorBaseE",
        "_Z16THPVariable_WrapON2at10TensorBaseE",
        "THPVariableClass",
        "_ZN10THPPointerI7_objectE4freeEv",
        "_ZN8pybind116detail11type_casterIN2at6TensorEvE4loadENS_6handleEb",
        "_ZN8pybind116detail11type_casterIN3c106ScalarEvE4castERKS3_NS_19return_value_policyENS_6handleE",
        "_ZZN3c104cuda13warning_stateEvE14warning_state_",
        "_ZGVZN3c104cuda13warning_stateEvE14warning_state_",
    ],
)
def test_torchs_names(name: str) -> None:
    """A name that is taken for nobody's calls the extension that needs it an incomplete build, whatever torch is beside it."""
    assert symbols.owned_by_torch(name)


@pytest.mark.parametrize(
    "name",
    [
        "_Z24silu_and_mul_nvfp4_quantRN2at6TensorES1_S1_S1_",
        "_ZN4vllm3fooERKN2at6TensorE",
        "_ZN5atlas3barEv",
        "_ZSt4cout",
        "cudaMalloc",
        "torchx",
        "_Z16my_THPVariable_fRKN2at10TensorBaseE",
        "_ZN8pybind116detail11type_casterIN4vllm6ThingsEvE4loadENS_6handleEb",
        "_ZN4gloo7Context12closeDeviceEv",
    ],
)
def test_names_that_only_speak_of_torch(name: str) -> None:
    """Arguments say nothing of the owner: an incomplete build would be called another torch version."""
    assert not symbols.owned_by_torch(name)


def test_the_runtimes_names() -> None:
    assert all(
        map(symbols.owned_by_runtime, ["_ZSt4cout", "_ZNSolsEi", "_Znwm", "__cxa_throw", "_ZTVN10__cxxabiv117__class_type_infoE", "_ZTVSo"])
    )
    assert not symbols.owned_by_runtime("_ZNSt6vectorIN2at6TensorESaIS1_EED1Ev"), "a template over torch's types is torch's to instantiate"
    assert not symbols.owned_by_runtime("_ZN4vllm3fooEv")


def test_cuda_names_are_the_toolkits_or_the_drivers() -> None:
    assert all(
        map(symbols.owned_by_cuda, ["cudaMalloc", "__cudaRegisterFunction", "cublasLtMatmul", "ncclAllReduce", "nvrtcCompileProgram"])
    )
    assert not symbols.owned_by_cuda("cuInit")
    assert driver_symbol("cuInit")
    assert driver_symbol("nvmlInit_v2")
    assert not driver_symbol("cudaMalloc")
    assert not driver_symbol("curl_easy_init")


def test_the_old_string_is_seen_outside_identifiers_only() -> None:
    assert symbols.old_cxx11("_ZN5torch3jit17parseSchemaOrNameERKSsb")
    assert not symbols.old_cxx11("_ZN5torch3jit17parseSchemaOrNameERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEEb")
    assert not symbols.old_cxx11("_ZN5torch8ClaSsicE3foov"), "Ss inside a name is a name"
    assert not symbols.old_cxx11("SsInC")


def test_interpreter_symbols() -> None:
    assert python_symbol("PyObject_Call")
    assert python_symbol("_PyObject_GC_New")
    assert not python_symbol("Pythia")


def test_names_without_version_are_the_systems_where_it_defines_them() -> None:
    """Cffi and PIL refer to dlopen and deflate without version."""
    assert named_by_system("dlopen", ())
    assert not named_by_system("deflate", ())
    assert named_by_system("deflate", {"libz.so.1"})
    assert not named_by_system("fi_getinfo", {"libz.so.1", "libgomp.so.1"})


def test_versions_compare_as_numbers() -> None:
    assert DEBIAN_12.defines("GLIBC_2.4")
    assert DEBIAN_12.defines("GLIBC_2.36")
    assert not DEBIAN_12.defines("GLIBC_2.37")
    assert DEBIAN_12.defines("GLIBC_PRIVATE")
    assert DEBIAN_12.defines("ODD_1.0"), "a family that the model does not know is not its to refuse"


def test_a_root_folder_is_read_as_a_system() -> None:
    """A container's root file system says which glibc it has."""
    system = read_system(Path("/"), machine=platform.machine())
    assert "libc.so.6" in system.sonames
    assert system.defines("GLIBC_2.17")
    assert not system.defines("GLIBC_9.9")
    assert read_system(Path("/"), machine="riscv").sonames == frozenset()


def test_demangling_and_its_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "_ZN3c1013MessageLoggerC1EPKciib"
    assert symbols.demangle([name, "plain", "_Znonsense"]) == {
        name: "c10::MessageLogger::MessageLogger(char const*, int, int, bool)",
        "plain": "plain",
        "_Znonsense": "_Znonsense",
    }
    monkeypatch.setattr(symbols, "_demangler", lambda: None)
    assert symbols.demangle([name]) == {name: name}


@given(st.text(st.characters(codec="latin-1", exclude_characters="\0"), max_size=60).map(lambda rest: "_Z" + rest))
def test_no_name_upsets_the_classification(name: str) -> None:
    symbols.demangle([name])
    symbols.old_cxx11(name)
    symbols.owned_by_runtime(name)
    symbols.owned_by_torch(name)


def test_what_ld_so_conf_names_is_part_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extension that needs OpenMPI or a CUDA toolkit of the system loads there; `abi` said that it would not."""
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra.more").write_text(f"# a comment\n{tmp_path}/extra\n")
    (tmp_path / "ld.so.conf").write_text(f"include {tmp_path}/*.more\n/nowhere/at/all\n")
    assert list(_configured_folders(tmp_path / "ld.so.conf"))[:1] == [tmp_path / "extra"]
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}/extra:")
    assert this_system(platform.machine()).variable == (str(tmp_path / "extra"),)
    assert this_system("another-machine") is DEBIAN_12


def test_an_include_that_includes_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "ld.so.conf").write_text(f"include {tmp_path}/ld.so.conf\n/a\n")
    assert set(_configured_folders(tmp_path / "ld.so.conf")) == {Path("/a")}
