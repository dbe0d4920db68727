"""`gpu-code` counts what cuobjdump counts, file by file, in the real aarch64 wheels of vLLM and torch."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from wheels_of_aarch64 import install

from envbuilder.binaries.environment import shared_objects
from envbuilder.binaries.fatbin import read_gpu_code_path

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cuobjdump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = install(tmp_path_factory.mktemp("tools"), ["nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm"], dependencies=False, platform=None)
    (program,) = root.glob("nvidia/*/bin/cuobjdump")
    program.chmod(0o755)
    return program


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [
        install(tmp_path_factory.mktemp("gpu"), [requirement], dependencies=False)
        for requirement in ("vllm==0.23.0", "vllm==0.24.0", "torch==2.11.0")
    ]


def listed(cuobjdump: Path, path: str) -> tuple[Counter[str], Counter[str]]:
    """What cuobjdump (13.2 or later, which names the variant of `a` targets) lists: machine code and PTX."""
    out = subprocess.run([cuobjdump, "--list-elf", "--list-ptx", path], capture_output=True, text=True, check=False, timeout=600).stdout
    return (
        Counter(re.findall(r"^ELF file .*\.(sm_\d+a?)f?\.cubin$", out, re.MULTILINE)),
        Counter(re.findall(r"^PTX file .*\.sm_(\d+[af]?)\.ptx$", out, re.MULTILINE)),
    )


def test_the_same_pieces_in_every_file(cuobjdump: Path, wheels: list[Path]) -> None:
    """A format that nobody publishes is only known as long as this holds."""
    differing = []
    with_code = 0
    for path in (path for root in wheels for path in sorted(shared_objects(root))):
        pieces = read_gpu_code_path(path).pieces
        # cuobjdump writes sm_120 for sm_120f in machine code, and tells them apart in PTX.
        cubins = Counter[str]()
        for code, count in pieces.items():
            if not code.ptx:
                cubins[str(code).removesuffix("f")] += count
        ptx = Counter({str(code.arch): count for code, count in pieces.items() if code.ptx})
        with_code += bool(pieces)
        if (cubins, ptx) != listed(cuobjdump, path):
            differing.append(path)
    assert differing == []
    assert with_code >= 12
