"""The Python that an environment is made for: one of this machine, or the one that the target's machine has."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet

from envbuilder.errors import ConfigurationError, ProgramError
from envbuilder.uv import run_uv

if TYPE_CHECKING:
    from envbuilder.store.cache import Store
    from envbuilder.targets.model import Target


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """A Python by its path and full version ("3.12.3"). A *foreign* one is the target machine's: here it cannot run."""

    path: str
    version: str
    foreign: bool = False

    @property
    def minor(self) -> str:
        return ".".join(self.version.split(".")[:2])


def find_interpreter(specifier: str, *, store: Store) -> Interpreter:
    """Return a Python that a target admits: the one that runs envbuilder if it fits, else what uv finds on this machine."""
    own = ".".join(map(str, sys.version_info[:3]))
    if SpecifierSet(specifier).contains(own):
        return Interpreter(path=getattr(sys, "_base_executable", None) or sys.executable, version=own)
    look = ["python", "find", specifier, "--no-project"]
    try:
        path = run_uv(look, cache=store.uv_cache, what="looking for a Python", capture=True).stdout.strip()
        show = ["python", "find", path, "--show-version", "--no-project"]
        version = run_uv(show, cache=store.uv_cache, what="asking Python for its version", capture=True).stdout.strip()
    except ProgramError as error:
        raise ConfigurationError(
            f"no Python {specifier} on this machine",
            why=f"envbuilder itself runs under {own}, which the lock does not cover.",
            next="Install one (Debian, Ubuntu: apt install python3 python3-venv; or `uv python install 3.12`).",
        ) from error
    return Interpreter(path=path, version=version)


def foreign_interpreter(target: Target) -> Interpreter:
    """Return the Python of a target's own machines, for environments that are assembled elsewhere."""
    if target.cross_python is None:
        raise ConfigurationError(
            f"target {target.name} can only be built on {target.platform}",
            why="It names no `cross-python`, the Python that its machines have.",
            next="`envbuilder targets` lists the targets and says which fit here.",
        )
    minor = ".".join(target.cross_python.split(".")[:2])
    return Interpreter(path=f"/usr/bin/python{minor}", version=target.cross_python, foreign=True)
