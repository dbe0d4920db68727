"""Where a compile runs: without a network and at a fixed path if this machine lets us, and what it is called if not.

User namespaces need no rights, but Ubuntu 24.04 (so DGX OS) takes most of their use from ordinary users; root can do
the same without them, and so can Docker for those who may use it. Where none is to be had the compile runs as it is,
and says so in its provenance: its paths are this machine's, so its bytes are nobody else's.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from envbuilder.compile import container
from envbuilder.compile.inside.enter import NETWORK, NO_PLACE
from envbuilder.errors import ProgramError, VerificationError
from envbuilder.files import write_json
from envbuilder.process import replay_line, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from envbuilder.compile.container import Bind

_ENTER = Path(__file__).resolve().parent / "inside" / "enter.py"
FIXED_ROOT = Path("/build")
REMEDY = (
    "Allow user namespaces until the next boot: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0\n"
    "Or allow yourself Docker: sudo usermod -aG docker $USER, then log in again."
)


class Way(StrEnum):
    """How a compile is kept apart."""

    USER_NAMESPACES = "user-namespaces"
    ROOT = "namespaces-as-root"
    ENGINE = "container"
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
        spec = self._write_spec(command, variables)
        try:
            if self.way is Way.ENGINE:
                inside = [str(self.python), "-IS", str(_ENTER), str(FIXED_ROOT / spec.name)]
                with container.running(inside, binds=[*self._binds(), (_ENTER, _ENTER, False)], folder=FIXED_ROOT) as entering:
                    run(entering, log=log, what=what, on_line=on_line, timeout_s=timeout_s)
            else:
                run([self.python, "-IS", _ENTER, spec], env=variables, log=log, what=what, on_line=on_line, timeout_s=timeout_s)
        except ProgramError as error:
            if f"exit code {NETWORK}" in error.what:
                raise VerificationError(
                    "the compile's place has a network", why=error.why, next="Please report this: the kernel made no namespace."
                ) from error
            raise

    def replay(self, command: Sequence[str | Path], *, variables: Mapping[str, str], failed: ProgramError) -> str:
        """Return a line for a shell that runs a program as the failed one was, with these variables.

        The line of the failed one does, where it reads what to run from a file.
        """
        if self.way is Way.NONE:
            return f"Replay: {replay_line(command, env=variables, cwd=self.workspace)}"
        self._write_spec(command, variables)
        return next((line for line in failed.next.splitlines() if line.startswith("Replay: ")), "")

    def _binds(self) -> list[Bind]:
        """Say what of this machine is seen in the place, beside its /usr."""
        (self.workspace / "tmp").mkdir(exist_ok=True)
        binds: list[Bind] = [
            (self.workspace, FIXED_ROOT, True),
            (self.workspace / "tmp", Path("/tmp"), True),  # noqa: S108 - the name inside
        ]
        prefix = Path(sys.base_prefix).resolve()
        if not prefix.is_relative_to("/usr"):  # an interpreter of pyenv, uv or conda
            binds.append((prefix, prefix, False))
        return binds

    def _write_spec(self, command: Sequence[str | Path], variables: Mapping[str, str]) -> Path:
        place = self.workspace / "place"
        place.mkdir(exist_ok=True)
        spec = self.workspace / "place.json"
        write_json(
            spec,
            {
                "way": self.way.value,
                "root": str(place),
                "binds": [(str(source), str(goal), writable) for source, goal, writable in self._binds()],
                "folder": str(FIXED_ROOT),
                "variables": dict(variables),
                "command": [*map(str, command)],
            },
        )
        return spec


def choose(workspace: Path, *, log: Path) -> Isolation:
    """Return the first way that works here, proved by a program in it that writes a file, as CMake will.

    In a Docker without root the user's number is nobody there: programs run, and may write nothing.
    """
    trial = workspace / "tmp" / "trial"
    code = f"open({str(FIXED_ROOT / 'tmp' / trial.name)!r}, 'w').close()"
    python = Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()
    refusals = []
    for way in (Way.USER_NAMESPACES, Way.ROOT, Way.ENGINE):
        if way is Way.ROOT and os.getuid() != 0:
            refusals.append("root: not root")
            continue
        isolation = Isolation(way=way, workspace=workspace, python=python)
        try:
            isolation.run([python, "-IS", "-c", code], variables={"PATH": "/usr/bin:/bin"}, log=log, what="trying isolation")
        except ProgramError as error:
            # Whatever an engine says, it does not work here.
            if way is not Way.ENGINE and f"exit code {NO_PLACE}" not in error.what:
                raise
            refusals.append(f"{way.value}: {error.why.splitlines()[-1] if error.why else error.what}")
        else:
            trial.unlink(missing_ok=True)
            return isolation
    return Isolation(way=Way.NONE, workspace=workspace, python=python, why="; ".join(refusals))


def describe(isolation: Isolation) -> dict[str, str]:
    """Say it for the provenance."""
    return {"way": isolation.way.value, "root": str(isolation.root), **({"why": isolation.why} if isolation.why else {})}
