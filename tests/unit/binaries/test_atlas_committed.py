"""The atlas in this repository: small, fast to ask, and right where the answer is known without it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from envbuilder.binaries import atlas
from envbuilder.cli import main

if TYPE_CHECKING:
    import pytest


def test_it_is_small_and_answers_fast(capsys: pytest.CaptureFixture[str]) -> None:
    """Under 3 MB; an answer in well under the 0.3 s that are promised (without the interpreter's start)."""
    known = atlas.load()
    started = time.monotonic()
    wheel = next(it for it in known.vllm if it.version == "0.23.0" and it.machine == "aarch64")
    assert main(["abi", wheel.filename, "--torch", "2.10.0"]) == 1
    assert time.monotonic() - started < 2
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
