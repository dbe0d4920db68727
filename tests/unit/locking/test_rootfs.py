"""The images' part of a lock: written, read back, and noticed when its target asks for something else."""

from __future__ import annotations

import dataclasses
import tomllib

import pytest

from envbuilder.errors import LockError
from envbuilder.locking.model import check_images, read_lock
from envbuilder.locking.rootfs import ImageLock, image_intent, image_text, parse_image_lock
from envbuilder.store.debian import DebianPackage
from envbuilder.store.rootfs_image import RootfsImage, RootfsLayer
from envbuilder.targets.catalogue import find_target, lock_folder, target_files

PACKAGE = DebianPackage(
    name="libstdc++6", version="1:2~rc1-1", architecture="arm64", path="pool/main/x/x_1.deb", sha256="0" * 64, size=7, layer="dev"
)
LOCK = ImageLock(intent="1" * 64, compression="zstd", level=3, library="1.5.7", packages={"aarch64": (PACKAGE,)})


def test_what_is_written_is_read_back() -> None:
    assert parse_image_lock(tomllib.loads("\n".join(image_text(LOCK)))["images"]) == LOCK


def test_what_images_are_made_from_is_named_among_the_files_of_a_lock() -> None:
    """`cache gc` keeps what a lock names: Debian packages that it removed are gone from most mirrors after a point release."""
    layer = RootfsLayer(digest=f"sha256:{'b' * 64}", size=1, media_type="x", diff_id=f"sha256:{'c' * 64}")
    over = dataclasses.replace(LOCK, rootfs={"x86_64": RootfsImage(image="x", digest=f"sha256:{'d' * 64}", layers=(layer,))})
    assert over.hashes() == {"0" * 64, "b" * 64}
    target, path = find_target("cpu")
    lock = read_lock(lock_folder(path, target, target.default_release))
    assert lock.images
    assert {package.sha256 for packages in lock.images.packages.values() for package in packages} < lock.hashes()


def test_our_targets_locks_are_those_of_their_images() -> None:
    """Whoever changes a target's packages without locking again learns it here, not on a Spark."""
    for name in target_files():
        target, path = find_target(name)
        for release in target.releases:
            check_images(read_lock(lock_folder(path, target, release)), target, release)


def test_another_package_makes_the_lock_stale() -> None:
    target, path = find_target("cpu")
    assert target.images is not None
    lock = read_lock(lock_folder(path, target, target.default_release))
    other = target.model_copy(update={"images": target.images.model_copy(update={"packages": (*target.images.packages, "curl")})})
    with pytest.raises(LockError, match="stale in its images"):
        check_images(lock, other, target.default_release)
    with pytest.raises(LockError, match="stale in its images"):
        check_images(dataclasses.replace(lock, images=None), target, target.default_release)


def test_who_runs_in_an_image_has_no_part_in_the_lock() -> None:
    target, _ = find_target("cpu")
    assert target.images is not None
    renamed = target.images.model_copy(update={"user": "somebody", "uid": 2000})
    assert image_intent(renamed, ("x86_64",)) == image_intent(target.images, ("x86_64",))
    assert image_intent(target.images, ("aarch64",)) != image_intent(target.images, ("x86_64",))
