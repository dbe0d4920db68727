"""GPU code: the rules of what runs where, and the reader against containers of known content."""

from __future__ import annotations

import json
import struct
import subprocess
from importlib import resources
from typing import TYPE_CHECKING

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envbuilder.binaries import fatbin
from envbuilder.binaries.fatbin import Arch, Code, parse_arch, read_code_outside, read_gpu_code
from envbuilder.binaries.gpu_code import GpuCodeReport, Way, check_gpu_code, runs
from envbuilder.binaries.layout import MalformedElfError
from envbuilder.binaries.source import MemorySource
from envbuilder.cli import main

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from elf_forge import Forge

FLAGS = {"": 0x11, "a": 0x100011, "f": 0x200011}


def entry(name: str, *, payload: bytes = b"payload!", flags: int = 0, header: int = 64) -> bytes:
    arch = parse_arch(name)
    assert arch is not None
    kind = 1 if name.startswith("compute") else 2
    fixed = struct.pack(
        "<HHIQIIHHIIIQQQ", kind, 0x101, header, len(payload), 0, 0, 1, 8, arch.number, 0, 0, FLAGS[arch.variant] | flags, 0, 0
    )
    return fixed + bytes(header - 64) + payload


def container(*names: str) -> bytes:
    body = b"".join(map(entry, names))
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def embedded(forge: Forge, path: str, content: bytes, *, elsewhere: bytes = b"", flags: Sequence[str] = ()) -> Path:
    """A shared object with that .nv_fatbin section, as nvcc's host compiler makes it; `elsewhere`: more, as cuBLASLt keeps it."""
    goal = forge.root / path
    goal.parent.mkdir(parents=True, exist_ok=True)
    pieces = {".nv_fatbin": content, ".cask_resource": elsewhere}
    text = "".join(
        f'__attribute__((section("{name}"), aligned(8))) const unsigned char part{number}[] = {{{",".join(map(str, data))}}};\n'
        for number, (name, data) in enumerate(pieces.items())
        if data
    )
    source = forge.file("fatbin.c", text)
    subprocess.run(["gcc", "-shared", "-fPIC", "-nostdlib", "-Wl,--no-as-needed", "-o", goal, source, *flags], check=True)
    source.unlink()
    return goal


def pieces(data: bytes) -> dict[str, int]:
    return {str(code): count for code, count in read_gpu_code(MemorySource(data)).pieces.items()}


@pytest.mark.parametrize(
    ("code", "gpu", "way"),
    [
        ("sm_121", "121a", Way.NATIVE),
        ("sm_121a", "121a", Way.NATIVE),
        ("sm_121f", "121", Way.NATIVE),
        ("sm_120", "121a", Way.FAMILY),
        ("sm_120f", "121a", Way.FAMILY),
        ("sm_120a", "121a", Way.NONE),
        ("sm_121a", "120", Way.NONE),
        ("sm_121f", "120", Way.NONE),
        ("sm_110f", "121a", Way.NONE),
        ("sm_100f", "103", Way.FAMILY),
        ("sm_100a", "103", Way.NONE),
        ("sm_90a", "121a", Way.NONE),
        ("sm_80", "121a", Way.NONE),
        ("sm_80", "89", Way.FAMILY),
        ("sm_89", "86", Way.NONE),
        ("compute_80", "121a", Way.JIT),
        ("compute_121", "121a", Way.JIT),
        ("compute_130", "121a", Way.NONE),
        ("compute_90a", "121a", Way.NONE),
        ("compute_120f", "121a", Way.JIT),
        ("compute_120a", "121a", Way.NONE),
        ("compute_121a", "121a", Way.JIT),
        ("compute_100f", "121a", Way.NONE),
    ],
)
def test_what_runs_where(code: str, gpu: str, way: Way) -> None:
    """One wrong row, and a build that cannot run is called native, or a sound one is refused."""
    piece, number = parse_arch(code), parse_arch(gpu)
    assert piece is not None
    assert number is not None
    assert runs(Code(ptx=code.startswith("compute"), arch=piece), number) is way


@pytest.mark.parametrize("text", ["sm_", "sm121", "sm_1", "121x", "", "compute_12a1", "sm_121af", "12.10", "121.0", "12.", ".1"])
def test_what_is_no_arch(text: str) -> None:
    assert parse_arch(text) is None


def test_the_three_121s_are_told_apart() -> None:
    """Cuobjdump 13.0 calls them all sm_121."""
    assert pieces(container("sm_121", "sm_121a", "sm_121f", "sm_120a", "compute_120f", "compute_80")) == {
        "sm_121": 1,
        "sm_121a": 1,
        "sm_121f": 1,
        "sm_120a": 1,
        "compute_120f": 1,
        "compute_80": 1,
    }


