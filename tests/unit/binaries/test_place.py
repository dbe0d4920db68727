"""What a folder stands for: nothing is a success that was not looked at."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from test_abi import OLD_LOGGER, make_torch, vllm
from test_gpu_code import container, embedded

from envbuilder.binaries.place import editables_of
from envbuilder.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    from elf_forge import Forge


@pytest.fixture
def checkout(forge: Forge) -> Path:
    """A vLLM's sources beside an environment with torch, with what must not be taken for a part of it."""
    make_torch(forge)
    for unwanted in ("build/lib/vllm/_C.abi3.so", ".venv/lib/python3.11/site-packages/other/_C.abi3.so"):
        vllm(forge, f"../src/{unwanted}", uses=["_ZN2at5otherEv"])
    vllm(forge, "../src/vllm/_C.abi3.so")
    forge.file("../src/vllm/__init__.py")
    return forge.root.parent / "src"


def editable(forge: Forge, checkout: Path, *, pth: str = "", finder: str = "") -> None:
    """What pip and setuptools leave in site-packages."""
    forge.file("__editable__.vllm-0.23.0.pth", f"# made by setuptools\nimport sys\n{pth}\nno/such/folder\n")
    if finder:
        forge.file(
            "__editable___vllm_0_23_0_finder.py", f"import sys\nMAPPING: dict[str, str] = {{'vllm': '{finder}'}}\nNAMESPACES = {{}}\n"
        )
    document = {"url": checkout.as_uri(), "dir_info": {"editable": True}}
    forge.file("vllm-0.23.0.dist-info/direct_url.json", json.dumps(document))


def test_an_editable_install_is_looked_into(forge: Forge, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the environment is sound, whatever the vLLM that is imported from a checkout needs."""
    editable(forge, checkout, pth=str(checkout))
    assert editables_of(forge.root).packages == (checkout / "vllm",)
    assert main(["abi", str(forge.root), "--json"]) == 0
    assert str(checkout / "vllm/_C.abi3.so") in capsys.readouterr().out
    make_torch(forge, version="2.10.0+cu130", logger=OLD_LOGGER)
    assert main(["abi", str(forge.root), "--json"]) == 1
    out = capsys.readouterr().out
    assert str(checkout / "vllm/_C.abi3.so") in out
    assert "build/lib" not in out


def test_an_editable_install_of_single_packages_is_looked_into(forge: Forge, checkout: Path) -> None:
    """Setuptools writes a finder in place of a path where a project has more folders than its package: vLLM has."""
    editable(forge, checkout, finder=str(checkout / "vllm"))
    found = editables_of(forge.root)
    assert (found.packages, found.unseen) == ((checkout / "vllm",), ())
    forge.file("vllm/__init__.py")
    assert editables_of(forge.root).packages == (), "what lies in site-packages comes first"


def test_an_editable_install_that_was_not_found_is_named(forge: Forge, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tick that says nothing of vLLM must say so."""
    editable(forge, checkout)
    assert main(["abi", str(forge.root)]) == 0
    assert "not judged, installed as editable, and its files were not found: vllm-0.23.0" in " ".join(capsys.readouterr().out.split())
    assert main(["gpu-code", str(forge.root)]) == 0
    assert "vllm-0.23.0 is installed as editable" in capsys.readouterr().err


def test_gpu_code_of_an_editable_install_is_judged(forge: Forge, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embedded(forge, "nvidia/libcublas.so.13", container("sm_121"))
    embedded(forge, "../src/vllm/_C.abi3.so", container("sm_90a"))
    editable(forge, checkout, pth=str(checkout))
    assert main(["gpu-code", str(forge.root)]) == 1
    out = "".join(capsys.readouterr().out.split())  # a long path is wrapped anywhere
    assert f"{checkout}/vllm/_C.abi3.so:none" in out
    assert f"✗{checkout}/vllm:noneofitsGPUcoderuns" in out


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, "{}", '{"url": 1, "dir_info": {"editable": true}}', '{"url": "file:///%00", "dir_info": []}']
)
def test_what_is_no_direct_url_is_passed_over(forge: Forge, text: str) -> None:
    """Anyone may have written it; it is no reason for a traceback."""
    forge.file("x-1.dist-info/direct_url.json", text)
    (forge.root / "a.pth").write_bytes(b"\0\xff\n/\n" + b"x" * 5000)
    assert editables_of(forge.root).unseen == ()


@pytest.mark.parametrize("command", ["abi", "gpu-code"])
def test_nothing_to_check_is_no_success(forge: Forge, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`abi ENV/bin` answered with a tick: a wrong path in a script went unnoticed for ever."""
    forge.file("bin/python")
    assert main([command, str(forge.root / "bin")]) == 2
    assert "nothing to check" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["abi", "gpu-code"])
def test_what_a_build_left_is_no_environment(forge: Forge, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It holds two, with a torch each: walked as one, nothing in it finds a torch."""
    for name in ("quantize", "serve"):
        forge.so(f"out/envs/{name}/lib/python3.11/site-packages/vllm/_C.abi3.so")
    for path in ("out", "out/envs"):
        assert main([command, str(forge.root / path)]) == 2
        said = capsys.readouterr().err
        assert "out/envs/quantize" in said
        assert "out/envs/serve" in said
    assert main([command, str(forge.root / "out/envs/serve")]) in {0, 1}
