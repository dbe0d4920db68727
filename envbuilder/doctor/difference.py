"""What differs between two snapshots: field by field, distributions by name."""

from __future__ import annotations

from dataclasses import dataclass

from envbuilder.facts import redact
from envbuilder.facts.codec import to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from envbuilder.facts.model import Snapshot

# What is another at every look, and says nothing of a machine or an environment.
_PASSING = frozenset(
    {
        "readers",
        "tool",
        "schema",
        "chosen",
        "memory.meminfo",
        "memory.pressure_full_avg10",
        "nvml.gpus",
        "processes",
        "kernel_log",
        "places",
        "environment.path",
    }
)
_NAMES = ("name", "path", "address", "purpose")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One difference: `where` is a path like environment.distributions.torch; None on the side where it is absent."""

    where: str
    first: str | None
    second: str | None


def differences(first: Snapshot, second: Snapshot) -> list[Difference]:
    """Return what differs, what changes from moment to moment left out; in the order of the snapshot.

    Paths in an environment are compared from its folder: two that hold the same do not differ by where they lie.
    """
    one, other = _flat(first), _flat(second)
    names = [*one, *(name for name in other if name not in one)]
    return [Difference(where=name, first=one.get(name), second=other.get(name)) for name in names if one.get(name) != other.get(name)]


def _flat(snapshot: Snapshot) -> dict[str, str]:
    redacted = redact.tree(snapshot)
    whole = to_json(redacted)
    if redacted.environment is not None:
        whole["environment"] = _from_folder(whole["environment"], redacted.environment.path.rstrip("/"))
    flat: dict[str, str] = {}
    for where, text in _leaves("", whole):  # a distribution may be there twice
        flat[where] = f"{flat[where]}, {text}" if where in flat else text
    return flat


def _from_folder(value: Any, folder: str) -> Any:  # noqa: ANN401 - any part of a JSON document
    if isinstance(value, str):
        return f"ENV{value.removeprefix(folder)}" if folder and f"{value}/".startswith(f"{folder}/") else value
    if isinstance(value, dict):
        return {key: _from_folder(part, folder) for key, part in value.items()}
    return [_from_folder(part, folder) for part in value] if isinstance(value, list) else value


def _leaves(where: str, value: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any part of a JSON document
    if where in _PASSING:
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
    name = next((part[key] for key in _NAMES if part.get(key)), "")
    if where.endswith("distributions"):
        build = f" (build {part['build']})" if part.get("build") else ""
        yield f"{where}.{name}", f"{part.get('version', '')}{build}"
        return
    found = [leaf for key, value in part.items() if key not in _NAMES for leaf in _leaves(f"{where}.{name}.{key}", value)]
    yield from found or [(f"{where}.{name}", "there")]
