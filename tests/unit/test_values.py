"""`@value` stands in for `dataclass(frozen=True, kw_only=True)`: whatever the rest relies on must hold for it."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import field

import pytest

from envbuilder.values import value


@value
class Point:
    """A point."""

    x: int
    y: int = 0
    names: dict[str, str] = field(default_factory=dict)

    @property
    def far(self) -> bool:
        return self.x > 9


@value
class Other:
    """Has the fields of a point, and is none."""

    x: int
    y: int = 0
    names: dict[str, str] = field(default_factory=dict)


def test_it_is_made_of_names_and_defaults_and_nothing_else() -> None:
    assert (Point(x=1).y, Point(x=10).far) == (0, True)
    assert Point(x=1).names is not Point(x=1).names, "a default that two values share would be changed by both"
    for wrong in ({}, {"x": 1, "z": 2}):
        with pytest.raises(TypeError):
            Point(**wrong)
    with pytest.raises(TypeError):
        Point(1)  # type: ignore[call-arg, misc]


def test_it_is_frozen() -> None:
    point = Point(x=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del point.x
    with pytest.raises(dataclasses.FrozenInstanceError):
        point.z = 2  # type: ignore[attr-defined]


def test_equal_values_are_equal_and_of_one_hash() -> None:
    assert Point(x=1) == Point(x=1, y=0)
    assert Point(x=1) != Point(x=2)
    assert Point(x=1) != Other(x=1)
    assert hash(Plain(x=1)) == hash(Plain(x=1))


@value
class Plain:
    """Can be a key."""

    x: int


def test_the_tools_for_dataclasses_work() -> None:
    point = Point(x=1, names={"a": "b"})
    assert dataclasses.is_dataclass(point)
    assert [one.name for one in dataclasses.fields(point)] == ["x", "y", "names"]
    assert dataclasses.replace(point, y=5) == Point(x=1, y=5, names={"a": "b"})
    assert pickle.loads(pickle.dumps(point)) == copy.deepcopy(point) == point  # noqa: S301 - our own bytes
    assert repr(point) == "Point(x=1, y=0, names={'a': 'b'})"


def test_a_class_costs_a_fraction_of_what_dataclass_generates() -> None:
    """It is why it exists: no code is compiled for a class."""
    assert all(Point.__dict__[name] is Plain.__dict__[name] for name in ("__init__", "__eq__", "__hash__", "__setattr__"))
