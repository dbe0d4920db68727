"""The Python that an environment is made for: one of this machine, or the one that the target's machine has."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet

from envbuilder.errors import ConfigurationError, ProgramError
from envbuilder.uv import run_uv

if TYPE_CHECKING:
    from envbuilder.store.cache import Store
    from envbuilder.targets.model import Machine, Target


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """A Python by its path and full version ("3.12.3"). A *foreign* one is the target machine's: here it cannot run."""

    path: str
    version: str
    machine: Machine
    foreign: bool = False

    @property
    def minor(self) -> str:
        return ".".join(self.version.split(".")[:2])


def find_interpreter(target: Target, machine: Machine, *, store: Store) -> Interpreter:
    """Return the Python to build a target with, for one of its machines.

    On a machine of that kind it is the one that runs envbuilder, if the target admits it, else what uv finds here; on
    another it is the one that the target's machines have.
    """
    return _own_interpreter(target.python, machine, store=store) if machine == platform.machine() else _foreign_interpreter(target, machine)


def _own_interpreter(specifier: str, machine: Machine, *, store: Store) -> Interpreter:
    own = ".".join(map(str, sys.version_info[:3]))
    if SpecifierSet(specifier).contains(own):
        return Interpreter(path=getattr(sys, "_base_executable", None) or sys.executable, version=own, machine=machine)
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
    return Interpreter(path=path, version=version, machine=machine)


def _foreign_interpreter(target: Target, machine: Machine) -> Interpreter:
    if target.cross_python is None:
        raise ConfigurationError(
            f"target {target.name} for linux/{machine} can only be built on such a machine",
            why="It names no `cross-python`, the Python that its machines have.",
            next="`envbuilder targets` lists the targets and says which fit here.",
        )
    minor = ".".join(target.cross_python.split(".")[:2])
    return Interpreter(path=f"/usr/bin/python{minor}", version=target.cross_python, machine=machine, foreign=True)
