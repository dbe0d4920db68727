"""The atlas in this repository: small, fast to ask, and right where the answer is known without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envbuilder.binaries import atlas
from envbuilder.cli import main

if TYPE_CHECKING:
    import pytest


def test_it_answers_from_what_it_knows_of_the_two_wheels_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Sets of thousands of names are decoded when they are asked for: all of them would take longer than the promised 0.3 s."""
    known = atlas.load()
    wheel = next(it for it in known.vllm if it.version == "0.23.0" and it.machine == "aarch64")
    torch = known.torch_release("2.10.0", "aarch64")
    decoded: set[int] = set()
    names = atlas.Atlas.names
    monkeypatch.setattr(atlas.Atlas, "names", lambda self, number: decoded.add(number) or names(self, number))
    assert main(["abi", wheel.filename, "--torch", "2.10.0"]) == 1
    assert decoded <= {number for file in (*wheel.files, *torch.files) for number in (file.symbols, file.references)}
    assert 0 < len(decoded) < len(known.sets) // 2
    out = " ".join(capsys.readouterr().out.split())
    assert "this torch has no CUDA: torch 2.10.0+cpu" in out


def test_every_release_loads_with_the_torch_it_pins() -> None:
    """The one thing that is known of all of them without looking."""
    known = atlas.load()
    for machine in ("aarch64", "x86_64"):
        wheels = [wheel for wheel in known.vllm if wheel.machine == machine and wheel.torch]
        assert len({wheel.version for wheel in wheels}) >= 20
        for wheel in wheels:
            expected = machine == "x86_64" or wheel.torch not in {"2.9.0", "2.9.1", "2.10.0"}
            for torch in (it for it in known.torch if it.machine == machine and it.version == wheel.torch):
                assert known.check(wheel, torch).ok == expected, (wheel.filename, torch.build)
