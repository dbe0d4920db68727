"""Resolve a target's release and write its locks, or check that they are current.

The locks name distributions, files and sha256, never a host. --check changes nothing and needs no network: it proves
that the lock is whole and that it was made from what the target says today.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from envbuilder.commands import options
from envbuilder.errors import LockError
from envbuilder.files import human_size

if TYPE_CHECKING:
    import argparse

    from envbuilder.console import Console
    from envbuilder.locking.rootfs import ImageLock
    from envbuilder.locking.source import SourceLock
    from envbuilder.store.rootfs_image import RootfsImage
    from envbuilder.targets.model import Release, Rootfs, Target


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", metavar="T", help="a target's name, or the path of its TOML file (default: the one that fits this machine)"
    )
    parser.add_argument("--release", metavar="R", help="a release of the target (default: the target's own default)")
    parser.add_argument("--images", action="store_true", help="choose only the packages of the images anew, and keep the wheels as locked")
    parser.add_argument(
        "--source", action="store_true", help="resolve only what building vLLM from source needs, and keep the rest as locked"
    )
    parser.add_argument("--check", action="store_true", help="only say whether the lock is whole and current")


def run(args: argparse.Namespace, console: Console) -> int:
    from dataclasses import replace

    from envbuilder.locking.model import check_images, check_source, intent_of, read_lock, write_lock
    from envbuilder.targets.catalogue import lock_folder

    target, path = options.chosen_target(args.target)
    name, release = target.release(args.release)
    folder = lock_folder(path, target, name)
    if args.check or args.images or args.source:
        lock = read_lock(folder)
        if lock.intent != intent_of(target, release):
            raise LockError(
                f"the lock of {target.name} {name} is stale",
                why=f"{path.name} asks for something else than when the lock was made.",
                next=f"Run `envbuilder lock --target {target.name} --release {name}`.",
            )
    if args.check:
        check_images(lock, target, name)
        check_source(lock, target, name, release)
    elif args.images:
        lock = write_lock(folder, replace(lock, images=_resolve_images(target, console)))
    elif args.source:
        lock = write_lock(folder, replace(lock, source=_resolve_source(target, release, console)))
    else:
        from envbuilder.locking.resolve import resolve
        from envbuilder.store.cache import Store, default_root
        from envbuilder.store.settings import read_settings

        resolved = resolve(target, name, release, store=Store(default_root()), settings=read_settings(), console=console)
        source = _resolve_source(target, release, console)
        lock = write_lock(folder, replace(resolved, images=_resolve_images(target, console), source=source))
    files = {file.filename: file.size for file in lock.files()}
    counts = ", ".join(f"{environment} {len(requirements)}" for environment, requirements in lock.environments.items())
    console.line(
        f"{target.name} {name}: {counts} distributions, {len(files)} files, {human_size(sum(files.values()))}; sha256:{lock.digest}"
    )
    if lock.source:
        console.line(f"source: {len(lock.source.requirements)} distributions, {len(lock.source.sources)} sources")
    if lock.images:
        for machine, packages in lock.images.packages.items():
            console.line(f"images {machine}: {len(packages)} Debian packages, {human_size(sum(it.size for it in packages))}")
        for machine, rootfs in lock.images.rootfs.items():
            size = human_size(sum(it.size for it in rootfs.layers))
            console.line(f"images {machine}: {rootfs.image}, {len(rootfs.layers)} layers, {size}; {rootfs.digest}")
    return 0


def _resolve_images(target: Target, console: Console) -> ImageLock | None:
    from envbuilder.locking.rootfs import resolve_images

    if target.images is None:
        return None
    return resolve_images(target.images, target.machines, console=console, rootfs=_resolve_rootfs)


def _resolve_rootfs(rootfs: Rootfs, machine: str) -> RootfsImage:
    from envbuilder.images.foundation import resolve
    from envbuilder.images.registry import Reference, Registry
    from envbuilder.store.cache import default_root
    from envbuilder.store.rootfs_image import reference_of
    from envbuilder.store.settings import read_settings

    reference = Reference.parse(reference_of(rootfs.image, rootfs.digest))
    registry = Registry(reference=reference, settings=read_settings(), state=default_root() / "uploads")
    return resolve(rootfs.image, rootfs.digest, machine, registry)


def _resolve_source(target: Target, release: Release, console: Console) -> SourceLock | None:
    from envbuilder.locking.resolve import resolve_source
    from envbuilder.store.cache import Store, default_root
    from envbuilder.store.settings import read_settings

    return resolve_source(target, release, store=Store(default_root()), settings=read_settings(), console=console)