def test_compressed_and_longer_entries_are_passed_over_by_their_sizes() -> None:
    body = entry("sm_121a", flags=0x8000, header=112, payload=b"zstd" * 9 + b"....") + entry("sm_80", flags=0x2000, header=80)
    assert pieces(struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body) == {"sm_121a": 1, "sm_80": 1}


def test_each_translation_unit_counts_by_its_best_piece(forge: Forge) -> None:
    """A file is judged by its units: a unit with PTX beside code for another GPU is compiled at first use."""
    content = (
        container("sm_90a", "sm_120f") + bytes(8) + container("sm_80", "compute_80") + container("sm_90a") + container("sm_121a", "sm_80")
    )
    report = check_gpu_code([embedded(forge, "x.so", content)], Arch(121, "a"))
    (file,) = report.files
    assert file.units == {"native": 1, "family": 1, "jit": 1, "none": 1}
    assert file.verdict is Way.NATIVE
    assert file.cubins == {"sm_80": 2, "sm_90a": 2, "sm_120f": 1, "sm_121a": 1}
    assert file.ptx == {"compute_80": 1}
    assert report.ok


def test_code_outside_nv_fatbin_counts_where_nothing_in_it_runs(forge: Forge) -> None:
    """Else cuFFT, whose .nv_fatbin holds one dummy for sm_75, is said not to run on a GB10, for which .data holds 420 cubins."""
    elsewhere = b"tables\0\0" + container() + container("sm_120", "sm_90") + b"more" * 3 + container("compute_75") + b"tail"
    path = embedded(forge, "cufft.so", container("sm_75"), elsewhere=elsewhere)
    (file,) = check_gpu_code([path], Arch(121)).files
    assert (file.verdict, file.outside, file.units) == (Way.FAMILY, 2, {"family": 1, "jit": 1, "none": 1})
    assert (file.cubins, file.ptx) == ({"sm_75": 1, "sm_90": 1, "sm_120": 1}, {"compute_75": 1})
    (file,) = check_gpu_code([path], Arch(75)).files
    assert (file.outside, file.cubins) == (0, {"sm_75": 1}), "where .nv_fatbin runs, nothing is searched: it would take seconds"
    (file,) = check_gpu_code([embedded(forge, "none.so", b"", elsewhere=container("sm_90a"))], Arch(121)).files
    assert file.verdict is Way.NONE, "a file without .nv_fatbin is not host-only for that"


def test_the_magic_alone_is_no_gpu_code(forge: Forge) -> None:
    """Triton has these four bytes in its code's constants; a container is taken only where its sizes fit exactly."""
    whole = container("sm_121")
    magic = whole[:4]
    wrong_header = struct.pack("<IHHQ", 0xBA55ED50, 1, 24, 8) + bytes(32)
    too_long = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 1 << 40)
    not_to_the_end = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(whole) - 16 + 8) + whole[16:] + bytes(8)
    path = embedded(forge, "x.so", b"", elsewhere=magic * 9 + wrong_header + too_long + not_to_the_end + whole[:-1])
    assert check_gpu_code([path], Arch(121)).files[0].verdict is Way.HOST_ONLY


