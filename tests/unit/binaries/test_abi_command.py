"""`envbuilder abi`: its exit codes, its document, and what it says."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING

import jsonschema
import pytest
from test_abi import LOGGER, OLD_LOGGER, make_torch, vllm

from envbuilder.cli import main

if TYPE_CHECKING:
    from elf_forge import Forge


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
