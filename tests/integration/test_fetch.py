"""The real default index and PyTorch's own, as this machine reaches them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from envbuilder.console import Console
from envbuilder.locking.model import read_lock
from envbuilder.store.cache import Store, Wanted
from envbuilder.store.fetch import fetch
from envbuilder.store.settings import Settings, read_settings
from envbuilder.targets.catalogue import find_target, lock_folder

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.network


@pytest.fixture
def small() -> list[Wanted]:
    """The dozen smallest wheels of the cpu lock."""
    target, path = find_target("cpu")
    lock = read_lock(lock_folder(path, target, target.default_release))
    wheels = sorted(lock.wheels("serve", "3.11.2", "x86_64"), key=lambda wheel: wheel.file.size)
    return [Wanted(project=it.name, filename=it.file.filename, sha256=it.file.sha256, size=it.file.size) for it in wheels if it.file.size][
        :12
    ]


def test_locked_files_come_from_whatever_this_machine_is_configured_with(tmp_path: Path, small: list[Wanted]) -> None:
    store, console = Store(tmp_path / "cache"), Console(stream=io.StringIO())
    done = fetch(small, store=store, settings=read_settings(), console=console)
    assert (done.added, done.added_bytes) == (12, sum(item.size for item in small))
    assert store.evict_damaged((item.sha256, item.filename) for item in small) == []
    again = fetch(small, store=store, settings=Settings(default_index=False), console=console, offline=True)
    assert (again.present, again.added) == (12, 0)


def test_a_dead_mirror_in_front_of_the_real_index_costs_seconds_not_minutes(tmp_path: Path, small: list[Wanted]) -> None:
    settings = read_settings({"PIP_EXTRA_INDEX_URL": "http://127.0.0.1:9/simple"})
    ours = read_settings()
    merged = Settings(find_links=ours.find_links, indexes=(*settings.indexes, *ours.indexes), ca_bundle=ours.ca_bundle, proxy=ours.proxy)
    assert fetch(small[:3], store=Store(tmp_path), settings=merged, console=Console(stream=io.StringIO())).added == 3
