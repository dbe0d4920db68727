"""Removing what no lock needs: neither too little, or the disk fills up, nor what a build goes on in."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import filelock
import pytest

from envbuilder.store.cache import Store
from envbuilder.store.collect import collect, usage

if TYPE_CHECKING:
    from pathlib import Path

DAY = 24 * 3600


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    for digit in "ab":
        with store.incoming(digit * 64) as partial:
            partial.write_bytes(digit.encode() * 5)
            store.admit(partial, digit * 64, "thing.whl")
    return store


def aged(path: Path, days: float) -> Path:
    """Make a folder with one file, both last touched so many days ago."""
    path.mkdir(parents=True)
    (path / "place.json").write_text("x" * 7)
    for it in (path / "place.json", path):
        os.utime(it, (time.time() - days * DAY,) * 2)
    return path


def test_a_file_stays_while_a_lock_names_it(store: Store) -> None:
    collected = collect(store, {"a" * 64})
    assert (collected.files, collected.bytes) == (1, 5)
    assert store.find("a" * 64, "thing.whl")
    assert store.find("b" * 64, "thing.whl") is None


@pytest.mark.parametrize(
    ("name", "days", "stays"),
    [("0123456789abcdef", 29, True), ("0123456789abcdef", 31, False), ("verify-x1", 0.5, True), ("verify-x1", 1.5, False)],
)
def test_a_compile_stays_while_a_build_may_go_on_in_it(store: Store, *, name: str, days: float, stays: bool) -> None:
    """An hour of compiling is kept for the next build; a second build that was killed is gigabytes that nobody goes back to."""
    folder = aged(store.root / "compile" / name, days)
    collected = collect(store, {"a" * 64, "b" * 64})
    assert folder.exists() is stays
    assert collected.bytes == (0 if stays else 7)


def test_a_workspace_that_was_built_in_today_is_young_however_old_it_is(store: Store) -> None:
    folder = aged(store.root / "compile" / "0123456789abcdef", 90)
    (folder / "last-build.json").write_text("{}")
    os.utime(folder, (time.time() - 90 * DAY,) * 2)
    collect(store, ())
    assert folder.exists()


def test_a_workspace_that_a_build_holds_stays_with_its_lock(store: Store) -> None:
    """A build may wait for memory, or for the other one in its workspace, longer than any age: its folder may not go away under it."""
    folder = aged(store.root / "compile" / "0123456789abcdef", 90)
    lock = folder.with_name(f"{folder.name}.lock")
    with filelock.FileLock(lock):
        collect(store, ())
        assert folder.exists()
        assert lock.exists()
    collect(store, ())
    assert not folder.exists()
    assert not lock.exists()


def test_a_lock_without_a_workspace_stays_while_a_build_may_want_it(store: Store) -> None:
    """A verifying build removes what it built, and leaves its lock."""
    (store.root / "compile").mkdir()
    young, old = (store.root / "compile" / f"verify-{name}.lock" for name in ("young", "old"))
    for path in (young, old):
        path.write_text("")
    os.utime(old, (time.time() - 2 * DAY,) * 2)
    collect(store, ())
    assert young.exists()
    assert not old.exists()


def test_every_part_is_measured(store: Store) -> None:
    aged(store.root / "compile" / "k", 0)
    assert {part.part: part.bytes for part in usage(store)} | {"partial": 0} == {"compile": 7, "files": 10, "partial": 0}


def test_layers_that_no_output_folder_holds_go_with_their_records(store: Store, tmp_path: Path) -> None:
    """Only gc makes room among gigabytes of layers; what an image holds as well frees nothing, and a young one may be at work."""
    blobs = store.root / "layers/blobs"
    blobs.mkdir(parents=True)
    for digit, name in enumerate(("held", "young", "needed", "old", ".0123abcd")):
        (blobs / name).write_bytes(b"12345")
        record = {"layer": name, "blob": {"digest": f"sha256:{name}"}, "mtime_ns": digit}
        (store.root / f"layers/{digit}.json").write_text(json.dumps(record))
        if name != "young":
            os.utime(blobs / name, (time.time() - 1.5 * DAY,) * 2)
    os.link(blobs / "held", tmp_path / "in-an-image")
    (store.root / "layers/parts-0.json").write_text("{}")
    records = sum((store.root / f"layers/{digit}.json").stat().st_size for digit in (3, 4))
    collected = collect(store, {"a" * 64, "b" * 64, "needed"})
    assert sorted(path.name for path in blobs.iterdir()) == ["held", "needed", "young"]
    assert sorted(path.name for path in (store.root / "layers").glob("*.json")) == ["0.json", "1.json", "2.json", "parts-0.json"]
    assert (collected.files, collected.bytes) == (4, 10 + records)
