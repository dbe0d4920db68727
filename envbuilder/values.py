"""`@value`: a frozen, keyword-only dataclass whose methods are written once, here.

`dataclass` writes and compiles six methods for every class, nearly a millisecond each time the program starts; a
snapshot has 28 classes, and the doctor's whole budget is a third of a second. `fields`, `replace` and `is_dataclass`
work as ever, and so does the type checker.
"""

from __future__ import annotations

from dataclasses import MISSING, FrozenInstanceError, dataclass, field
from typing import Any, NoReturn, TypeVar, dataclass_transform

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def value(cls: type[_T]) -> type[_T]:
    """Make a class with annotated fields a frozen dataclass. Give it a docstring: `dataclass` would compose one, slowly."""
    made = dataclass(init=False, repr=False, eq=False, kw_only=True)(cls)
    for name in ("__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__"):
        setattr(made, name, _Methods.__dict__[name])
    return made


class _Methods:
    __dataclass_fields__: dict[str, Any]

    def __init__(self, **given: Any) -> None:  # noqa: ANN401 - the fields' types are the type checker's matter
        values = self.__dict__
        for name, each in self.__dataclass_fields__.items():
            if name in given:
                values[name] = given.pop(name)
            elif each.default is not MISSING:
                values[name] = each.default
            elif each.default_factory is not MISSING:
                values[name] = each.default_factory()
            else:
                raise TypeError(f"{type(self).__name__}: the field {name!r} is not given")
        if given:
            raise TypeError(f"{type(self).__name__} has no field {next(iter(given))!r}")

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({fields})"

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete field {name!r}")
