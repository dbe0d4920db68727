"""Fixtures of the tests that need ELF files."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from elf_forge import Forge

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def _gcc() -> None:
    if shutil.which("gcc") is None:
        pytest.fail("these tests make their ELF files with gcc: install it")


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    return Forge(tmp_path / "site-packages")
