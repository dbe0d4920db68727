"""A snapshot to JSON and back, checked field by field.

pydantic would do it too, at 80 ms of start time for a command whose whole budget is 250 ms; the types used here
are few (str, int, float, bool, tuples, dicts of str, dataclasses, None).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing

from envbuilder.errors import ConfigurationError
from envbuilder.facts.model import SCHEMA, Snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

_LIMIT_BYTES = 64 << 20
_LARGEST = 10**100  # no machine has so much of anything, and a float still holds it
_MOST_SHOWN = 60


def to_json(snapshot: Snapshot) -> dict[str, Any]:
    value: dict[str, Any] = _plain(snapshot)
    return value


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever the model holds
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def load(path: Path) -> Snapshot:
    """Read a saved snapshot. Raises ConfigurationError: not there, not JSON, another version, or nonsense in it."""
    try:
        with path.open("rb") as file:
            raw = file.read(_LIMIT_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read the snapshot {path}", why=error.strerror or str(error)) from error
    if len(raw) > _LIMIT_BYTES:
        raise ConfigurationError(f"{path} is no snapshot", why="It is larger than 64 MiB.")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{path} is no snapshot", why=f"It is not JSON: {error}", next="Make one with `envbuilder doctor --save FILE`."
        ) from error
    return from_json(value, name=str(path))


def from_json(value: Any, *, name: str = "snapshot") -> Snapshot:  # noqa: ANN401 - this is where it gets its type
    """Return the snapshot that `value` spells. Raises ConfigurationError, naming the field."""
    if not isinstance(value, dict):
        raise ConfigurationError(f"{name} is no snapshot", why="Its top level is not a JSON object.")
    schema = value.get("schema")
    if schema != SCHEMA:
        raise ConfigurationError(
            f"{name} cannot be replayed",
            why=f"Its schema is {_shown(schema)}; this envbuilder reads {SCHEMA!r}.",
            next="Save it again with this version: `envbuilder doctor --save FILE`.",
        )
    try:
        snapshot: Snapshot = _typed(Snapshot, value, "")
    except _MismatchError as error:
        raise ConfigurationError(f"{name} is not a whole snapshot", why=str(error)) from error
    return snapshot


class _MismatchError(Exception):
    pass


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _typed(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401, PLR0911 - one return per shape
    origin = typing.get_origin(kind)
    if origin in {types.UnionType, typing.Union}:
        if value is None:
            return None
        kind = next(part for part in typing.get_args(kind) if part is not types.NoneType)
        return _typed(kind, value, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _object(kind, value, where)
    if origin is tuple:
        _expect(isinstance(value, list), where, "a list", value)
        item = typing.get_args(kind)[0]
        return tuple(_typed(item, part, f"{where}[{index}]") for index, part in enumerate(value))
    if origin is dict:
        _expect(isinstance(value, dict), where, "an object", value)
        item = typing.get_args(kind)[1]
        return {key: _typed(item, part, f"{where}[{_shown(key)}]") for key, part in value.items()}
    if isinstance(value, int):
        _expect(abs(value) <= _LARGEST, where, "a number of at most 100 digits", value)
    if kind is float:
        _expect(isinstance(value, int | float) and not isinstance(value, bool), where, "a number", value)
        return float(value)
    _expect(type(value) is kind, where, {"str": "a string", "int": "an integer", "bool": "true or false"}[kind.__name__], value)
    return value


def _object(kind: type, value: Any, where: str) -> Any:  # noqa: ANN401 - a dataclass
    _expect(isinstance(value, dict), where, "an object", value)
    hints = _hints(kind)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise _MismatchError(f"{where or 'top level'}: unknown field {_shown(unknown[0])}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    absent = [
        name
        for name, field in fields.items()
        if name not in value and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if absent:
        raise _MismatchError(f"{where or 'top level'}: field {absent[0]!r} is missing")
    return kind(**{name: _typed(hints[name], part, f"{where}.{name}".lstrip(".")) for name, part in value.items()})


def _expect(holds: bool, where: str, what: str, value: Any) -> None:  # noqa: ANN401, FBT001 - the value is only shown
    if not holds:
        raise _MismatchError(f"{where}: expected {what}, got {_shown(value)}")


def _shown(value: Any) -> str:  # noqa: ANN401 - whatever JSON can hold
    """Return the beginning of a value as it may stand in a message: it may be a megabyte, or a terminal's own language."""
    return repr(value)[:_MOST_SHOWN]
