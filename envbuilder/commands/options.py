"""Options that several commands share."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

    from envbuilder.console import Console
    from envbuilder.layout import Layout
    from envbuilder.locking.model import Lock
    from envbuilder.targets.model import Target


def add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", metavar="T", help="a target's name, or the path of its TOML file (default: the one that fits this machine)"
    )


def add_release(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--release", metavar="R", help="a release of the target (default: the target's own default)")


def chosen_target(name: str | None) -> tuple[Target, Path]:
    """Return the target that was asked for, or the one that fits this machine, and its file."""
    from envbuilder.targets.catalogue import find_target

    return find_target(name or fitting_target())


def default_out(target: str) -> str:
    """Return the output folder of a target when no --out is given."""
    return f".envbuilder/{target}"


def fitting_target() -> str:
    """Return the name of the target that fits this machine."""
    from envbuilder.facts.detect import detect_target
    from envbuilder.targets.catalogue import target_files

    name, _ = detect_target()
    return name if name in target_files() else "cpu"


def known_locks() -> Iterator[Lock]:
    """Yield the locks of all known targets; a lock that cannot be read ends the command."""
    from envbuilder.targets.catalogue import find_target, target_files

    for name in target_files():
        yield from locks_of(*find_target(name))


def locks_of(target: Target, path: Path) -> Iterator[Lock]:
    """Yield the locks of a target's releases, those that were locked; one that cannot be read ends the command."""
    from envbuilder.locking.model import read_lock
    from envbuilder.targets.catalogue import lock_folder

    for release in target.releases:
        folder = lock_folder(path, target, release)
        if (folder / "inputs.toml").is_file():
            yield read_lock(folder)


@contextlib.contextmanager
def diagnosed(layout: Layout, console: Console) -> Iterator[None]:
    """When a step fails, say which known failures its logs show, before the error itself is told."""
    import time

    from envbuilder.errors import EnvbuilderError

    started = time.time()
    try:
        yield
    except EnvbuilderError:
        tell_known_failures(layout, console, since=started)
        raise


def tell_known_failures(layout: Layout, console: Console, *, since: float) -> None:
    """Say which known failures the logs show that were written after `since` (seconds since the epoch)."""
    from envbuilder.doctor.logs import recognised

    fresh = [log for log in sorted(layout.log("x").parent.glob("*.log")) if log.stat().st_mtime >= since]
    for line in dict.fromkeys(line for log in fresh for line in recognised(log)):
        console.line(f"known failure: {line}")
