"""`envbuilder abi`: its exit codes, its document, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import jsonschema
import pytest
from test_abi import LOGGER, OLD_LOGGER, make_torch, vllm

from envbuilder.cli import main

if TYPE_CHECKING:
    from elf_forge import Forge


ROOT = Path(__file__).parents[3]


@pytest.fixture
def environment(forge: Forge) -> Forge:
    make_torch(forge)
    vllm(forge)
    make_torch(forge, version="2.10.0+cpu", cuda=None, logger=OLD_LOGGER, place="other/")
    return forge


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    printed = json.loads(capsys.readouterr().out)
    schema = json.loads(resources.files("envbuilder.schemas").joinpath("abi.json").read_text(encoding="utf-8"))
    jsonschema.validate(printed, schema)
    return dict(printed)


def test_a_sound_environment_is_exit_0(environment: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["abi", str(environment.root / "vllm"), "--torch", str(environment.root)]) == 0
    assert "✓ 1 of 1 extension would load" in capsys.readouterr().out
    assert main(["abi", str(environment.root / "vllm"), "--torch", str(environment.root), "--json"]) == 0
    assert document(capsys)["ok"] is True


def test_findings_are_exit_1_and_the_document_keeps_the_contract(environment: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts rely on these names."""
    assert main(["abi", str(environment.root / "vllm/_C.abi3.so"), "--torch", str(environment.root / "other"), "--json"]) == 1
    printed = document(capsys)
    assert printed["schema"] == "envbuilder/abi/1"
    assert printed["torch"]["version"] == "2.10.0+cpu"  # type: ignore[index]
    (extension,) = printed["extensions"]  # type: ignore[misc]
    assert extension["verdict"] == "missing-library"
    assert {"symbol", "demangled", "kind"} <= extension["missing"][0].keys()
    assert {symbol["symbol"] for symbol in extension["missing"]} >= {LOGGER}
    assert {"soname": "libcudart.so.13", "found": None, "via": None} in extension["needed"]


def test_several_paths_make_one_document(environment: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(environment.root / "vllm"), str(environment.root / "vllm/_C.abi3.so")]
    assert main(["abi", *paths, "--torch", str(environment.root), "--json"]) == 0
    assert len(document(capsys)["extensions"]) == 2  # type: ignore[arg-type]


def test_a_virtual_environment_is_meant_by_its_root(environment: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    venv = environment.root.parent / "venv"
    (venv / "lib/python3.11").mkdir(parents=True)
    environment.root.rename(venv / "lib/python3.11/site-packages")
    assert main(["abi", str(venv)]) == 0
    assert "torch 2.11.0+cu130" in capsys.readouterr().out


def test_a_package_is_checked_with_the_torch_around_it(environment: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    """As a file in it is: the folder `site-packages/vllm` had no torch where each of its files had one."""
    for path in ("vllm", "vllm/_C.abi3.so"):
        assert main(["abi", str(environment.root / path)]) == 0
        assert "torch 2.11.0+cu130" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["abi", "nowhere"], ["abi", ".", "--torch", "nowhere"], ["abi"]])
def test_wrong_usage_is_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "next:" in capsys.readouterr().err


def test_a_bad_wheel_is_exit_1_without_a_traceback(environment: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = environment.root / "x.whl"
    wheel.write_bytes(b"PK\5\6 and no more")
    assert main(["abi", str(wheel), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["reference"] == "wheel"


def test_what_a_child_judges_is_told_in_its_place(environment: Forge) -> None:
    """Of many files every second one is judged in a child; a process with several threads is not forked, and does all itself."""
    sample = (environment.root / "vllm/_C.abi3.so").read_bytes()
    for number in range(70):
        (environment.root / f"vllm/_{number}.abi3.so").write_bytes(sample if number % 7 else sample[:3000])
    (environment.root / "vllm/_x.cpython-310-x86_64-linux-gnu.so").write_bytes(sample)
    command = [ROOT, "abi", environment.root / "vllm", "--torch", environment.root / "other", "--json"]
    start = "import sys; sys.path.insert(0, sys.argv.pop(1)); from envbuilder.cli import main; sys.exit(main())"
    thread = "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start(); "
    forked, alone = (
        subprocess.run([sys.executable, "-I", "-c", code, *command], capture_output=True, text=True, timeout=60, check=False)
        for code in (start, thread + start)
    )
    assert (forked.returncode, forked.stderr) == (1, "")
    assert forked.stdout == alone.stdout
    paths = [it["path"] for it in json.loads(forked.stdout)["extensions"]]
    assert len(paths) == 71
    assert paths == sorted(paths)
