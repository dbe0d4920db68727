from __future__ import annotations

import hashlib
import shutil
import threading
import time
from typing import TYPE_CHECKING

import pytest

from envbuilder.errors import ConfigurationError, StorageError
from envbuilder.store.cache import Store, default_root

if TYPE_CHECKING:
    from pathlib import Path

NAME = "thing-1.0-py3-none-any.whl"
PAYLOAD = b"a wheel, more or less"
SHA = hashlib.sha256(PAYLOAD).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "cache ü")
    with store.incoming(SHA) as partial:
        partial.write_bytes(PAYLOAD)
        store.admit(partial, SHA, NAME)
    return store


def test_what_was_admitted_is_found(store: Store) -> None:
    path = store.find(SHA, NAME, size=len(PAYLOAD))
    assert path is not None
    assert path.read_bytes() == PAYLOAD
    assert store.find(SHA, NAME) == path
    assert store.find(SHA, "other-1-py3-none-any.whl") is None


def test_a_file_of_another_size_is_thrown_out(store: Store) -> None:
    """A power cut may leave a short file under a good name: its next user must get a whole one."""
    store.path(SHA, NAME).write_bytes(PAYLOAD[:5])
    assert store.find(SHA, NAME, size=len(PAYLOAD)) is None
    assert not store.path(SHA, NAME).exists()


def test_a_file_of_the_right_size_and_other_bytes_is_found_by_hashing(store: Store) -> None:
    store.path(SHA, NAME).write_bytes(PAYLOAD[::-1])
    assert store.evict_damaged([(SHA, NAME), ("0" * 64, "not-there-1-py3-none-any.whl")]) == [NAME]
    assert store.find(SHA, NAME) is None
    assert store.evict_damaged([(SHA, NAME)]) == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b.whl", ".hidden", ".."])
def test_a_name_that_leaves_the_store_is_refused(store: Store, name: str) -> None:
    """File names come from a lock, and a lock comes from somebody else."""
    with pytest.raises(ConfigurationError, match="not a file name"):
        store.find(SHA, name)


def test_one_file_is_put_together_by_one_at_a_time(store: Store) -> None:
    order: list[str] = []
    inside = threading.Event()

    def first() -> None:
        with store.incoming("1" * 64):
            inside.set()
            time.sleep(0.2)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with store.incoming("1" * 64):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_an_error_inside_is_not_taken_for_the_disks(store: Store) -> None:
    with pytest.raises(PermissionError), store.incoming("1" * 64):
        raise PermissionError(13, "a folder of the user's")


# -- the folder of links -----------------------------------------------------------------------------------------


def test_links_lead_to_the_files_and_the_folder_depends_on_the_content_alone(store: Store) -> None:
    """Uv's cache knows a local wheel by its path: another folder for the same wheels would unpack them all again."""
    other = ("1" * 64, "b-1-py3-none-any.whl")
    folder = store.link_folder([(SHA, NAME), other])
    assert (folder / NAME).read_bytes() == PAYLOAD
    assert store.link_folder([other, (SHA, NAME)]) == folder
    assert store.link_folder([(SHA, NAME)]) != folder


def test_an_interrupted_folder_is_completed(store: Store) -> None:
    folder = store.link_folder([(SHA, NAME)])
    (folder / NAME).unlink()
    assert (store.link_folder([(SHA, NAME)]) / NAME).read_bytes() == PAYLOAD


def test_a_store_may_be_moved(store: Store, tmp_path: Path) -> None:
    name = store.link_folder([(SHA, NAME)]).name
    shutil.move(store.root, tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "links" / name / NAME).read_bytes() == PAYLOAD


def test_two_builds_may_make_the_same_folder(store: Store) -> None:
    pairs = [(SHA, f"n{number}-1-py3-none-any.whl") for number in range(50)]
    failures: list[BaseException] = []

    def make() -> None:
        try:
            store.link_folder(pairs)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test is to show it
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(list(store.link_folder(pairs).iterdir())) == 50


# -- where it lies -----------------------------------------------------------------------------------------------


def test_the_store_lies_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENVBUILDER_CACHE", "my cache")
    assert default_root() == tmp_path / "my cache"
    monkeypatch.delenv("ENVBUILDER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_root() == tmp_path / "xdg" / "envbuilder"


def test_a_place_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"), Store(tmp_path / "file").incoming(SHA):
        pass
