"""Real aarch64 environments on whatever machine this is, and the programs that judge them independently."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from uv import find_uv_bin

from envbuilder.binaries.elf import read_symbols_path
from envbuilder.binaries.environment import shared_objects
from envbuilder.binaries.stub import StubFunction, stub_library
from envbuilder.binaries.system import driver_symbol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

PLATFORM = "aarch64-manylinux_2_39"


def install(goal: Path, requirements: Sequence[str], *, dependencies: bool, platform: str | None = PLATFORM, python: str = "3.11") -> Path:
    """Install wheels into a folder, for another machine where `platform` says so."""
    command = [find_uv_bin(), "pip", "install", "--quiet", "--python-version", python, "--only-binary", ":all:", "--target", str(goal)]
    command += [] if dependencies else ["--no-deps"]
    command += ["--python-platform", platform] if platform else []
    subprocess.run([*command, *requirements], check=True, timeout=1800)
    return goal


def rootfs(goal: Path) -> Path:
    """Make an arm64 root folder of Debian 12 with Python 3.11: unpacked only, so that nothing runs in it (15 s, 80 MB)."""
    need("mmdebstrap")
    packages = "python3.11,libpython3.11-stdlib,libgomp1,libatomic1,libstdc++6,zlib1g"
    command = ["mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64", f"--include={packages}", "bookworm", str(goal)]
    subprocess.run(command, check=True, timeout=900)
    return goal


def driver(folder: Path, roots: Iterable[Path]) -> Path:
    """Write a libcuda.so.1 whose functions fail: it lets the loader link, and nothing else."""
    references = (reference.name for root in roots for path in shared_objects(root) for reference in read_symbols_path(path).undefined)
    functions = [StubFunction(name=name, value=100) for name in sorted(set(references)) if name.startswith("cu") and driver_symbol(name)]
    folder.mkdir()
    (folder / "libcuda.so.1").write_bytes(stub_library("libcuda.so.1", functions, machine="aarch64"))
    return folder


def need(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path
