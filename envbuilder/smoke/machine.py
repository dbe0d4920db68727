"""Whether this machine can try an environment at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from envbuilder.smoke import children
from envbuilder.smoke.results import Device

if TYPE_CHECKING:
    from envbuilder.smoke.children import Environment

_DRIVER = Path("/proc/driver/nvidia/version")  # written by NVIDIA's kernel module
_WSL = Path("/dev/dxg")


def look(python: Path, *, log: Path) -> tuple[Device, str]:
    """Return the device that an environment was built for, and what keeps this machine from trying it (or "").

    Raises ProgramError where the interpreter is of this machine's kind and does not run all the same.
    """
    machine = children.elf_machine(python)
    here = children.elf_machine(Path("/proc/self/exe"))
    if machine == "unknown":
        return Device.CUDA, f"there is no program at {python} (it may be a link to another machine's interpreter)"
    if machine != here:
        return Device.CUDA, f"the environment is for {machine}, and this machine is {here}"
    environment = children.probe(python, log=log)
    return device_of(environment), obstacle(environment, has_gpu=has_gpu())


def has_gpu() -> bool:
    """Whether NVIDIA's driver is at work on this machine."""
    return _DRIVER.exists() or _WSL.exists()


def device_of(environment: Environment) -> Device:
    return Device.CUDA if environment.cuda else Device.CPU


def obstacle(environment: Environment, *, has_gpu: bool) -> str:
    if environment.cuda and not has_gpu:
        return f"the environment's torch is built for CUDA {environment.cuda}, and this machine has no NVIDIA GPU"
    return ""
