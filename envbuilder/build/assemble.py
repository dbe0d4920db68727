"""Making an environment from the store: exactly the locked wheels, nothing else, under another name until it is whole."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet

from envbuilder.build import overlays
from envbuilder.errors import ConfigurationError, HashMismatchError, ProgramError, VerificationError
from envbuilder.facts.site_packages import distributions, find_site, owners
from envbuilder.files import remove_tree, storage_errors, write_json
from envbuilder.uv import run_uv

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from envbuilder.console import Console
    from envbuilder.layout import Layout
    from envbuilder.locking.model import LockedWheel
    from envbuilder.store.cache import Store
    from envbuilder.targets.model import Environment

_MARKER = ".envbuilder.json"


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """A Python to make environments with: its path and full version."""

    path: str
    version: str


@dataclass(frozen=True, kw_only=True)
class Made:
    """An environment that was made: a name that no other one has, its files, and their bytes."""

    identity: str
    files: int
    bytes: int


def find_interpreter(specifier: str, *, store: Store) -> Interpreter:
    """Return a Python that a target admits: the one that runs envbuilder if it fits, else what uv finds on this machine."""
    own = ".".join(map(str, sys.version_info[:3]))
    if SpecifierSet(specifier).contains(own):
        return Interpreter(path=getattr(sys, "_base_executable", None) or sys.executable, version=own)
    try:
        path = run_uv(
            ["python", "find", specifier, "--no-project"], cache=store.uv_cache, what="looking for a Python", capture=True
        ).stdout.strip()
        show = ["python", "find", path, "--show-version", "--no-project"]
        version = run_uv(show, cache=store.uv_cache, what="asking Python for its version", capture=True).stdout.strip()
    except ProgramError as error:
        raise ConfigurationError(
            f"no Python {specifier} on this machine",
            why=f"envbuilder itself runs under {own}, which the lock does not cover.",
            next="Install one (Debian, Ubuntu: apt install python3 python3-venv; or `uv python install 3.12`).",
        ) from error
    return Interpreter(path=path, version=version)


def assemble(
    name: str,
    environment: Environment,
    wheels: Sequence[LockedWheel],
    *,
    interpreter: Interpreter,
    layout: Layout,
    store: Store,
    console: Console,
) -> Made:
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
        run_uv(
            ["venv", "--relocatable", "--python", interpreter.path, "--no-project", fresh],
            cache=store.uv_cache,
            what=f"making envs/{name}",
            log=log,
        )
        site = find_site(fresh)
        assert site is not None  # noqa: S101 - uv just made it
        _install(name, wheels, fresh, site=site, layout=layout, store=store, console=console, log=log)
        _check_content(name, wheels, site)
        for overlay in environment.overlays:
            overlays.install(overlay, site)
        made = _measure(fresh)
        write_json(fresh / _MARKER, {"schema": "envbuilder/environment/1", "name": name, "identity": made.identity})
        old = layout.scratch / f"{name}.old"
        if goal.exists():
            goal.replace(old)
        fresh.replace(goal)
        remove_tree(old)
    return made


def is_intact(layout: Layout, name: str, identity: str, wheels: Sequence[LockedWheel]) -> bool:
    """Whether an environment is the one that a record speaks of and still holds what it was made of, by a cheap look."""
    environment = layout.environment(name)
    try:
        marker = json.loads((environment / _MARKER).read_bytes())["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    site = find_site(environment)
    return marker == identity and site is not None and layout.python(name).exists() and _differences(wheels, site) == []


def _install(
    name: str,
    wheels: Sequence[LockedWheel],
    environment: Path,
    *,
    site: Path,
    layout: Layout,
    store: Store,
    console: Console,
    log: Path,
) -> None:
    pairs = [(wheel.file.sha256, wheel.file.filename) for wheel in wheels]
    requirements = layout.scratch / f"{name}.txt"
    requirements.write_text(
        "".join(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.file.sha256}\n" for wheel in wheels), encoding="utf-8"
    )
    command: list[str | Path] = ["pip", "sync", requirements, "--python", environment / "bin" / "python", "--strict"]
    command += ["--require-hashes", "--no-index", "--find-links", store.link_folder(pairs), "--no-build", "--offline"]
    try:
        with _progress(console, name, len(wheels), site):
            run_uv(command, cache=store.uv_cache, what=f"installing into envs/{name}", log=log, variables={"UV_NO_INSTALLER_METADATA": "1"})
    except ProgramError as error:
        if damaged := store.evict_damaged(pairs):
            raise HashMismatchError(
                f"{', '.join(damaged)} in the store had other bytes than the lock names",
                why="The file was changed after it was fetched. It has been removed from the store.",
                next="Run the same command again: it fetches the file anew.",
            ) from error
        raise


def _check_content(name: str, wheels: Sequence[LockedWheel], site: Path) -> None:
    if differences := _differences(wheels, site):
        raise VerificationError(
            f"envs/{name} is not what the lock says",
            why="\n".join(differences),
            next="Please report this: uv installed something else than it was told.",
        )
    shared = {path: names for path, names in owners(site).items() if len(names) > 1 and not path.startswith("../")}
    if shared:
        path, names = next(iter(shared.items()))
        raise VerificationError(
            f"{len(shared)} paths in envs/{name} belong to two distributions",
            why=f"{path} comes with {' and '.join(names)}: which of them is there depends on chance, so the environment is not reproducible.",
            next="Exclude one of the distributions in the target, with a reason.",
        )


def _differences(wheels: Sequence[LockedWheel], site: Path) -> list[str]:
    expected = {wheel.name: wheel.version for wheel in wheels}
    found = distributions(site)
    return [
        f"{name}: locked {expected.get(name, 'not at all')}, installed {found.get(name, 'not at all')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]


@contextlib.contextmanager
def _progress(console: Console, name: str, total: int, site: Path) -> Iterator[None]:
    """Show how many distributions have arrived, which is all that can be seen from outside uv."""
    done = threading.Event()

    def watch() -> None:
        seen = 0
        while not done.wait(0.5):
            now = sum(1 for _ in site.glob("*.dist-info"))
            progress.advance(now - seen)
            seen = now

    with console.progress(f"installing {name}", total, unit="distributions") as progress:
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _measure(environment: Path) -> Made:
    sizes = [os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(environment) for name in names]  # noqa: PTH118 - 30,000 of them
    return Made(identity=secrets.token_hex(8), files=len(sizes), bytes=sum(sizes))
