"""Fixtures of the tests that need ELF files."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from elf_forge import Forge

from envbuilder.binaries.system import DEBIAN_12

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def _gcc() -> None:
    if shutil.which("gcc") is None:
        pytest.fail("these tests make their ELF files with gcc: install it")


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    return Forge(tmp_path / "site-packages")


@pytest.fixture(autouse=True)
def _no_real_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens to be installed on the machine that tests run on (a CUDA toolkit, OpenMPI) must not decide a verdict."""
    monkeypatch.setattr("envbuilder.binaries.abi.this_system", lambda _machine: DEBIAN_12)
