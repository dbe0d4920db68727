"""What differs between two snapshots: field by field, distributions by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envbuilder.facts import redact
from envbuilder.facts.codec import to_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuilder.facts.model import Snapshot

# What is another at every look, and says nothing of a machine or an environment.
_PASSING = (
    "readers",
    "tool",
    "schema",
    "memory.meminfo",
    "memory.pressure_full_avg10",
    "nvml.gpus",
    "processes",
    "kernel_log",
    "places",
    "environment.path",
)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One difference: `where` is a path like environment.distributions.torch; None on the side where it is absent."""

    where: str
    first: str | None
    second: str | None


def differences(first: Snapshot, second: Snapshot) -> list[Difference]:
    """Return what differs, what changes from moment to moment left out; in the order of the snapshot."""
    one, other = _flat(to_json(redact.tree(first))), _flat(to_json(redact.tree(second)))
    names = [*one, *(name for name in other if name not in one)]
    return [Difference(where=name, first=one.get(name), second=other.get(name)) for name in names if one.get(name) != other.get(name)]


def _flat(value: dict[str, Any]) -> dict[str, str]:
    return dict(_leaves("", value))


def _leaves(where: str, value: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any part of a JSON document
    if where.startswith(_PASSING):
        return
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(f"{where}.{key}".lstrip("."), part)
    elif isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        for part in value:
            yield from _named(where, part)
    elif value is not None and value not in ("", []):
        yield where, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _named(where: str, part: dict[str, Any]) -> Iterator[tuple[str, str]]:
    name = part.get("name") or part.get("path") or part.get("address") or part.get("purpose")
    if where.endswith("distributions"):
        build = f" (build {part['build']})" if part.get("build") else ""
        yield f"{where}.{name}", f"{part.get('version', '')}{build}"
        return
    for key, value in part.items():
        if key not in {"name", "path", "address", "purpose"}:
            yield from _leaves(f"{where}.{name}.{key}", value)
