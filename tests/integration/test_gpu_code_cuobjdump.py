"""`gpu-code` counts what cuobjdump counts, file by file, in the real aarch64 wheels of vLLM and torch."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from wheels_of_aarch64 import install

from envbuilder.binaries.environment import shared_objects
from envbuilder.binaries.fatbin import read_code_outside, read_gpu_code_path
from envbuilder.binaries.layout import read_header, read_sections
from envbuilder.binaries.source import FileSource

if TYPE_CHECKING:
    from pathlib import Path

    from envbuilder.binaries.fatbin import Code

_MAGIC = bytes.fromhex("50ed55ba")

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


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The CUDA libraries of torch 2.11.0 that keep code outside .nv_fatbin."""
    root = install(tmp_path_factory.mktemp("cuda"), ["nvidia-cufft==12.0.0.61", "nvidia-cublas==13.1.0.3"], dependencies=False)
    found = {path.rpartition("/")[2].partition(".so")[0]: path for path in shared_objects(root)}
    return {name: found[name] for name in ("libcufft", "libcublasLt")}


def listed(cuobjdump: Path, path: Path | str) -> tuple[Counter[str], Counter[str]]:
    """What cuobjdump (13.2 or later, which names the variant of `a` targets) lists: machine code and PTX."""
    out = subprocess.run([cuobjdump, "--list-elf", "--list-ptx", path], capture_output=True, text=True, check=False, timeout=600).stdout
    return (
        Counter(re.findall(r"^ELF file .*\.(sm_\d+a?)f?\.cubin$", out, re.MULTILINE)),
        Counter(re.findall(r"^PTX file .*\.sm_(\d+[af]?)\.ptx$", out, re.MULTILINE)),
    )


def counted(pieces: dict[Code, int]) -> tuple[Counter[str], Counter[str]]:
    """The same of what was read here: cuobjdump writes sm_120 for sm_120f in machine code, and tells them apart in PTX."""
    cubins = Counter[str]()
    for code, count in pieces.items():
        if not code.ptx:
            cubins[str(code).removesuffix("f")] += count
    return cubins, Counter({str(code.arch): count for code, count in pieces.items() if code.ptx})


def carve(path: str, goal: Path) -> Path:
    """Write what begins with the magic outside .nv_fatbin, as long as it says it is, into a fat binary: cuobjdump reads those."""
    with FileSource(path) as source:
        own = next(section for section in read_sections(source, read_header(source)) if section.name == ".nv_fatbin")
        data = source.read(0, source.size)
    with goal.open("wb") as file:
        at = data.find(_MAGIC)
        while at >= 0:
            if own.offset <= at < own.offset + own.size:
                at = data.find(_MAGIC, own.offset + own.size)
                continue
            end = at + 16 + int.from_bytes(data[at + 8 : at + 16], "little")
            file.write(data[at:end] + bytes(-end % 8))
            at = data.find(_MAGIC, end)
    return goal


def test_the_same_pieces_in_every_file(cuobjdump: Path, wheels: list[Path]) -> None:
    """A format that nobody publishes is only known as long as this holds."""
    differing = []
    with_code = 0
    for path in (path for root in wheels for path in sorted(shared_objects(root))):
        pieces = read_gpu_code_path(path).pieces
        with_code += bool(pieces)
        if counted(pieces) != listed(cuobjdump, path):
            differing.append(path)
    assert differing == []
    assert with_code >= 12


def test_the_same_pieces_where_cuobjdump_does_not_look_by_itself(cuobjdump: Path, libraries: dict[str, str], tmp_path: Path) -> None:
    """CuFFT's 420 cubins for sm_120 lie in .data; in a file of their own cuobjdump lists them, and nothing but them."""
    for name, path in libraries.items():
        assert counted(read_gpu_code_path(path).pieces) == listed(cuobjdump, path), name
        with FileSource(path) as source:
            outside = read_code_outside(source).pieces
        assert counted(outside) == listed(cuobjdump, carve(path, tmp_path / f"{name}.fatbin")), name
        assert sum(count for code, count in outside.items() if str(code).startswith("sm_120")) == {"libcufft": 420, "libcublasLt": 16}[name]
