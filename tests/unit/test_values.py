"""`@value` stands in for `dataclass(frozen=True, kw_only=True)`: whatever the rest relies on must hold for it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
import subprocess
import sys

import pytest

from envbuilder.values import made, replace, value


@value
class Point:
    """A point."""

    x: int
    y: int = 0
    names: dict[str, str] = made(default_factory=dict)

    @property
    def far(self) -> bool:
        return self.x > 9


@value
class Other:
    """Has the fields of a point, and is none."""

    x: int
    y: int = 0
    names: dict[str, str] = made(default_factory=dict)


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
    assert dataclasses.asdict(point) == {"x": 1, "y": 0, "names": {"a": "b"}}
    assert [one.default_factory for one in dataclasses.fields(Point)][1:] == [dataclasses.MISSING, dict]
    assert dataclasses.replace(point, y=5) == replace(point, y=5) == Point(x=1, y=5, names={"a": "b"})
    assert pickle.loads(pickle.dumps(point)) == copy.deepcopy(point) == point  # noqa: S301 - our own bytes
    assert repr(point) == "Point(x=1, y=0, names={'a': 'b'})"


def test_what_a_value_remembers_is_no_field() -> None:
    """A cached property lies among the fields: a changed copy must compute it again."""
    first = Remembering(x=1)
    assert first.twice == 2
    assert replace(first, x=2).twice == 4
    with pytest.raises(TypeError):
        replace(first, twice=3)


@value
class Remembering:
    """Computes once."""

    x: int

    @functools.cached_property
    def twice(self) -> int:
        return 2 * self.x


def test_defining_values_does_not_import_dataclasses() -> None:
    """It takes a tenth of the doctor's time; whoever asks for the fields pays for it."""
    code = "import sys; import envbuilder.facts.model, envbuilder.doctor.model, envbuilder.cli; print('dataclasses' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"], check=False, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_a_class_costs_a_fraction_of_what_dataclass_generates() -> None:
    """It is why it exists: no code is compiled for a class."""
    assert all(Point.__dict__[name] is Plain.__dict__[name] for name in ("__init__", "__eq__", "__hash__", "__setattr__"))
