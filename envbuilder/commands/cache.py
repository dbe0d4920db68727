"""Show what the store of fetched files holds (status), or remove what no known lock needs (gc).

The store is shared by all builds of this user. gc keeps every file that a lock of a known target names, layers that an output
folder holds as well or that are younger than a day, and compiles of the last 30 days; environments and images that were
built stay whole, since their files are their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from envbuilder.console import Console


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("status", "gc"), help="status: how much is where; gc: remove what no lock needs")
    parser.add_argument(
        "--target",
        metavar="T",
        action="append",
        help="gc: keep only what the locks of this target name; a name or a TOML file (may be repeated)",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    from envbuilder.files import human_size
    from envbuilder.store.cache import Store, default_root
    from envbuilder.store.collect import collect, usage

    store = Store(default_root())
    if args.action == "gc":
        collected = collect(store, _needed(args.target))
        console.line(f"removed {collected.files} files, {human_size(collected.bytes)}, from {store.root}")
        return 0
    parts = usage(store)
    rows = [(part.part, str(part.files), human_size(part.bytes)) for part in parts]
    rows.append(("", str(sum(part.files for part in parts)), human_size(sum(part.bytes for part in parts))))
    console.table(str(store.root), ("part", "files", "size"), rows, right=(1, 2))
    return 0


def _needed(targets: list[str] | None) -> set[str]:
    """Return the hashes that the locks of the named targets name, or all known ones.

    A target's own file may lie anywhere. Raises UsageError for one that was never locked: nothing of it could be kept.
    """
    from envbuilder.commands.options import known_locks, locks_of
    from envbuilder.errors import UsageError
    from envbuilder.targets.catalogue import find_target

    if not targets:
        return {sha256 for lock in known_locks() for sha256 in lock.hashes()}
    needed: set[str] = set()
    for name in targets:
        locks = list(locks_of(*find_target(name)))
        if not locks:
            raise UsageError(f"target {name} has no lock", why="Every file would be removed.", next="Lock it first, or leave --target out.")
        needed |= {sha256 for lock in locks for sha256 in lock.hashes()}
    return needed
