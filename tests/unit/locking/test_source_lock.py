"""The part of a lock on the source: kept whole with the rest, absent where a target builds nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from envbuilder.errors import LockError
from envbuilder.locking.model import Lock, LockedFile, LockedRequirement, check_source, intent_of, read_lock, write_lock
from envbuilder.locking.source import LockedSource, SourceLock, source_intent
from envbuilder.targets.catalogue import find_target, lock_folder

if TYPE_CHECKING:
    from pathlib import Path

TARGET, _ = find_target("dgx-spark")
RELEASE = TARGET.releases["0.23.0"]


def requirement(name: str, *files: LockedFile) -> LockedRequirement:
    return LockedRequirement(name=name, version="1.0", marker="", files=files)


def file(name: str, digit: str) -> LockedFile:
    return LockedFile(filename=name, sha256=digit * 64, size=5)


X86, ARM = file("nvcc-1.0-py3-none-manylinux_2_17_x86_64.whl", "a"), file("nvcc-1.0-py3-none-manylinux_2_17_aarch64.whl", "b")


def source() -> SourceLock:
    assert RELEASE.compile is not None
    return SourceLock(
        intent=source_intent(RELEASE.compile),
        requirements=(requirement("nvcc", X86, ARM),),
        sources=(
            LockedSource(name="cutlass", repository="n/cutlass", revision="v1", trees={"wheel:path": "c" * 64}),
            LockedSource(name="vllm", filename="vllm-1.tar.gz", sha256="d" * 64, size=7, trees={}),
        ),
    )


def lock(part: SourceLock | None) -> Lock:
    serve = requirement("torch", file("torch-1.0-py3-none-any.whl", "e"))
    return Lock(
        target="t",
        release="r",
        platforms=("linux/aarch64",),
        glibc="2.36",
        python=">=3.11",
        resolver="uv 1",
        intent=intent_of(TARGET, RELEASE),
        digest="",
        environments={"serve": (serve,), "quantize": (serve,)},
        source=part,
    )


def test_a_lock_with_a_source_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = write_lock(tmp_path, lock(source()))
    assert read_lock(tmp_path) == written
    assert written.source == source()
    assert {"a" * 64, "b" * 64, "d" * 64, "e" * 64} <= written.hashes()


def test_a_lock_without_a_source_has_no_build_txt_and_is_as_valid_as_before(tmp_path: Path) -> None:
    write_lock(tmp_path, lock(None))
    assert not (tmp_path / "build.txt").exists()
    assert read_lock(tmp_path).source is None
    assert read_lock(tmp_path).build_wheels("3.11.2", "x86_64") == ()


def test_each_machine_that_builds_gets_its_own_tools(tmp_path: Path) -> None:
    made = write_lock(tmp_path, lock(source()))
    assert [wheel.file for wheel in made.build_wheels("3.11.2", "x86_64")] == [X86]
    assert [wheel.file for wheel in made.build_wheels("3.11.2", "aarch64")] == [ARM]


def test_a_byte_changed_in_build_txt_is_noticed(tmp_path: Path) -> None:
    """Else a compiler could be exchanged without a trace."""
    write_lock(tmp_path, lock(source()))
    path = tmp_path / "build.txt"
    path.write_text(path.read_text().replace("nvcc==1.0", "nvcc==1.1"))
    with pytest.raises(LockError, match="not what was written"):
        read_lock(tmp_path)


def test_a_missing_build_txt_is_named(tmp_path: Path) -> None:
    write_lock(tmp_path, lock(source()))
    (tmp_path / "build.txt").unlink()
    with pytest.raises(LockError, match="no lock") as error:
        read_lock(tmp_path)
    assert "build.txt" in error.value.why


def test_a_target_that_asks_for_another_source_makes_the_lock_stale() -> None:
    check_source(lock(source()), TARGET, "0.23.0", RELEASE)
    with pytest.raises(LockError, match="stale in its source") as error:
        check_source(lock(replace(source(), intent="f" * 64)), TARGET, "0.23.0", RELEASE)
    assert "--source" in error.value.next
    with pytest.raises(LockError, match="stale in its source"):
        check_source(lock(None), TARGET, "0.23.0", RELEASE)


def test_the_committed_locks_have_the_source_that_their_target_asks_for() -> None:
    """A changed sdist, tree or tool in the TOML must be followed by `envbuilder lock --source`."""
    target, path = find_target("dgx-spark")
    for name, release in target.releases.items():
        if release.compile is not None:
            check_source(read_lock(lock_folder(path, target, name)), target, name, release)
