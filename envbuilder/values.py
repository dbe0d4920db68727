"""`@value` and `NamedTuple`: what `dataclass` and `typing.NamedTuple` are, with methods that are written once, here.

Those two write and compile methods for every class, up to a millisecond each time the program starts, and their modules
(`dataclasses` brings `inspect`, `ast` and `dis` along) take ten more: together a fifth of what the doctor may take. To
whoever asks (`dataclasses.fields`, `asdict`, `is_dataclass`, the type checker) a value is a dataclass as ever.

For the same reason the modules that the doctor imports say `TYPE_CHECKING = False`, which type checkers take for
`typing`'s constant, and import from `typing` only below it. A test holds that neither module is imported.
"""

from __future__ import annotations

from operator import itemgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, TypeVar, dataclass_transform
    from typing import NamedTuple as NamedTuple  # noqa: PLC0414 - for others

    _T = TypeVar("_T")
else:

    def dataclass_transform(**_):  # noqa: ANN003, ANN201
        return lambda decorator: decorator

    class NamedTuple(tuple):  # noqa: SLOT001 - its classes say no __slots__ either
        """A tuple whose items have names: a class with annotated fields, those with defaults last."""

        def __init_subclass__(cls) -> None:
            cls._fields = tuple(cls.__annotations__)
            cls._defaults = {name: cls.__dict__[name] for name in cls._fields if name in cls.__dict__}
            for place, name in enumerate(cls._fields):
                setattr(cls, name, property(itemgetter(place)))

        def __new__(cls, *values, **named):  # noqa: ANN002, ANN003, ANN204
            fields = cls._fields
            if named or len(values) != len(fields):
                rest = fields[len(values) :]
                found = {**cls._defaults, **named}
                if len(values) > len(fields) or not named.keys() <= set(rest) or not found.keys() >= set(rest):
                    raise TypeError(f"{cls.__name__} takes {', '.join(fields)}")
                values = (*values, *(found[name] for name in rest))
            return tuple.__new__(cls, values)

        def __getnewargs__(self) -> tuple[object, ...]:
            return tuple(self)

        def __repr__(self) -> str:
            return f"{type(self).__name__}({', '.join(f'{name}={each!r}' for name, each in zip(self._fields, self, strict=True))})"


_REQUIRED = object()


class _Made:
    """A default that is made anew for each value."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        self.factory = factory


def made(*, default_factory: Callable[[], _T]) -> _T:
    """Give a field a default that each value has for itself."""
    return _Made(default_factory)  # type: ignore[return-value]  # as `dataclasses.field` does: the class never sees it


def replace(original: _T, /, **changes: Any) -> _T:  # noqa: ANN401 - the fields' types are the type checker's matter
    """Return the same value with some fields changed."""
    names = original.__value_fields__  # type: ignore[attr-defined]
    kept = {name: each for name, each in original.__dict__.items() if name in names}
    return type(original)(**{**kept, **changes})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(made,))
def value(cls: type[_T]) -> type[_T]:
    """Make a class with annotated fields a frozen dataclass; it inherits no other one's fields."""
    fields = {name: cls.__dict__.get(name, _REQUIRED) for name in cls.__annotations__}
    factories = {name: default.factory for name, default in fields.items() if isinstance(default, _Made)}
    for name in factories:
        delattr(cls, name)
    for name in ("__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__"):
        setattr(cls, name, _Methods.__dict__[name])
    cls.__value_fields__ = fields  # type: ignore[attr-defined]
    cls.__value_factories__ = factories  # type: ignore[attr-defined]
    cls.__value_defaults__ = {  # type: ignore[attr-defined]
        name: default for name, default in fields.items() if name not in factories and default is not _REQUIRED
    }
    cls.__dataclass_fields__ = _DATACLASS_FIELDS  # type: ignore[attr-defined]
    return cls


class _DataclassFields:
    """What `dataclasses` looks for in a class, made when it first does."""

    def __get__(self, instance: object, owner: type) -> dict[str, Any]:
        import dataclasses  # noqa: PLC0415 - see the module's docstring

        fields = owner.__value_fields__  # type: ignore[attr-defined]
        content: dict[str, Any] = {
            name: dataclasses.field(default_factory=default.factory) if isinstance(default, _Made) else default
            for name, default in fields.items()
            if default is not _REQUIRED
        }
        content |= {
            "__annotations__": {name: owner.__annotations__[name] for name in fields},
            "__module__": owner.__module__,
            "__doc__": "",
        }
        described: type = dataclasses.dataclass(init=False, repr=False, eq=False, kw_only=True)(type(owner.__name__, (), content))
        found: dict[str, Any] = described.__dict__["__dataclass_fields__"]
        owner.__dataclass_fields__ = found  # type: ignore[attr-defined]
        return found


_DATACLASS_FIELDS = _DataclassFields()


class _Methods:
    __value_fields__: dict[str, Any]
    __value_defaults__: dict[str, Any]
    __value_factories__: dict[str, Callable[[], Any]]

    def __init__(self, **given: Any) -> None:  # noqa: ANN401 - the fields' types are the type checker's matter
        values = self.__dict__
        values.update(self.__value_defaults__)
        values.update(given)
        for name, factory in self.__value_factories__.items():
            if name not in given:
                values[name] = factory()
        fields = self.__value_fields__
        if values.keys() != fields.keys():
            for name in values.keys() - fields.keys():
                raise TypeError(f"{type(self).__name__} has no field {name!r}")
            absent = next(name for name in fields if name not in values)
            raise TypeError(f"{type(self).__name__}: the field {absent!r} is not given")

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={self.__dict__[name]!r}" for name in self.__value_fields__)
        return f"{type(self).__name__}({fields})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        ours, theirs = self.__dict__, other.__dict__  # with what a cached_property has left there
        return ours == theirs or all(ours[name] == theirs[name] for name in self.__value_fields__)

    def __hash__(self) -> int:
        return hash(tuple(map(self.__dict__.__getitem__, self.__value_fields__)))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise _frozen(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise _frozen(f"cannot delete field {name!r}")


def _frozen(message: str) -> AttributeError:
    from dataclasses import FrozenInstanceError  # noqa: PLC0415 - see the module's docstring

    return FrozenInstanceError(message)
