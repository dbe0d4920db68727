"""Which compile starts next, and what that makes of a whole build on a simulated machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import envbuilder.compile
from envbuilder.compile.policy import GIB, Unit, guess, next_to_start
from envbuilder.compile.schedule import Machine, fixed_jobs, launcher, lower_bound, safe_jobs, simulate

RECORDED = Path(envbuilder.compile.__file__).parent / "known_units.json"


def unit(name: str, seconds: float = 1, gib: float = 1, *, alone: bool = False) -> Unit:
    return Unit(name=name, seconds=seconds, peak=int(gib * GIB), alone=alone)


def test_the_longest_that_fits_starts_first() -> None:
    """Shortest first, or first come first served, leaves a long unit for the end, when all other cores are idle."""
    waiting = [unit("short", 1), unit("long", 9), unit("longer but too large", 10, gib=50)]
    assert next_to_start(waiting, [unit("at work")], unclaimed=4 * GIB, cores=4) == waiting[1]


def test_nothing_starts_beyond_the_cores() -> None:
    assert next_to_start([unit("a")], [unit("b"), unit("c")], unclaimed=99 * GIB, cores=2) is None


def test_nothing_starts_that_does_not_fit() -> None:
    assert next_to_start([unit("a", gib=5)], [unit("b")], unclaimed=4 * GIB, cores=8) is None


def test_alone_on_the_machine_everything_has_its_turn() -> None:
    """Else a unit larger than the memory waits for ever: a deadlock."""
    huge = unit("huge", gib=500)
    assert next_to_start([huge], [], unclaimed=-1, cores=1) == huge


def test_where_nothing_runs_what_fits_goes_before_what_does_not() -> None:
    """Others may give memory back while the small ones compile."""
    huge, small = unit("huge", 99, gib=500), unit("small")
    assert next_to_start([huge, small], [], unclaimed=4 * GIB, cores=2) == small


def test_a_unit_that_was_killed_waits_until_it_is_alone_and_stays_so() -> None:
    killed = unit("killed", seconds=99, alone=True)
    small = unit("small")
    assert next_to_start([killed, small], [unit("other")], unclaimed=99 * GIB, cores=8) == small
    assert next_to_start([killed], [unit("other")], unclaimed=99 * GIB, cores=8) is None
    assert next_to_start([killed], [], unclaimed=0, cores=8) == killed
    assert next_to_start([small], [killed], unclaimed=99 * GIB, cores=8) is None


def test_an_unknown_unit_is_guessed_by_its_kind() -> None:
    assert guess("csrc/x/scaled_mm_sm120.cu").peak > guess("csrc/marlin/a.cu").peak > guess("csrc/a.cpp").peak


UNITS = st.lists(st.tuples(st.floats(0.1, 200), st.floats(0.1, 12)), min_size=1, max_size=60)


@given(rows=UNITS, cores=st.integers(1, 24), memory=st.integers(1, 128))
@settings(max_examples=150, deadline=None)
def test_every_build_ends_within_the_memory_and_is_never_faster_than_the_bound(
    rows: list[tuple[float, float]], cores: int, memory: int
) -> None:
    """A rule that deadlocks never ends; one that counts wrongly exceeds the memory (save for a unit that is alone)."""
    units = [unit(str(number), seconds, gib) for number, (seconds, gib) in enumerate(rows)]
    machine = Machine(cores=cores, memory=memory * GIB)
    run = simulate(units, machine, launcher(machine))
    assert run.peak <= max(machine.memory, *(it.peak for it in units))
    assert run.jobs <= cores
    # The bound on memory-time holds only where no unit is larger than the memory.
    if all(it.peak <= machine.memory for it in units):
        assert run.seconds >= lower_bound(units, machine) * 0.999


def recorded() -> list[Unit]:
    return [Unit(name=row["unit"], seconds=row["seconds"], peak=row["peak"]) for row in json.loads(RECORDED.read_bytes())["units"]]


@pytest.mark.parametrize("window", [None, 80])
def test_the_recorded_build_is_within_5_percent_of_the_bound_on_a_dgx_spark(window: int | None) -> None:
    """20 cores, 128 GB, a sixteenth kept free: what the issue asks for, by the units as they were measured."""
    machine = Machine(cores=20, memory=128_000_000_000 * 15 // 16)
    units = recorded()
    run = simulate(units, machine, launcher(machine, window=window))
    assert run.seconds <= 1.05 * lower_bound(units, machine)
    assert run.peak <= machine.memory


def test_where_memory_is_short_the_launcher_beats_the_best_fixed_number_of_jobs() -> None:
    machine = Machine(cores=20, memory=30 * GIB)
    units = recorded()
    ours = simulate(units, machine, launcher(machine))
    jobs = safe_jobs(units, machine)
    assert ours.peak <= machine.memory
    assert simulate(units, machine, fixed_jobs(machine.cores)).peak > machine.memory
    assert ours.seconds < simulate(units, machine, fixed_jobs(jobs)).seconds / 2
