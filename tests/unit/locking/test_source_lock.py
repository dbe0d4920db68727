"""The part of a lock on the source: kept whole with the rest, absent where a target builds nothing."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from envbuilder.console import Console
from envbuilder.errors import LockError
from envbuilder.files import sha256_file
from envbuilder.locking.model import Lock, LockedFile, LockedRequirement, check_source, intent_of, read_lock, write_lock
from envbuilder.locking.resolve import _sources
from envbuilder.locking.source import LockedSource, SourceLock, source_intent
from envbuilder.store.cache import Store
from envbuilder.store.settings import read_settings
from envbuilder.targets.catalogue import find_target, lock_folder
from envbuilder.targets.model import Commit, SourceTree

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


@pytest.mark.programs
def test_a_commit_is_locked_with_the_bytes_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tag may move: what it was when the lock was made is what is built."""
    work = tmp_path / "forge" / "vllm-project" / "vllm"
    (work / "csrc").mkdir(parents=True)
    (work / "CMakeLists.txt").write_text(
        "FetchContent_Declare(cutlass\n  GIT_REPOSITORY https://github.com/nvidia/cutlass.git\n  GIT_TAG v9)\n"
        "FetchContent_Declare(other\n  GIT_REPOSITORY https://github.com/a/other.git\n  GIT_TAG v2)\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    (tmp_path / "gitconfig").write_text(
        f'[url "file://{tmp_path}/forge/"]\n\tinsteadOf = https://github.com/\n[user]\n\tname = A\n\temail = a@example.org\n'
    )
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "x"], ["tag", "v1"]):
        subprocess.run(["git", "-C", work, *command], check=True, capture_output=True)
    assert RELEASE.compile is not None
    spec = RELEASE.compile.model_copy(
        update={
            "sdist": None,
            "git": Commit(repository="vllm-project/vllm", revision="v1"),
            "trees": (SourceTree(name="cutlass", git=Commit(repository="vllm-project/vllm", revision="v1"), goal="cutlass", pin="v9"),),
        }
    )
    store = Store(tmp_path / "store")
    found = {source.name: source for source in _sources(spec, store=store, settings=read_settings(), console=Console())}
    assert set(found) == {"vllm", "cutlass", "other"}
    assert (found["vllm"].revision, len(found["vllm"].commit)) == ("v1", 40)
    assert sha256_file(store.path(found["vllm"].sha256, found["vllm"].filename)) == found["vllm"].sha256
    assert (found["other"].commit, found["other"].filename) == ("", "")
    part = SourceLock(intent=source_intent(spec), requirements=(requirement("nvcc", X86),), sources=tuple(found.values()))
    again = write_lock(tmp_path / "lock", lock(part)).source
    assert again is not None
    assert again.archives == {"vllm": found["vllm"], "cutlass": found["cutlass"]}
    assert source_intent(spec) != source_intent(RELEASE.compile)
