from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envbuilder import files
from envbuilder.errors import StorageError
from envbuilder.files import (
    canonical_json,
    digest_of,
    human_size,
    remove_tree,
    sha256_file,
    storage_errors,
    vanishing,
    write_atomic,
    write_json,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(min_value=-(2**53), max_value=2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


# -- write_atomic ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_disk_that_says_no_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    goal = tmp_path / "manifest.json"
    goal.write_text("old")

    def full(*_: object) -> None:
        raise os_error(errno.ENOSPC)

    monkeypatch.setattr(files.os if moment == "fsync" else Path, moment, full)
    with pytest.raises(StorageError, match="the disk is full"):
        write_atomic(goal, "new")
    assert goal.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_an_interrupt_in_the_middle_leaves_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x", "new")
    assert list(tmp_path.iterdir()) == []


def test_readers_never_see_a_half_written_file(tmp_path: Path) -> None:
    """Without the rename, a reader beside a writer would now and then see a short or an empty file."""
    goal, sizes = tmp_path / "x", {100_000, 300_000}
    write_atomic(goal, b"a" * 100_000)
    seen: set[int] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(len(goal.read_bytes()))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(60):
        write_atomic(goal, b"b" * (300_000 if turn % 2 else 100_000))
    done.set()
    reader.join()
    assert seen <= sizes


def test_the_folder_is_made_and_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    real = tmp_path / "with space ü"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    write_atomic(tmp_path / "link" / "a" / "b.txt", "text")
    assert (real / "a" / "b.txt").read_text() == "text"


def test_the_mode_is_the_same_under_any_umask(tmp_path: Path) -> None:
    """The 0600 of mkstemp would make a shared output folder unreadable to others."""
    before = os.umask(0o077)
    try:
        write_atomic(tmp_path / "x", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("goal", ["a-file/x", "a-folder", "n" * 300])
def test_a_place_that_cannot_be_written_is_an_error_with_a_remedy_not_a_traceback(tmp_path: Path, goal: str) -> None:
    (tmp_path / "a-file").write_text("")
    (tmp_path / "a-folder").mkdir()
    with pytest.raises(StorageError) as caught:
        write_atomic(tmp_path / goal, "text")
    assert str(tmp_path / goal) in caught.value.what
    assert "--out" in caught.value.next


# -- storage_errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_with_its_numbers_also_where_the_folder_is_not_there_yet(tmp_path: Path, number: int) -> None:
    with pytest.raises(StorageError) as caught, storage_errors(tmp_path / "not" / "yet"):
        raise os_error(number)
    assert "are free there" in caught.value.why
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST])
def test_a_refusal_keeps_the_reason_of_the_system(tmp_path: Path, number: int) -> None:
    with pytest.raises(StorageError) as caught, storage_errors(tmp_path):
        raise os_error(number)
    assert os.strerror(number) in caught.value.why


def test_what_the_disk_did_not_say_passes_unchanged(tmp_path: Path) -> None:
    """The errors of requests are OSErrors too: a broken connection must not be called a full disk."""
    with pytest.raises(ConnectionError), storage_errors(tmp_path):
        raise ConnectionError("broken off")
    with pytest.raises(FileNotFoundError), storage_errors(tmp_path):
        (tmp_path / "none").read_bytes()


def test_a_file_that_somebody_took_away_is_no_fault_of_ours(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"vanished while it was used: {tmp_path / 'none'}"), vanishing():
        (tmp_path / "none").read_bytes()
    with pytest.raises(StorageError, match="vanished while it was used: gone"), vanishing():
        raise FileNotFoundError("gone")
    with pytest.raises(PermissionError), vanishing():
        raise os_error(errno.EACCES)


# -- digests -----------------------------------------------------------------------------------------------------


@given(JSON)
def test_canonical_json_reads_back_as_the_same_value(value: object) -> None:
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_the_order_of_keys_does_not_change_a_digest(value: dict[str, int]) -> None:
    """A key that depended on the order would rebuild everything for nothing."""
    assert digest_of(value) == digest_of(dict(reversed(value.items())))


@given(JSON, JSON)
def test_different_values_have_different_digests(one: object, other: object) -> None:
    assert (digest_of(one) == digest_of(other)) == (canonical_json(one) == canonical_json(other))


def test_the_spelling_is_fixed() -> None:
    """The digests of released locks and records depend on it: it must not change by a whim of the json module."""
    assert canonical_json({"b": [1, None], "a": "é"}) == '{"a":"é","b":[1,null]}'.encode()
    assert digest_of({}) == hashlib.sha256(b"{}").hexdigest()


def test_a_path_that_is_not_utf8_has_a_digest() -> None:
    assert len(digest_of(os.fsdecode(b"/home/\xff"))) == 64


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_a_file_is_hashed_whole(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(payload := os.urandom(size))
    assert sha256_file(path) == hashlib.sha256(payload).hexdigest()


def test_json_files_keep_non_ascii_readable_and_end_with_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "x", {"name": "ü"})
    assert (tmp_path / "x").read_bytes() == '{\n  "name": "ü"\n}\n'.encode()


# -- the rest ----------------------------------------------------------------------------------------------------


def test_removing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    (tmp_path / "link").symlink_to("precious")
    remove_tree(tmp_path / "link")
    remove_tree(tmp_path / "not there")
    assert (tmp_path / "precious" / "file").read_text() == "kept"
    assert not (tmp_path / "link").exists()
    remove_tree(tmp_path / "precious")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_960, "1.0 MB"),
        (191_794_682, "191.8 MB"),
        (3_100_000_000, "3.1 GB"),
        (2e12, "2000.0 GB"),
    ],
)
def test_sizes_are_decimal_as_indexes_and_disks_give_them(size: float, shown: str) -> None:
    assert human_size(size) == shown
