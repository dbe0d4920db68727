"""Sources from git: real repositories, reached through git's own setting for mirrors."""

from __future__ import annotations

import os
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from envbuilder.errors import FetchError, HashMismatchError
from envbuilder.files import sha256_file
from envbuilder.store.cache import Store, Wanted
from envbuilder.store.git import archive_name, fetch_commits, write_archive

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.programs
NAME = "owner/thing"


@pytest.fixture
def forge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that git takes for the forge."""
    settings = tmp_path / "gitconfig"
    settings.write_text(
        f'[url "file://{tmp_path}/forge/"]\n\tinsteadOf = https://github.com/\n[uploadpack]\n\tallowAnySHA1InWant = true\n'
        "[user]\n\tname = A\n\temail = a@example.org\n[init]\n\tdefaultBranch = main\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return tmp_path / "forge"


def git(repository: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", repository, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def commit(forge: Path) -> str:
    """A commit with what an archive could get wrong: a script, a link, attributes that change or hide files, a tag."""
    repository = forge / NAME
    repository.mkdir(parents=True)
    git(repository, "init", "--quiet")
    (repository / "a.txt").write_text("one\r\n$Format:%H$\n")
    (repository / "hidden").write_text("still a source\n")
    (repository / "tool.sh").write_text("#!/bin/sh\n")
    (repository / "tool.sh").chmod(0o755)
    (repository / "deep").mkdir()
    (repository / "deep" / "link").symlink_to("../a.txt")
    (repository / "dangling").symlink_to("nowhere")
    (repository / ".gitattributes").write_text("a.txt export-subst text eol=lf\nhidden export-ignore\n")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "first")
    git(repository, "tag", "v1")
    return git(repository, "rev-parse", "HEAD")


def content(archive: Path) -> dict[str, tuple[bytes, int]]:
    with tarfile.open(archive) as tar:
        return {entry.name.partition("/")[2]: (tar.extractfile(entry).read(), entry.mode) for entry in tar}  # type: ignore[union-attr]


def test_an_archive_holds_the_files_as_they_were_committed(commit: str, tmp_path: Path) -> None:
    """Attributes of the repository may hide files or write a branch's name into them: then the source would not be the commit's."""
    assert write_archive(NAME, "v1", tmp_path / "a.tar") == commit
    committed = git(tmp_path / "forge" / NAME, "show", "HEAD:a.txt").encode() + b"\n"
    found = content(tmp_path / "a.tar")
    assert found["a.txt"] == (committed, 0o644)
    assert found["hidden"] == (b"still a source\n", 0o644)
    assert found["tool.sh"][1] == 0o755
    assert found["deep/link"] == found["a.txt"]
    assert "dangling" not in found


def test_the_same_files_are_the_same_archive(commit: str, tmp_path: Path) -> None:
    """The lock names the archive's sha256: a day, an umask or a way of asking must not change it."""
    write_archive(NAME, commit, tmp_path / "one.tar")
    before = os.umask(0o077)
    try:
        write_archive(NAME, "v1", tmp_path / "two.tar")
    finally:
        os.umask(before)
    assert sha256_file(tmp_path / "one.tar") == sha256_file(tmp_path / "two.tar")
    with tarfile.open(tmp_path / "one.tar") as tar:
        assert {(entry.mtime, entry.uid, entry.uname) for entry in tar} == {(0, 0, "")}


def test_a_locked_commit_comes_into_the_store_once(commit: str, tmp_path: Path, forge: Path) -> None:
    write_archive(NAME, commit, tmp_path / "known.tar")
    item = Wanted(project="thing", filename=archive_name(NAME, commit), sha256=sha256_file(tmp_path / "known.tar"))
    store = Store(tmp_path / "store")
    fetch_commits([(NAME, commit, item)], store=store)
    assert sha256_file(store.path(item.sha256, item.filename)) == item.sha256
    forge.rename(tmp_path / "gone")
    fetch_commits([(NAME, commit, item)], store=store, offline=True)  # nobody is asked


def test_other_files_than_the_locked_ones_are_refused_and_not_kept(commit: str, tmp_path: Path) -> None:
    item = Wanted(project="thing", filename="thing.tar", sha256="0" * 64)
    store = Store(tmp_path / "store")
    with pytest.raises(HashMismatchError, match="not what the lock names"):
        fetch_commits([(NAME, commit, item)], store=store)
    assert store.find(item.sha256, item.filename) is None
    assert not list((tmp_path / "store" / "partial").glob("0*0"))


@pytest.mark.parametrize("revision", ["no-such-tag", "f" * 40])
def test_a_revision_that_is_not_there_is_an_error_with_git_s_words(commit: str, tmp_path: Path, revision: str) -> None:
    assert commit
    with pytest.raises(FetchError, match=f"git cannot get {NAME} at") as caught:
        write_archive(NAME, revision, tmp_path / "a.tar")
    assert "insteadOf" in caught.value.next
    assert revision in caught.value.why
    assert not (tmp_path / "a.tar").exists()


def test_offline_names_the_source_that_was_not_asked(tmp_path: Path) -> None:
    item = Wanted(project="thing", filename="thing.tar", sha256="0" * 64)
    with pytest.raises(FetchError, match=r"thing\.tar is not in the store"):
        fetch_commits([(NAME, "f" * 40, item)], store=Store(tmp_path), offline=True)
