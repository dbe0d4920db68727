"""A replay of measured units on a simulated machine, by the very rule that admits them in a real build.

What it leaves out: that compiles slow one another down (shared caches, clock). So its seconds are for comparing
schedules with one another and with the lower bound, not for predicting a wall time.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envbuilder.compile.policy import next_to_start

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from envbuilder.compile.policy import Unit


@dataclass(frozen=True, kw_only=True)
class Machine:
    """`memory` in bytes is what compiles may use: all of it less the reserve."""

    cores: int
    memory: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """A simulated build: its seconds, the most memory in use at once (bytes), the most jobs at once."""

    seconds: float
    peak: int
    jobs: int


def simulate(units: Sequence[Unit], machine: Machine, choose: Callable[[Sequence[Unit], Sequence[Unit], int], Unit | None]) -> Run:
    """Run units to their end; `choose(waiting, running, unclaimed bytes)` names the next one or says wait."""
    waiting = list(units)
    running: list[tuple[float, int, Unit]] = []  # (end, number, unit): a heap
    now, peak, jobs, number = 0.0, 0, 0, 0
    while waiting or running:
        at_work = [unit for _, _, unit in running]
        used = sum(unit.peak for unit in at_work)
        unit = choose(waiting, at_work, machine.memory - used) if waiting else None
        if unit is None:
            now, _, _ = heapq.heappop(running)
            continue
        waiting.remove(unit)
        number += 1
        heapq.heappush(running, (now + unit.seconds, number, unit))
        peak, jobs = max(peak, used + unit.peak), max(jobs, len(running))
    return Run(seconds=now, peak=peak, jobs=jobs)


def launcher(machine: Machine, *, window: int | None = None) -> Callable[[Sequence[Unit], Sequence[Unit], int], Unit | None]:
    """The rule of a real build: of the units that ninja has begun (`window`; None: all), what policy.next_to_start says."""

    def choose(waiting: Sequence[Unit], running: Sequence[Unit], unclaimed: int) -> Unit | None:
        begun = waiting if window is None else waiting[: max(0, window - len(running))]
        return next_to_start(begun, running, unclaimed=unclaimed, cores=machine.cores)

    return choose


def fixed_jobs(jobs: int) -> Callable[[Sequence[Unit], Sequence[Unit], int], Unit | None]:
    """MAX_JOBS: so many at once, in ninja's order, whatever they need."""
    return lambda waiting, running, _: waiting[0] if len(running) < jobs else None


def safe_jobs(units: Sequence[Unit], machine: Machine) -> int:
    """Return the largest MAX_JOBS that never exceeds the memory in ninja's order: what tuning by hand would find at best."""
    return next((jobs for jobs in range(machine.cores, 0, -1) if simulate(units, machine, fixed_jobs(jobs)).peak <= machine.memory), 1)


def lower_bound(units: Sequence[Unit], machine: Machine) -> float:
    """Return the seconds that no schedule can undercut: work per core, the longest unit, and memory-time per memory."""
    work = sum(unit.seconds for unit in units) / machine.cores
    memory = sum(unit.seconds * unit.peak for unit in units) / machine.memory
    return max(work, memory, max((unit.seconds for unit in units), default=0.0))
