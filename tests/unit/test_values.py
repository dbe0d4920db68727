"""`@value` stands in for `dataclass(frozen=True, kw_only=True)`: whatever the rest relies on must hold for it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
import subprocess
import sys
import typing

import pytest

from envbuilder.values import NamedTuple, made, replace, value


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


def test_what_a_property_keeps_makes_no_other_value() -> None:
    """A cached_property leaves its result in the value: the same value, asked or not, must stay the same key of a dict."""
    one, other = Remembering(x=1), Remembering(x=1)
    before = hash(one), repr(one)
    assert one.twice == 2
    assert one == other
    assert (hash(one), repr(one)) == before == (hash(other), repr(other))


def test_neither_the_doctor_nor_what_reads_for_it_imports_what_values_stand_in_for() -> None:
    """A fifth of the doctor's time: a `from typing import TYPE_CHECKING` anywhere among its modules brings it back."""
    code = """
import importlib, pathlib, sys
import envbuilder.cli, envbuilder.commands.abi, envbuilder.commands.doctor, envbuilder.facts.extensions, envbuilder.facts.snapshot
from envbuilder import facts
from envbuilder.doctor import examine, registry, render
registry.all_checks()
for path in pathlib.Path(facts.__file__).parent.glob("*.py"):
    if path.stem not in {"codec", "nvml_probe"}:  # what saves and loads asks for the fields
        importlib.import_module(f"envbuilder.facts.{path.stem}")
print(sorted({"dataclasses", "typing", "inspect"} & set(sys.modules)))
"""
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


class Pair(NamedTuple):
    """A tuple with names."""

    first: int
    second: str = "b"

    def __str__(self) -> str:
        return f"{self.first}{self.second}"


class TypedPair(typing.NamedTuple):
    """The same, of the standard library."""

    first: int
    second: str = "b"


@pytest.mark.parametrize("kind", [Pair, TypedPair])
def test_a_named_tuple_is_what_typing_makes(kind: type) -> None:
    """A tuple to whoever unpacks, compares, hashes, pickles or copies it, and what `dataclasses.asdict` knows as one."""
    pair = kind(1, second="c")
    assert pair == (1, "c")
    assert hash(pair) == hash((1, "c"))
    assert kind(1) == kind(first=1, second="b") == (1, "b")
    assert (pair.first, pair.second, pair[1], kind._fields) == (1, "c", "c", ("first", "second"))
    assert repr(pair) == f"{kind.__name__}(first=1, second='c')"
    assert copy.deepcopy(pair) == pair
    for again in (pickle.loads(pickle.dumps(pair)), copy.copy(pair)):  # noqa: S301
        assert (again, type(again)) == (pair, kind)
    with pytest.raises(AttributeError):
        pair.first = 2


@pytest.mark.parametrize("kind", [Pair, TypedPair])
@pytest.mark.parametrize(
    ("given", "named"), [((), {}), ((1, "b", 2), {}), ((1,), {"third": 3}), ((1,), {"first": 1}), ((), {"second": "b"})]
)
def test_a_named_tuple_takes_its_fields_and_no_others(kind: type, given: tuple[object, ...], named: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        kind(*given, **named)


def test_methods_of_a_named_tuple_are_its_own() -> None:
    assert str(Pair(1)) == "1b"


def test_a_class_costs_a_fraction_of_what_dataclass_generates() -> None:
    """It is why it exists: no code is compiled for a class."""
    assert all(Point.__dict__[name] is Plain.__dict__[name] for name in ("__init__", "__eq__", "__hash__", "__setattr__"))
