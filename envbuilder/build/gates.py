"""The gates that a target names: what must hold in an environment before anything is run in it, read from its files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, assert_never

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from envbuilder.errors import GateError
from envbuilder.facts.site_packages import distributions, torch_build
from envbuilder.facts.vllm_source import attention_backends, vllm_module_of
from envbuilder.targets.model import ArchitectureGate, AttentionBackendGate, TorchBuildGate, VersionGate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from envbuilder.targets.model import Gate


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """What a gate asked for and what was found; `found` is never empty, so that a report always shows evidence."""

    environment: str
    subject: str
    expected: str
    found: str
    holds: bool
    why: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_gates(environment: str, gates: Iterable[Gate], site: Path) -> list[GateResult]:
    """Check every gate of an environment; none stops at the first that does not hold."""
    return [_check(environment, gate, site) for gate in gates]


def require(results: Sequence[GateResult]) -> None:
    """Raise GateError naming each gate that does not hold."""
    failed = [result for result in results if not result.holds]
    if failed:
        raise GateError(
            f"{len(failed)} of {len(results)} gates do not hold",
            why="\n".join(f"{it.environment}: {it.subject} must be {it.expected}, found {it.found}: {it.why}" for it in failed),
            next="The lock and the target disagree: run `envbuilder lock` for this release, or mend the target's gates.",
        )


def _check(environment: str, gate: Gate, site: Path) -> GateResult:
    match gate:
        case VersionGate():
            found = distributions(site).get(canonicalize_name(gate.distribution))
            holds = found is not None and SpecifierSet(gate.specifier).contains(found, prereleases=True)
            subject, expected, shown = gate.distribution, gate.specifier, found or "not installed"
        case TorchBuildGate():
            build = torch_build(site)
            holds = build is not None and (build.version, build.cuda) == (gate.version, gate.cuda)
            subject, expected = "torch's build", _build(gate.version, gate.cuda)
            shown = _build(build.version, build.cuda) if build else "not installed"
        case ArchitectureGate():
            module = vllm_module_of(site, gate.architecture)
            holds = module is not None
            subject, expected, shown = (
                gate.architecture,
                "in vLLM's registry",
                f"vllm.model_executor.models.{module}" if module else "unknown to it",
            )
        case AttentionBackendGate():
            backends = attention_backends(site)
            holds = gate.backend in backends
            subject, expected = f"--attention-backend {gate.backend}", "taken by vLLM's server"
            shown = "in its registry" if holds else f"one of {', '.join(backends)}" if backends else "no such option"
        case _:
            assert_never(gate)
    return GateResult(environment=environment, subject=subject, expected=expected, found=shown, holds=holds, why=gate.why)


def _build(version: str, cuda: str | None) -> str:
    return f"{version} ({'CUDA ' + cuda if cuda else 'CPU'})"
