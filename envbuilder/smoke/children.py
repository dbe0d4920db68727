"""What the programs of the smoke test have in common: their scripts, their variables, what is said when they fail."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from envbuilder import files, process
from envbuilder.errors import ProgramError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuilder.errors import EnvbuilderError

INSIDE = Path(__file__).parent / "inside"
_PROBE_TIMEOUT_S = 60.0

_MACHINES = {62: "x86_64", 183: "aarch64"}  # EM_X86_64, EM_AARCH64

_COMMON = {
    "HF_HUB_OFFLINE": "1",  # nothing is downloaded: a name that is not a folder is an error at once
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OMP_NUM_THREADS": "1",  # two threads on a busy machine made the canary's training 18 times slower
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
    "PYTHONHASHSEED": "0",
}


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What a built environment says of itself; `cuda` is the version that its torch was built for."""

    machine: str
    cuda: str | None
    versions: dict[str, str]


def variables(python: Path, *, chosen: Mapping[str, str] | None = None, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables for a child under a built environment's interpreter: as `envbuilder run` has them, and the smoke test's own.

    `chosen` is what the target sets. The environment's `bin` comes first on PATH: FlashInfer starts its `ninja` by name.
    """
    env = {**process.inside(python.parent.parent, chosen or {}), **_COMMON, **(extra or {})}
    # A person's setting against `__pycache__` would have each of vLLM's processes compile 1,700 modules: 80 s instead of 24.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    return env


def probe(python: Path, *, log: Path) -> Environment:
    """Ask an environment what it is. Raises ProgramError where its interpreter does not run on this machine."""
    make_room(log)
    done = process.run(
        [python, INSIDE / "probe.py"],
        log=log,
        env=variables(python),
        capture=True,
        timeout_s=_PROBE_TIMEOUT_S,
        what="asking the environment",
    )
    try:
        return Environment(**json.loads(done.stdout))
    except (ValueError, TypeError) as error:
        raise ProgramError(f"{python} did not say what it is", why=done.stdout[-500:], next=f"Log: {log}") from error


def make_room(log: Path) -> None:
    """Make the folder that a log lies in."""
    with files.storage_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)


def elf_machine(program: Path) -> str:
    """Return what kind of machine an ELF program is for; "unknown" where it is none (elf(5): e_machine)."""
    try:
        with program.open("rb") as file:
            head = file.read(20)
    except OSError:
        return "unknown"
    if head[:4] != b"\x7fELF" or len(head) < 20:
        return "unknown"
    number = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    return _MACHINES.get(number, f"machine {number}")


def told(error: EnvbuilderError) -> str:
    """An error as one paragraph: what, and why."""
    return f"{error.what}: {error.why}" if error.why else error.what
