"""Real aarch64 environments on whatever machine this is, and the programs that judge them independently."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from uv import find_uv_bin

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PLATFORM = "aarch64-manylinux_2_39"


def install(goal: Path, requirements: Sequence[str], *, dependencies: bool, platform: str | None = PLATFORM) -> Path:
    """Install wheels into a folder, for another machine where `platform` says so."""
    command = [find_uv_bin(), "pip", "install", "--quiet", "--python-version", "3.11", "--only-binary", ":all:", "--target", str(goal)]
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


def need(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path