def test_a_container_across_two_pieces_is_found(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library is searched a megabyte at a time, and a container begins anywhere."""
    elsewhere = b"\1" * 40 + container("sm_120") * 3
    path = embedded(forge, "x.so", b"", elsewhere=elsewhere)
    for step in range(4, 40):
        monkeypatch.setattr(fatbin, "_STEP", step)
        (file,) = check_gpu_code([path], Arch(121)).files
        assert (file.outside, file.cubins) == (3, {"sm_120": 3}), step


def test_a_search_that_would_not_end_is_refused(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    """A magic every four bytes, containers that begin well, a sparse file: each would keep it busy for hours."""
    begun = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 65 * 40) + entry("sm_80") * 36
    for name, content in (("magic", container("sm_80")[:4] * 200), ("begun", begun * 10)):
        path = embedded(forge, f"{name}.so", b"", elsewhere=content)
        assert check_gpu_code([path], Arch(121)).ok
        with monkeypatch.context() as patch:
            patch.setattr(fatbin, "_MAX_ENTRIES", 150)
            assert "150 pieces" in check_gpu_code([path], Arch(121)).unreadable[0][1]
    monkeypatch.setattr(fatbin, "_MAX_SEARCHED", 500)
    assert "more data" in check_gpu_code([path], Arch(121)).unreadable[0][1]


def test_sections_over_each_other_are_searched_once() -> None:
    """65,000 section headers that all name the same gigabyte would be searched for days, and count its code 65,000 times."""
    body = container("sm_90")
    names = b"\0.shstrtab\0.data\0"
    start = b"\x7fELF\x02\x01\x01" + bytes(9)
    start += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, 64 + len(names) + len(body), 0, 64, 56, 0, 64, 9, 1)
    table = bytes(64) + struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, 64, len(names), 0, 0, 1, 0)
    table += struct.pack("<IIQQQQIIQQ", 11, 1, 0, 0, 64 + len(names), len(body), 0, 0, 8, 0) * 7
    assert read_code_outside(MemorySource(start + names + body + table)).outside == 1


def test_a_file_without_gpu_code_is_host_only(forge: Forge) -> None:
    report = check_gpu_code([forge.so("x.so")], Arch(121))
    assert report.files[0].verdict is Way.HOST_ONLY
    assert report.ok


def test_nothing_that_runs_is_a_finding_unless_something_beside_it_does(forge: Forge) -> None:
    """VLLM ships FlashAttention 3 for sm_90a to everybody; asked about alone, it is a finding."""
    alone = embedded(forge, "fa3.so", container("sm_90a"))
    assert not check_gpu_code([alone], Arch(121)).ok
    embedded(forge, "c.so", container("sm_120f"))
    report = check_gpu_code([forge.root], Arch(121))
    assert report.ok
    assert [file.verdict for file in report.files] == [Way.FAMILY, Way.NONE]


def test_a_package_without_code_that_runs_is_a_finding_whatever_lies_beside_it(forge: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    """Else cuBLAS, which runs everywhere, hides a vLLM that was compiled for other GPUs: the trap this command is for."""
    embedded(forge, "vllm/_C.abi3.so", container("sm_90a", "sm_100f"))
    embedded(forge, "nvidia/cu13/lib/libcublas.so.13", container("sm_121a"))
    forge.file("flashinfer_cubin/a.fatbin").write_bytes(container("sm_100f"))
    embedded(forge, "nvidia_other/libother.so", container("sm_100f"))
    report = check_gpu_code([forge.root], Arch(121))
    assert (report.ok, report.lacking) == (False, ("vllm",)), "libraries and cubins alone are chosen from by others"
    assert main(["gpu-code", str(forge.root)]) == 1
    assert "✗ vllm: none of its GPU code runs on sm_121a" in capsys.readouterr().out
    embedded(forge, "vllm/_moe_C.abi3.so", container("sm_120f"))
    assert check_gpu_code([forge.root], Arch(121)).ok, "one file that runs is enough: FlashAttention 3 is for sm_90a alone"


def test_a_package_whose_code_lies_in_a_library_of_torch_is_judged(forge: Forge) -> None:
    """Torch keeps its kernels in libtorch_cuda.so, torchvision in a _C.so without a tag."""
    forge.so("torch/lib/libc10.so", soname="libc10.so")
    embedded(forge, "torchvision/_C.so", container("sm_90"), flags=[str(forge.root / "torch/lib/libc10.so")])
    embedded(forge, "torch/lib/libtorch_cuda.so", container("sm_90"))
    forge.so("torch/_C.cpython-312-x86_64-linux-gnu.so")
    embedded(forge, "other/lib.so", container("sm_121"))
    assert set(check_gpu_code([forge.root], Arch(121)).lacking) == {"torch", "torchvision"}


def test_a_package_asked_about_by_itself_is_judged_as_one(forge: Forge) -> None:
    """Else vllm_flash_attn's modules for other GPUs would fail a vLLM that runs."""
    embedded(forge, "vllm/_C.abi3.so", container("sm_120f"))
    embedded(forge, "vllm/_flashmla_C.abi3.so", container("sm_90a"))
    assert check_gpu_code([forge.root / "vllm"], Arch(121)).ok
    embedded(forge, "vllm/attention/_fa3_C.abi3.so", container("sm_90a"))
    forge.file("vllm/__init__.py")
    assert check_gpu_code([forge.root / "vllm"], Arch(121)).ok
    assert check_gpu_code([forge.root], Arch(121)).ok
    embedded(forge, "flash_attn_3.abi3.so", container("sm_90a"))
    forge.file("x-1.dist-info/METADATA")
    assert check_gpu_code([forge.root], Arch(121)).lacking == ("flash_attn_3.abi3.so",), "in site-packages a module is a package"


def test_loose_cubins_of_a_package_are_one_entry(forge: Forge) -> None:
    """flashinfer-cubin has 15,558; a list of them is read by nobody."""
    for name in ("a", "b"):
        (forge.file(f"flash/sub/{name}.fatbin")).write_bytes(container("sm_100f"))
    (file,) = check_gpu_code([forge.root], Arch(121)).files
    assert (file.path, file.units) == ("flash/**", {"none": 2})


def cubin(number: int, note: bytes, *, abi: int = 8) -> bytes:
    """A cubin with nothing but a section of notes, in the layout of CUDA 13 (or 12, with abi 7)."""
    names = b"\0.shstrtab\0.note.nv.tkinfo\0"
    flags = number << 8 if abi >= 8 else number
    header = b"\x7fELF\x02\x01\x01\x41" + bytes([abi]) + bytes(7)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 190, 1, 0, 0, 64 + len(names) + len(note), flags, 64, 56, 0, 64, 3, 1)
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, 64, len(names), 0, 0, 1, 0)
    sections += struct.pack("<IIQQQQIIQQ", 11, 7, 0, 0, 64 + len(names), len(note), 0, 0, 4, 0)
    return header + names + note + sections


