"""What `cache gc` keeps is what locks name, wherever they lie."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from envbuilder.cli import main
from envbuilder.locking.model import read_lock
from envbuilder.store.cache import Store, default_root
from envbuilder.targets.catalogue import find_target, lock_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A target's file that no catalogue has; its locks lie beside it."""
    target, path = find_target("cpu")
    folder = lock_folder(path, target, target.default_release)
    shutil.copy(path, tmp_path)
    shutil.copytree(folder, tmp_path / "lockfiles" / target.name / target.default_release)
    return tmp_path / path.name


def put(sha256: str) -> None:
    store = Store(default_root())
    with store.incoming(sha256) as partial:
        partial.write_bytes(b"x")
        store.admit(partial, sha256, "thing.whl")


def test_a_target_of_the_user_s_own_keeps_what_its_lock_names(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is named by its path, and no catalogue has it: every file of the store would be removed."""
    target, path = find_target(str(own))
    named = min(read_lock(lock_folder(path, target, target.default_release)).hashes())
    monkeypatch.setattr("envbuilder.targets.catalogue.target_files", dict)
    put(named)
    put("0" * 64)
    assert main(["cache", "gc", "--target", str(own)]) == 0
    store = Store(default_root())
    assert store.find(named, "thing.whl")
    assert store.find("0" * 64, "thing.whl") is None


def test_a_target_that_was_never_locked_removes_nothing(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever forgot to lock, or misspelled a path, would lose all that was fetched."""
    shutil.rmtree(own.parent / "lockfiles")
    put("0" * 64)
    assert main(["cache", "gc", "--target", str(own)]) == 2
    assert "has no lock" in capsys.readouterr().err
    assert Store(default_root()).find("0" * 64, "thing.whl")
