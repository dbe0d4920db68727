"""The register of all checks: modules of `checks/`, imported together on first use; for one id, only the module of its family."""

from __future__ import annotations

import functools
import importlib

from envbuilder.doctor.model import Check, Severity
from envbuilder.errors import UnknownNameError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from envbuilder.doctor.model import Verdict
    from envbuilder.facts.model import Snapshot

    Judge = Callable[[Snapshot], Verdict]

# The family of an id (EB-DRV-003: DRV) -> the module that its checks are in; the order is that of reading.
FAMILIES = {
    "MACH": "machine",
    "DRV": "driver",
    "MEM": "memory",
    "DISK": "disk",
    "CUDA": "cuda",
    "CTR": "containers",
    "ENV": "environment",
    "PKG": "packages",
    "TORCH": "torch",
    "ABI": "abi",
    "GPU": "kernels",
    "TRI": "kernels",
    "FI": "kernels",
    "VLLM": "vllm",
    "TF": "models",
    "LLMC": "models",
    "CKPT": "models",
    "BUILD": "build",
    "VAR": "variables",
}
_checks: dict[str, Check] = {}


def check(id: str, name: str, severity: Severity, *, needs: tuple[str, ...] = (), after: tuple[str, ...] = ()) -> Callable[[Judge], Judge]:
    """Register a function as a check."""

    def register(judge: Judge) -> Judge:
        _add(Check(id=id, name=name, severity=severity, needs=needs, after=after, judge=judge))
        return judge

    return register


def only_in_logs(id: str, name: str, severity: Severity) -> None:
    """Register a failure that leaves no static trace: it is recognised in logs alone."""
    _add(Check(id=id, name=name, severity=severity))


def _add(entry: Check) -> None:
    if not _is_id(entry.id):
        raise ValueError(f"{entry.id!r} is no check id")
    if entry.id in _checks:
        raise ValueError(f"{entry.id} is registered twice")
    _checks[entry.id] = entry


def _is_id(text: str) -> bool:
    """Whether a text has the form of an id, EB-FAMILY-NNN."""
    start, _, rest = text.partition("-")
    family, _, number = rest.partition("-")
    return start == "EB" and family in FAMILIES and len(number) == 3 and number.isdecimal()


@functools.cache
def all_checks() -> Mapping[str, Check]:
    """Return id → check, in the order of the families."""
    modules = list(dict.fromkeys(FAMILIES.values()))
    for module in modules:
        _import(module)
    return {entry.id: entry for entry in sorted(_checks.values(), key=lambda entry: modules.index(FAMILIES[entry.family]))}


def _import(module: str) -> None:
    importlib.import_module(f"envbuilder.doctor.checks.{module}")


def find(id_or_name: str) -> Check:
    """Return a check by its id (any case) or by its name. Raises UnknownNameError."""
    wanted = id_or_name.strip()
    if _is_id(large := wanted.upper()):
        _import(FAMILIES[large.split("-")[1]])
        if found := _checks.get(large):
            return found
    checks = all_checks()
    found = next((entry for entry in checks.values() if entry.name == wanted.lower()), None)
    if found is None:
        raise UnknownNameError("check", wanted, [*checks, *(entry.name for entry in checks.values())])
    return found