def test_a_cubin_tells_its_variant_in_its_note() -> None:
    assert pieces(cubin(121, b"ptxas\0-arch sm_121a -m 64 \0")) == {"sm_121a": 1}
    assert pieces(cubin(120, b"ptxas\0-arch sm_120f -m 64 \0")) == {"sm_120f": 1}
    assert pieces(cubin(121, b"ptxas\0")) == {"sm_121": 1}
    assert pieces(cubin(90, b"-arch sm_90a ", abi=7)) == {"sm_90a": 1}
    assert pieces(cubin(90, b"-arch sm_80 ")) == {"sm_90": 1}, "a note that contradicts the header is not believed"


@pytest.mark.parametrize(
    "data",
    [
        container("sm_80")[:-1],
        container("sm_80") + b"\1\2\3\4" + bytes(16),
        struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 2**63),
        struct.pack("<IHHQ", 0xBA55ED50, 1, 0, 0) * 2,
        struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 64) + struct.pack("<HHIQIIHHIIIQQQ", 2, 1, 0, 0, *[0] * 10),
        struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 64) + struct.pack("<HHIQIIHHIIIQQQ", 2, 1, 64, 2**40, *[0] * 10),
    ],
)
def test_sizes_that_lie_are_malformed(data: bytes) -> None:
    """Each of these would loop for ever, or read outside, if it were believed."""
    with pytest.raises(MalformedElfError):
        read_gpu_code(MemorySource(data))


def test_a_lying_file_is_told_and_a_text_is_not(forge: Forge) -> None:
    path = embedded(forge, "x.so", container("sm_80")[:-20])
    report = check_gpu_code([path], Arch(121))
    assert not report.ok
    assert len(report.unreadable) == 1
    forge.file("only/text.so", "INPUT(libx.so)")
    assert check_gpu_code([forge.root / "only"], Arch(121)).ok
    assert not check_gpu_code([forge.root / "only/text.so"], Arch(121)).ok


@pytest.mark.parametrize(("text", "arch"), [("12.1a", Arch(121, "a")), ("9.0", Arch(90)), ("sm_10.0f", Arch(100, "f")), ("121", Arch(121))])
def test_an_arch_as_torch_cuda_arch_list_spells_it(text: str, arch: Arch) -> None:
    """It is what a person who has just set that variable types."""
    assert parse_arch(text) == arch


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(edits=st.lists(st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_corrupted_fat_binaries_raise_nothing_else(edits: list[tuple[int, bytes]]) -> None:
    data = bytearray(container("sm_121a", "compute_80") + container("sm_120f"))
    for at, new in edits:
        data[at : at + len(new)] = new
    try:
        read_gpu_code(MemorySource(bytes(data)))
        read_code_outside(MemorySource(bytes(data)))
    except MalformedElfError:
        return


def test_the_command(forge: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit codes and the document."""
    schema = json.loads(resources.files("envbuilder.schemas").joinpath("gpu-code.json").read_text(encoding="utf-8"))
    good = embedded(forge, "good.so", container("sm_121a") + container("sm_80", "compute_80"))
    bad = embedded(forge, "bad.so", container("sm_120a"))
    assert main(["gpu-code", str(good), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schema)
    assert document["files"][0]["verdict"] == "native"
    assert GpuCodeReport.from_json(document).as_json() == document
    assert main(["gpu-code", str(good), str(bad), "--json"]) == 1
    jsonschema.validate(json.loads(capsys.readouterr().out), schema)
    assert main(["gpu-code", str(bad), "--arch", "sm_120"]) == 0
    text = capsys.readouterr().out
    assert "made for this GPU" in text
    assert max(map(len, text.splitlines()[1:])) <= max(80, len(str(bad)) + 10)
    assert main(["gpu-code", str(bad), "--arch", "blackwell"]) == 2
    assert main(["gpu-code", "nowhere"]) == 2
