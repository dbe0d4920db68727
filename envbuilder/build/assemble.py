"""Making an environment from the store: exactly the locked wheels, nothing else, under another name until it is whole."""

from __future__ import annotations

import json
import os
import secrets
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envbuilder.binaries.known import MARKER
from envbuilder.build import overlays
from envbuilder.errors import VerificationError
from envbuilder.facts.site_packages import distributions, find_site, installed
from envbuilder.files import remove_tree, storage_errors, write_atomic, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from envbuilder.build.install import Installer
    from envbuilder.layout import Layout
    from envbuilder.locking.model import LockedWheel
    from envbuilder.store.cache import Store
    from envbuilder.targets.model import Environment


@dataclass(frozen=True, kw_only=True)
class Made:
    """An environment that was made: a name that no other one has, its files, and their bytes."""

    identity: str
    files: int
    bytes: int


def assemble(name: str, environment: Environment, wheels: Sequence[LockedWheel], *, installer: Installer, layout: Layout) -> Made:
    """Make one environment, in the place of the one that was there.

    Raises HashMismatchError if a stored wheel was damaged (it is removed from the store), VerificationError if what
    was installed is not what was asked for, or is not determined by it.
    """
    goal, fresh = layout.environment(name), layout.scratch / name
    log = layout.log(f"assemble-{name}")
    with storage_errors(goal):
        log.write_bytes(b"")
        goal.parent.mkdir(parents=True, exist_ok=True)
        remove_tree(fresh)
        site = installer.install(name, fresh, wheels, log=log)
        _check_content(name, wheels, site)
        content = installed(site)
        _settle_shared_paths(name, environment, wheels, site, shared=content.shared, store=installer.store)
        for overlay in environment.overlays:
            overlays.install(overlay, site, machine=installer.interpreter.machine)
        made = Made(identity=secrets.token_hex(8), files=content.files, bytes=content.bytes)
        write_json(fresh / MARKER, _marker(name, environment, made))
        old = layout.scratch / f"{name}.old"
        if goal.exists():
            goal.replace(old)
        fresh.replace(goal)
        remove_tree(old)
    return made


def is_intact(layout: Layout, name: str, identity: str, wheels: Sequence[LockedWheel], *, foreign: bool) -> bool:
    """Whether an environment is the one that a record speaks of and still holds what it was made of, by a cheap look.

    Its Python is a link to one outside, which may have been removed; only a *foreign* one was never here.
    """
    environment = layout.environment(name)
    try:
        marker = json.loads((environment / MARKER).read_bytes())["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    site, python = find_site(environment), layout.python(name)
    runs = os.path.lexists(python) if foreign else python.is_file() and os.access(python, os.X_OK)
    return marker == identity and site is not None and runs and _differences(wheels, site) == []


def _check_content(name: str, wheels: Sequence[LockedWheel], site: Path) -> None:
    if differences := _differences(wheels, site):
        raise VerificationError(
            f"envs/{name} is not what the lock says",
            why="\n".join(differences),
            next="Please report this: uv installed something else than it was told.",
        )


def _marker(name: str, environment: Environment, made: Made) -> dict[str, Any]:
    """Return what an environment says of itself: `envbuilder abi` reads the accepted faults from here."""
    accepted = [rule.model_dump() for rule in environment.expected_abi]
    return {"schema": "envbuilder/environment/1", "name": name, "identity": made.identity, "expected-abi": accepted}


def _settle_shared_paths(
    name: str,
    environment: Environment,
    wheels: Sequence[LockedWheel],
    site: Path,
    *,
    shared: Mapping[str, tuple[str, ...]],
    store: Store,
) -> None:
    """Where two distributions own one path, put there what the target's rule says; without a rule it is an error.

    uv unpacks in parallel: whose file is there would depend on chance, and the environment on the run.
    """
    owning = {rule.owner: frozenset({rule.owner, rule.over}) for rule in environment.shared_paths}
    taken: defaultdict[str, list[str]] = defaultdict(list)
    for path, names in shared.items():
        owner = next((owner for owner, pair in owning.items() if pair.issuperset(names)), None)
        if owner is None:
            raise VerificationError(
                f"a path in envs/{name} belongs to {' and '.join(names)}",
                why=f"{path} comes with both: which one is there depends on chance, so the environment is not reproducible.",
                next="Exclude one of them in the target, or say in its `shared-paths` whose file is to be there; each with a reason.",
            )
        taken[owner].append(path)
    files = {wheel.name: wheel.file for wheel in wheels}
    for owner, paths in taken.items():
        with zipfile.ZipFile(store.path(files[owner].sha256, files[owner].filename)) as archive:
            for path in paths:
                mode = 0o755 if archive.getinfo(path).external_attr >> 16 & 0o111 else 0o644
                write_atomic(site / path, archive.read(path), mode=mode)


def _differences(wheels: Sequence[LockedWheel], site: Path) -> list[str]:
    expected = {wheel.name: wheel.version for wheel in wheels}
    found = distributions(site)
    return [
        f"{name}: locked {expected.get(name, 'not at all')}, installed {found.get(name, 'not at all')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
