"""What findings and pages tell a person to type: quoted, and with programs that are there when it is pasted."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

from envbuilder.console import own_name
from envbuilder.doctor.checks.common import numbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envbuilder.facts.model import Distribution, Snapshot, Toolkit

_OURS = r"(?<!\S)(envbuilder|uv)(?= [a-z])"


def quoted(path: str) -> str:
    """Quote a path for a shell, each folder by itself: a home folder that is shown as ~ afterwards is still expanded."""
    return "/".join(shlex.quote(part) if part else "" for part in path.split("/"))


def pastable(command: str) -> str:
    """Call envbuilder as its caller did, and uv by a name that leads to one: neither is on PATH where there is only a clone.

    Root of an image without sudo needs none.
    """
    if os.geteuid() == 0 and "sudo " in command and not _which("sudo"):
        command = re.sub(r"(?<!\S)sudo ", "", command)
    return re.sub(_OURS, lambda match: quoted(own_name()) if match[1] == "envbuilder" else _uv(), command)


def _which(program: str) -> str | None:
    import shutil  # noqa: PLC0415 - and with it four compressors, where something is to be pasted

    return shutil.which(program)


def _uv() -> str:
    own = Path(sys.executable).with_name("uv")
    return "uv" if _which("uv") or not own.is_file() else quoted(str(own))


def python_of(s: Snapshot) -> str:
    """Return the environment's interpreter, quoted."""
    env = s.environment
    path = env.path if env else ""
    return quoted(env.interpreter.path if env and env.interpreter and env.kind == "prefix" else f"{path}/bin/python")


def _into(s: Snapshot) -> str:
    """Return uv's options that name the environment. A system's own Python is guarded against installers, and must be asked twice."""
    if s.environment and s.environment.path in s.environment.site_packages:  # made with `pip install --target`: no Python of its own
        return f"--target {quoted(s.environment.path)}"
    guarded = s.environment is not None and s.environment.kind == "prefix"
    return f"--python {python_of(s)}{' --break-system-packages' if guarded else ''}"


def install(s: Snapshot, *requirements: str, options: str = "") -> tuple[str, ...]:
    wanted = " ".join(map(shlex.quote, requirements))
    return (f"uv pip install {_into(s)} {options}{' ' if options else ''}{wanted}",)


def reinstall(s: Snapshot, *entries: Distribution) -> tuple[str, ...]:
    """Bring the files of distributions back, in the versions that are there; torch and its companions from its CUDA's index."""
    wanted = [f"{entry.name}=={entry.version.partition('+')[0]}" for entry in entries]
    companions = any(entry.name.startswith("torch") for entry in entries)
    return install(s, *wanted, options=f"--reinstall --no-deps{backend(s) if companions else ''}")


def uninstall(s: Snapshot, *names: str) -> tuple[str, ...]:
    return (f"uv pip uninstall {_into(s)} {' '.join(map(shlex.quote, names))}",)


def backend(s: Snapshot) -> str:
    """Return uv's option for torch's index: of the CUDA that the environment's torch was built for, "" where it has none."""
    torch = s.environment.torch if s.environment else None
    if torch is None:
        return ""
    return f" --torch-backend cu{''.join(map(str, numbers(torch.cuda)[:2]))}" if numbers(torch.cuda) else " --torch-backend cpu"


def align(s: Snapshot) -> tuple[str, ...]:
    return (f"envbuilder align --env {quoted(s.environment.path if s.environment else '')}",)


def anew(s: Snapshot, python: str, *, options: str = "") -> tuple[str, ...]:
    """Make a virtual environment again beside what is set aside: nothing is cleared, and what is no venv is left to its owner."""
    env = s.environment
    if env is None or env.kind != "venv":
        return ()
    place = quoted(env.path.rstrip("/"))
    return (f"mv -T {place} {place}.old && uv venv {options}{' ' if options else ''}--python {shlex.quote(python)} {place}",)


def toolkit(s: Snapshot, *, least: tuple[int, ...] = (), most: tuple[int, ...] = ()) -> Toolkit | None:
    """Return the newest toolkit of the machine that can compile and whose release is within the bounds."""
    fitting = [
        kit
        for kit in s.toolkits or ()
        if kit.nvcc and numbers(kit.release) and numbers(kit.release) >= least and (not most or numbers(kit.release) <= most)
    ]
    return max(fitting, key=lambda kit: numbers(kit.release), default=None)


def first_on_path(kit: Toolkit) -> str:
    """Return what puts a toolkit before all others in this shell."""
    return f"export CUDA_HOME={quoted(kit.path)} PATH={quoted(kit.path)}/bin:$PATH"


def a_toolkit(s: Snapshot, *, least: tuple[int, ...] = (), most: tuple[int, ...] = ()) -> tuple[str, ...]:
    """Return what makes a toolkit within the bounds the first: one that is there, or NVIDIA's package of one."""
    if kit := toolkit(s, least=least, most=most):
        return (first_on_path(kit),)
    major, minor = (*most, 0)[:2] if most else (13, 0)
    home = f"/usr/local/cuda-{major}.{minor}"
    return (f"sudo apt install cuda-toolkit-{major}-{minor}", f"export CUDA_HOME={home} PATH={home}/bin:$PATH")
