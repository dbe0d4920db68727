"""The launcher's schedule against MAX_JOBS, on simulated machines, from measured units.

    python bench/schedule.py [RECORD.json]     # default: the units that ship with envbuilder

The launcher's rule is the very function that admits compiles in a build (envbuilder/compile/policy.py). MAX_JOBS runs
in ninja's order, whatever a unit needs; "by hand" is the largest MAX_JOBS that never exceeds the memory in that order,
found by trying all. Seconds are the units' CPU-seconds alone on a machine: for comparing schedules, not for predicting.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import envbuilder.compile
from envbuilder.compile.admission import reserve_of
from envbuilder.compile.policy import GIB, Unit
from envbuilder.compile.schedule import Machine, fixed_jobs, launcher, lower_bound, safe_jobs, simulate

SHIPPED = Path(envbuilder.compile.__file__).parent / "known_units.json"
MACHINES = ((20, 128), (20, 64), (20, 32), (16, 24), (8, 16), (2, 24))
# A stock build as well has FlashAttention 3 and QuTLASS, whose units need up to 9.8 GiB: 20 of those at once do not fit.
WORST = [Unit(name=f"like QuTLASS {number}", seconds=104, peak=9756 << 20) for number in range(60)]


def show(title: str, units: list[Unit]) -> None:
    work = sum(unit.seconds for unit in units)
    print(f"\n{title}: {len(units)} units, {work:.0f} s, the largest {max(unit.peak for unit in units) / GIB:.1f} GiB")
    print("cores    memory   bound    launcher            jobs = cores         best MAX_JOBS by hand")
    for cores, gigabytes in MACHINES:
        memory = gigabytes * GIB
        machine = Machine(cores=cores, memory=memory - reserve_of(memory))
        bound, ours = lower_bound(units, machine), simulate(units, machine, launcher(machine))
        plain, jobs = simulate(units, machine, fixed_jobs(cores)), safe_jobs(units, machine)
        tuned = simulate(units, machine, fixed_jobs(jobs))
        over = "TOO MUCH" if plain.peak > machine.memory else "fits"
        assert ours.peak <= max(machine.memory, *(unit.peak for unit in units))
        print(
            f"{cores:>5} {gigabytes:>5} GiB {bound:7.0f} s {ours.seconds:7.0f} s (+{100 * (ours.seconds / bound - 1):.1f}%)"
            f" {plain.seconds:7.0f} s {plain.peak / GIB:4.0f} GiB {over:<8} {tuned.seconds:7.0f} s (-j{jobs})"
        )


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED
    units = [Unit(name=row["unit"], seconds=row["seconds"], peak=row["peak"]) for row in json.loads(path.read_bytes())["units"]]
    show("vLLM 0.23.0 for sm_121a", units)
    show("the same, and 60 units like QuTLASS's largest", [*units, *WORST])


if __name__ == "__main__":
    main()
