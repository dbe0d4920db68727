"""What `verify` says of a lock: an image brings its own, and must not pass for what this installation would make."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from envbuilder.build.image_inputs import ImageSource
from envbuilder.build.verification import Verified, _of_build, _whose
from envbuilder.console import Console
from envbuilder.images.verify import Check
from envbuilder.locking.model import read_lock
from envbuilder.store.cache import Store
from envbuilder.store.settings import Settings
from envbuilder.targets.catalogue import find_target, lock_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    target, path = find_target("cpu")
    name, release = target.release(None)
    return ImageSource(
        target=target,
        release_name=name,
        release=release,
        lock=read_lock(lock_folder(path, target, name)),
        lock_files={},
        machine="x86_64",
        store=Store(tmp_path),
        settings=Settings(),
        console=Console(stream=io.StringIO()),
    )


def test_a_lock_of_this_installation_is_known(source: ImageSource) -> None:
    assert _whose(source) == "that of cpu 0.29.0 here"


def test_a_lock_that_somebody_else_wrote_is_not(source: ImageSource) -> None:
    """Whole it is, and it may name any wheel."""
    assert _whose(replace(source, lock=replace(source.lock, digest="0" * 64))) == "of another cpu 0.29.0 than the one here"
    stranger = source.target.model_copy(update={"name": "stranger"})
    assert _whose(replace(source, target=stranger)) == "of stranger 0.29.0, which is not known here"


def test_another_target_around_a_known_lock_is_told(source: ImageSource) -> None:
    """Variables and the server's arguments stand in the target, and not in the lock."""
    serve = source.release.serve.model_copy(update={"arguments": ("--trust-remote-code",)})
    release = source.release.model_copy(update={"serve": serve})
    target = source.target.model_copy(update={"releases": {source.release_name: release}})
    assert _whose(replace(source, target=target, release=release)).endswith("with another target around it")


def test_a_build_s_images_are_of_its_own_lock() -> None:
    """Another build's layout, put into the folder, is whole as well."""
    verified = Verified(name="serve", digest="", lock="sha256:1", checks=(Check(name="lock", status="pass", detail=""),))
    assert _of_build(verified, "sha256:1") == verified
    assert [check.status for check in _of_build(verified, "sha256:2").checks] == ["pass", "fail"]
