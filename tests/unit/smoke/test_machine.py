"""An environment that this machine cannot try must be reported as not run, never as failed or proved."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from envbuilder.errors import ProgramError
from envbuilder.smoke import children, machine
from envbuilder.smoke.children import Environment
from envbuilder.smoke.results import Device

_FOREIGN = {"x86_64": 183, "aarch64": 62}[platform.machine()]


def test_this_interpreter_can_be_tried(tmp_path: Path) -> None:
    assert machine.look(Path(sys.executable), log=tmp_path / "logs" / "log") == (Device.CPU, "")


def test_another_machines_interpreter_is_an_obstacle(tmp_path: Path) -> None:
    """A Spark's environment, built across on x86_64, cannot run there."""
    program = tmp_path / "python"
    program.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00" + _FOREIGN.to_bytes(2, "little"))
    assert "and this machine is" in machine.look(program, log=tmp_path / "log")[1]


def test_a_dangling_interpreter_is_an_obstacle(tmp_path: Path) -> None:
    assert "no program" in machine.look(tmp_path / "none", log=tmp_path / "log")[1]


@pytest.mark.parametrize("payload", [b"", b"#!/bin/sh\n", b"\x7fELF"])
def test_what_is_no_elf_program_is_of_no_machine(tmp_path: Path, payload: bytes) -> None:
    (tmp_path / "file").write_bytes(payload)
    assert children.elf_machine(tmp_path / "file") == "unknown"


@pytest.mark.parametrize(
    ("cuda", "gpu", "stopped"), [(None, False, False), (None, True, False), ("13.0", True, False), ("13.0", False, True)]
)
def test_cuda_needs_a_gpu(*, cuda: str | None, gpu: bool, stopped: bool) -> None:
    environment = Environment(machine="x86_64", cuda=cuda, versions={})
    assert bool(machine.obstacle(environment, has_gpu=gpu)) is stopped
    assert machine.device_of(environment) is (Device.CUDA if cuda else Device.CPU)


def test_the_probe_reads_torchs_true_build(tmp_path: Path) -> None:
    """The wheel's name may say 2.11.0 for what is 2.11.0+cu130: only torch/version.py tells. A real venv, without pip."""
    import venv  # noqa: PLC0415

    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env" / "lib").glob("python3*/site-packages")
    (site / "torch").mkdir()
    (site / "torch" / "version.py").write_text("__version__ = '2.11.0+cu130'\ncuda = '13.0'\n")
    found = children.probe(tmp_path / "env" / "bin" / "python", log=tmp_path / "log")
    assert found.versions["torch"] == "2.11.0+cu130"
    assert found.cuda == "13.0"


def test_a_probe_that_says_nonsense_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "probe.py").write_text("print('hello')")
    monkeypatch.setattr(children, "INSIDE", tmp_path)
    with pytest.raises(ProgramError, match="did not say what it is"):
        children.probe(Path(sys.executable), log=tmp_path / "log")
