"""Where a compile runs: without a network and at a fixed path if this machine lets us, and what it is called if not.

User namespaces need no rights, but Ubuntu 24.04 (so DGX OS) takes most of their use from ordinary users; root can do
the same without them. Where neither is to be had the compile runs as it is, and says so in its provenance: its paths
are this machine's, so its bytes are nobody else's.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from envbuilder.compile.inside.enter import NETWORK, NO_PLACE
from envbuilder.errors import ProgramError, VerificationError
from envbuilder.files import write_json
from envbuilder.process import run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_INSIDE = Path(__file__).resolve().parent / "inside"
FIXED_ROOT = Path("/build")


class Way(StrEnum):
    """How a compile is kept apart."""

    USER_NAMESPACES = "user-namespaces"
    ROOT = "namespaces-as-root"
    NONE = "not-isolated"


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """A way of running programs in a workspace. `root`: the workspace's path as they see it; `why`: what was not to be had."""

    way: Way
    workspace: Path
    python: Path
    why: str = ""

    @property
    def root(self) -> Path:
        return self.workspace if self.way is Way.NONE else FIXED_ROOT

    def run(
        self,
        command: Sequence[str | Path],
        *,
        variables: Mapping[str, str],
        log: Path,
        what: str,
        on_line: Callable[[str], None] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Run a program in the workspace's root with exactly these variables.

        Raises ProgramError as process.run does; VerificationError when the place turns out to have a network.
        """
        if self.way is Way.NONE:
            run(command, env=variables, cwd=self.workspace, log=log, what=what, on_line=on_line, timeout_s=timeout_s)
            return
        entering = self._entering(command, variables)
        try:
            run(entering, env=variables, log=log, what=what, on_line=on_line, timeout_s=timeout_s)
        except ProgramError as error:
            if f"exit code {NETWORK}" in error.what:
                raise VerificationError(
                    "the compile's place has a network", why=error.why, next="Please report this: the kernel made no namespace."
                ) from error
            raise

    def _entering(self, command: Sequence[str | Path], variables: Mapping[str, str]) -> list[str | Path]:
        (self.workspace / "tmp").mkdir(exist_ok=True)
        place = self.workspace / "place"
        place.mkdir(exist_ok=True)
        binds: list[tuple[str, str, bool]] = [
            (str(self.workspace), str(FIXED_ROOT), True),
            (str(self.workspace / "tmp"), "/tmp", True),  # noqa: S108 - the name inside
        ]
        prefix = Path(sys.base_prefix).resolve()
        if not prefix.is_relative_to("/usr"):  # an interpreter of pyenv, uv or conda
            binds.append((str(prefix), str(prefix), False))
        spec = self.workspace / "place.json"
        write_json(
            spec,
            {
                "users": self.way is Way.USER_NAMESPACES,
                "root": str(place),
                "binds": binds,
                "folder": str(FIXED_ROOT),
                "variables": dict(variables),
                "command": [*map(str, command)],
            },
        )
        return [self.python, "-IS", _INSIDE / "enter.py", spec]


def choose(workspace: Path, *, log: Path) -> Isolation:
    """Return the first way that works here, proved by running a program in it."""
    python = Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()
    refusals = []
    for way in (Way.USER_NAMESPACES, Way.ROOT):
        if way is Way.ROOT and os.getuid() != 0:
            refusals.append("root: not root")
            continue
        isolation = Isolation(way=way, workspace=workspace, python=python)
        try:
            isolation.run([python, "-IS", "-c", "pass"], variables={"PATH": "/usr/bin:/bin"}, log=log, what="trying isolation")
        except ProgramError as error:
            if f"exit code {NO_PLACE}" not in error.what:
                raise
            refusals.append(f"{way.value}: {error.why.splitlines()[-1] if error.why else error.what}")
        else:
            return isolation
    return Isolation(way=Way.NONE, workspace=workspace, python=python, why="; ".join(refusals))


def describe(isolation: Isolation) -> dict[str, str]:
    """Say it for the provenance."""
    return {"way": isolation.way.value, "root": str(isolation.root), **({"why": isolation.why} if isolation.why else {})}
