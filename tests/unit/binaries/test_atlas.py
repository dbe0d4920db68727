"""The atlas answers as the files themselves would, from a file that fits in git."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
import requests
from test_abi import DEVICE, LOGGER, OLD_LOGGER, make_torch, vllm
from werkzeug import Request, Response

from envbuilder.binaries import ask, atlas
from envbuilder.binaries.abi import check_wheel
from envbuilder.binaries.atlas_facts import WheelFacts, matters, read_extension_wheel, read_torch_wheel
from envbuilder.binaries.atlas_grid import grid
from envbuilder.binaries.atlas_svg import draw
from envbuilder.binaries.environment import torch_at
from envbuilder.binaries.remote import RemoteFile
from envbuilder.binaries.verdicts import AbiReport, Kind
from envbuilder.binaries.wheel import WheelError, unpacked
from envbuilder.cli import main
from envbuilder.errors import ConfigurationError, FetchError, UnknownNameError

if TYPE_CHECKING:
    from pathlib import Path

    from elf_forge import Forge
    from pytest_httpserver import HTTPServer

VLLM = "vllm-9.1.0-cp38-abi3-manylinux_2_28_x86_64.whl"


def pack(forge: Forge, goal: Path, below: str, *, metadata: str = "") -> Path:
    with zipfile.ZipFile(goal, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((forge.root / below).rglob("*")):
            if path.is_file():
                archive.write(path, str(path.relative_to(forge.root)))
        archive.writestr("x-9.dist-info/METADATA", metadata)
    return goal


@pytest.fixture
def wheels(forge: Forge, tmp_path: Path) -> dict[str, Path]:
    """A vLLM wheel, built for torch 2.11.0, and the wheels of 2.11.0 and of 2.10.0 without CUDA."""
    make_torch(forge)
    vllm(forge)
    vllm(forge, "vllm/_new_C_stable_libtorch.abi3.so", uses=["aoti_torch_library_impl", "dlopen", "PyObject_Call"], weak=["_ZN2at5maybeEv"])
    found = {"vllm": pack(forge, tmp_path / VLLM, "vllm", metadata="Metadata-Version: 2.4\nRequires-Dist: torch==2.11.0\n")}
    shims = ["_ZN2at3addEv", "aoti_torch_library_impl"]
    forge.so(
        "torch/lib/libtorch_cpu.so", soname="libtorch_cpu.so", defines=shims, needs=["torch/lib/libc10.so"], flags=["-Wl,-rpath,$ORIGIN"]
    )
    found["2.11.0"] = pack(forge, tmp_path / "torch-2.11.0-cp312-cp312-manylinux_2_28_x86_64.whl", "torch")
    for path in (forge.root / "torch").rglob("*.so"):
        path.unlink()
    make_torch(forge, version="2.10.0+cpu", cuda=None, logger=OLD_LOGGER)
    found["2.10.0"] = pack(forge, tmp_path / "torch-2.10.0-cp312-cp312-manylinux_2_28_x86_64.whl", "torch")
    return found


def facts_of(wheels: dict[str, Path]) -> list[WheelFacts]:
    facts = []
    for name, path in wheels.items():
        with zipfile.ZipFile(path) as archive:
            if name == "vllm":
                facts.append(
                    read_extension_wheel(archive, filename=path.name, sha256="1" * 64, project="vllm", version="9.1.0", machine="x86_64")
                )
            else:
                facts.append(read_torch_wheel(archive, filename=path.name, sha256="2" * 64, version=name, machine="x86_64"))
    return facts


@pytest.fixture
def made(wheels: dict[str, Path]) -> atlas.Atlas:
    return atlas.build(facts_of(wheels), made="2026-11-23")


def essence(report: AbiReport) -> dict[str, object]:
    return {
        it.path: (it.verdict, sorted((s.symbol, s.kind) for s in it.missing), [n.soname for n in it.needed if n.found is None])
        for it in report.extensions
    }


def test_its_answer_is_that_of_the_files(wheels: dict[str, Path], made: atlas.Atlas) -> None:
    """A cell that differs from what `abi` says of the same two wheels would be a lie in the documentation."""
    known = made.wheel(VLLM)
    for version in ("2.11.0", "2.10.0"):
        with unpacked(wheels[version]) as root:
            real = check_wheel(wheels["vllm"], torch=torch_at(root))
        answered = made.check(known, made.torch_release(version, "x86_64"))
        assert essence(answered) == essence(real), version
        assert [cause.kind for cause in answered.causes] == [cause.kind for cause in real.causes]
    assert made.check(known, made.torch_release("2.11.0", "x86_64")).ok
    assert not made.check(known, made.torch_release("2.10.0+cpu", "x86_64")).ok


def test_only_symbols_that_matter_are_kept(made: atlas.Atlas) -> None:
    """Else the file would be a hundred times as large."""
    assert set(made.symbols) == {LOGGER, DEVICE, "cudaMalloc", "cudaMalloc@libcudart.so.13", "aoti_torch_library_impl"}
    assert not matters("malloc", "GLIBC_2.17", "libc.so.6")
    assert not matters("_ZSt4cout", None, None)
    assert matters("_Z9forgottenRN2at6TensorE", None, None), "an incomplete build must stay visible"


def test_it_goes_to_json_and_back(made: atlas.Atlas) -> None:
    assert atlas.Atlas.from_json(json.loads(json.dumps(made.as_json()))) == made
    with pytest.raises(ConfigurationError):
        atlas.Atlas.from_json({"schema": "envbuilder/atlas/0"})


def test_facts_go_to_json_and_back(wheels: dict[str, Path]) -> None:
    """An interrupted update goes on from what it kept."""
    for facts in facts_of(wheels):
        assert WheelFacts.from_json(json.loads(json.dumps(facts.as_json()))) == facts


def test_unknown_names_are_answered_with_the_nearest(made: atlas.Atlas) -> None:
    with pytest.raises(UnknownNameError, match=r"2\.12"):
        made.torch_release("2.12.0", "x86_64")
    with pytest.raises(UnknownNameError):
        made.torch_release("2.11.0", "aarch64")
    with pytest.raises(UnknownNameError) as caught:
        made.wheel(VLLM.replace("9.1.0", "9.1.1"))
    assert VLLM in caught.value.next


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("2.11", "Did you mean '2.11.0+cu130'? "),
        ("2.11.0+cu128", "Did you mean '2.11.0+cu130'? "),
        ("2.1", ""),
        ("3.0.0", ""),
        ("2.11.0.x", ""),
    ],
)
def test_a_torch_is_guessed_by_its_release_and_not_by_its_letters(made: atlas.Atlas, asked: str, hint: str) -> None:
    """2.11 was answered with 2.15.0+cu132, which has more letters in common; and 2.9 stood after 2.15."""
    last = replace(made.torch[-1], version="2.9.0", build="2.9.0+cpu")
    with pytest.raises(UnknownNameError) as caught:
        replace(made, torch=(*made.torch, last)).torch_release(asked, "x86_64")
    assert caught.value.next == f"{hint}Known: 2.9.0+cpu, 2.10.0+cpu, 2.11.0+cu130."


def test_a_wheel_is_guessed_by_its_version_and_machine(made: atlas.Atlas) -> None:
    """An unknown tag of 9.1.0 was answered with another release, and with every wheel that there is."""
    known = made.vllm[0]
    others = [
        replace(known, filename=VLLM.replace("9.1.0", version).replace("x86_64", machine), version=version, machine=machine)
        for version in ("8.0.0", "9.0.0", "9.1.0", "9.2.0", "10.0.0")
        for machine in ("aarch64", "x86_64")
    ]
    others.append(replace(known, filename=VLLM.replace("9.1.0", "9.1.0-2")))
    many = replace(made, vllm=tuple(others))
    with pytest.raises(UnknownNameError) as caught:
        many.wheel(VLLM.replace("cp38-abi3-manylinux_2_28", "cp312-cp312-manylinux_2_35"))
    assert caught.value.next.startswith(f"Did you mean '{VLLM}'? Known: {VLLM}, {VLLM.replace('9.1.0', '9.1.0-2')}, ")
    assert caught.value.next.count(".whl") == 5, "the guess, and a list that can be read"
    with pytest.raises(UnknownNameError) as caught:
        many.wheel("vllm-9.9.9-cp38-abi3-manylinux_2_28_aarch64.whl")
    assert caught.value.next.startswith("Known: vllm-10.0.0-cp38-abi3-manylinux_2_28_aarch64.whl, ")
    with pytest.raises(UnknownNameError, match="no-version"):
        many.wheel("no-version.whl")


def test_an_extension_without_a_tag_keeps_what_it_refers_to(wheels: dict[str, Path], made: atlas.Atlas, forge: Forge) -> None:
    """It defines its init function, so it was taken for a library, whose references nobody asked for: its cell said ok."""
    make_torch(forge)
    vllm(forge, "vllm/_plain.so", defines=["PyInit__plain"])
    again = pack(forge, wheels["vllm"], "vllm", metadata="Metadata-Version: 2.4\nRequires-Dist: torch==2.11.0\n")
    grown = atlas.build(facts_of(wheels), made="2026-11-23")
    assert atlas.Atlas.from_json(json.loads(json.dumps(grown.as_json()))) == grown
    with unpacked(wheels["2.10.0"]) as root:
        real = check_wheel(again, torch=torch_at(root))
    answered = grown.check(grown.wheel(VLLM), grown.torch_release("2.10.0", "x86_64"))
    assert essence(answered) == essence(real)
    assert "vllm/_plain.so" in {it.path for it in answered.extensions if it.fails}


def test_the_grids_columns_stay_apart(made: atlas.Atlas, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`2.122.12.1` is no version."""
    names = ("2.12.0", "2.12.1", "2.13.0")
    torches = tuple(replace(made.torch[-1], version=name, build=f"{name}+cu130") for name in names)
    monkeypatch.setattr(atlas, "load", lambda: replace(made, torch=torches))
    assert main(["atlas", "show", "--machine", "x86_64"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["vLLM", "pins", "2.12", "2.12.1", "2.13"]


def test_the_grid_and_its_picture(made: atlas.Atlas) -> None:
    verified = [atlas.Verified(wheel=VLLM, torch="2.11.0+cu130")]
    table = grid(replace(made, verified=tuple(verified)), "x86_64")
    assert table.torch == ("2.10.0+cpu", "2.11.0+cu130")
    (row,) = table.rows
    assert [cell.short for cell in row.cells] == ["c", "✓*"]
    assert [cell.pinned for cell in row.cells] == [False, True]
    assert (row.cells[0].cause, row.cells[0].failing, row.cells[0].extensions) == (Kind.CPU_ONLY_TORCH, 2, 2)
    picture = ET.fromstring(draw(made))
    assert len(picture.findall(".//{*}g")) == 2, "one group for each cell"
    assert draw(made) == draw(made)


@pytest.fixture
def installed(made: atlas.Atlas, monkeypatch: pytest.MonkeyPatch) -> atlas.Atlas:
    monkeypatch.setattr(atlas, "load", lambda: made)
    return made


def test_a_wheels_name_is_enough(installed: atlas.Atlas, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is downloaded to learn that a pair does not fit."""
    assert main(["abi", VLLM, "--torch", "2.10.0"]) == 1
    assert "this torch has no CUDA: torch 2.10.0+cpu" in " ".join(capsys.readouterr().out.split())
    assert main(["abi", VLLM, "--torch", "2.11.0"]) == 0
    assert main(["abi", VLLM]) == 0, "the torch that it pins"
    assert main(["abi", "vllm-0.0.0-py3-none-any.whl", "--torch", "2.11.0"]) == 2
    assert main(["abi", VLLM, "--torch", "3.0.0"]) == 2


def test_a_wheel_that_is_here_is_recognised_by_its_checksums(
    installed: atlas.Atlas, wheels: dict[str, Path], monkeypatch: pytest.MonkeyPatch, forge: Forge
) -> None:
    """A release is served in several builds under like names: the name alone proves nothing."""
    with ask.torch_named("2.10.0", None) as torch:
        assert torch == ask.Torch()
    monkeypatch.setattr(ask, "_check_files", lambda *_: pytest.fail("it was read in earnest"))
    assert not ask.check_path(wheels["vllm"], ask.Torch(release="2.10.0")).ok
    monkeypatch.undo()
    monkeypatch.setattr(atlas, "load", lambda: installed)
    make_torch(forge)
    vllm(forge, uses=["_ZN2at5otherEv"])
    changed = pack(forge, wheels["vllm"], "vllm")
    with pytest.raises(ConfigurationError, match="cannot answer"):
        ask.check_path(changed, ask.Torch(release="2.11.0"))


def test_a_wheel_that_is_here_gets_the_answer_of_its_name(
    installed: atlas.Atlas, wheels: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """By its name it loads with the torch that it pins; its bytes must not fail for want of one."""
    assert main(["abi", str(wheels["vllm"])]) == 0
    assert "torch 2.11.0+cu130" in capsys.readouterr().out


def test_a_hostile_wheel_under_a_known_name_is_refused_unread(
    installed: atlas.Atlas, wheels: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two million entries under the name of a vLLM took a gigabyte before anything was said of them."""
    data = bytearray(wheels["vllm"].read_bytes())
    struct.pack_into("<I", data, len(data) - 22 + 12, 64 << 20)
    wheels["vllm"].write_bytes(data)
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("it was opened"))
    for release in (None, "2.10.0"):
        with pytest.raises(WheelError, match="far too many files"):
            ask.check_path(wheels["vllm"], ask.Torch(release=release))


def test_what_the_atlas_cannot_answer_for_is_set_aside(installed: atlas.Atlas, forge: Forge, wheels: dict[str, Path]) -> None:
    """Else an environment gets no answer for vLLM because torchvision's symbols, which are nobody's business here, are unknown."""
    make_torch(forge)
    vllm(forge, "torchvision/_C.so", uses=["_ZN2at5otherEv"])
    report = ask.check_path(forge.root, ask.Torch(release="2.11.0"))
    assert report.ok
    assert {it.path for it in report.extensions} == {"vllm/_C.abi3.so", "vllm/_new_C_stable_libtorch.abi3.so"}
    assert [it.path for it in report.skipped] == ["torchvision/_C.so"]
    report = ask.check_path(forge.root, ask.Torch(release="2.10.0"))
    assert all("torchvision/_C.so" not in cause.extensions for cause in report.causes)
    vllm(forge, "vllm/_moe_C.abi3.so", uses=["_ZN2at5otherEv"])
    with pytest.raises(ConfigurationError, match="cannot answer"):
        ask.check_path(forge.root, ask.Torch(release="2.11.0"))


def test_other_files_are_checked_against_a_torch_of_the_atlas(installed: atlas.Atlas, forge: Forge, wheels: dict[str, Path]) -> None:
    assert ask.check_path(forge.root / "vllm", ask.Torch(release="2.11.0")).ok
    report = ask.check_path(forge.root / "vllm/_C.abi3.so", ask.Torch(release="2.10.0"))
    assert report.causes[0].kind is Kind.CPU_ONLY_TORCH
    (forge.root / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="nothing that could be checked"):
        ask.check_path(forge.root / "empty", ask.Torch(release="2.10.0"))


def serve(server: HTTPServer, data: bytes, *, faults: int = 0) -> str:
    """Serve bytes by range; the first `faults` answers break off in the middle."""
    left = [faults]

    def handler(request: Request) -> Response:
        start, _, end = request.headers["Range"].removeprefix("bytes=").partition("-")
        piece = data[int(start) : int(end) + 1]
        if len(piece) > 1 and left[0]:
            left[0] -= 1
            piece = piece[: len(piece) // 2]
        return Response(piece, 206, {"Content-Range": f"bytes {start}-{end}/{len(data)}"})

    server.expect_request("/x.whl").respond_with_handler(handler)
    return server.url_for("/x.whl")


@pytest.mark.enable_socket
def test_a_wheel_is_read_over_http_in_parts(httpserver: HTTPServer, wheels: dict[str, Path]) -> None:
    url = serve(httpserver, wheels["vllm"].read_bytes(), faults=2)
    remote = RemoteFile(url, requests.Session(), name="x.whl")
    with zipfile.ZipFile(io.BufferedReader(remote, 512)) as archive:
        facts = read_extension_wheel(archive, filename=VLLM, sha256="1" * 64, project="vllm", version="9.1.0", machine="x86_64")
    assert facts == facts_of({"vllm": wheels["vllm"]})[0]


@pytest.mark.enable_socket
def test_a_server_without_ranges_or_the_file_is_an_error(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/whole.whl").respond_with_data(b"everything")
    for name in ("whole.whl", "absent.whl"):
        with pytest.raises(FetchError, match=name):
            RemoteFile(httpserver.url_for(f"/{name}"), requests.Session(), name=name)
    url = serve(httpserver, b"0123456789" * 100, faults=99)
    with pytest.raises(FetchError, match="in pieces only"):
        io.BufferedReader(RemoteFile(url, requests.Session(), name="x.whl"), 900).read(900)
