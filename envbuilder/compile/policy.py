"""Which compile starts next: the longest that fits into memory. Pure, so that the simulation runs the very same rule.

Longest first keeps the end short: the last units to finish are small ones (Graham's bound for list scheduling by
falling length is 4/3 of the best schedule, and within a few per cent where no unit is a large part of the whole).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A translation unit to compile, and what is known or guessed of it: wall seconds alone, peak memory in bytes.

    `alone`: its compiler was killed for memory the last time, so it runs while nothing else does.
    """

    name: str
    seconds: float
    peak: int
    alone: bool = False


def next_to_start(waiting: Iterable[Unit], running: Sequence[Unit], *, unclaimed: int, cores: int) -> Unit | None:
    """Return the unit to start now, or None when all must wait.

    `unclaimed` is the memory, in bytes, that neither is used nor will be by what runs. Where nothing runs and nothing
    fits, it is the longest unit's turn: no compile that ends would make room for it. Whether it may start is not for
    this rule to say (admission.Coordinator).
    """
    if len(running) >= cores or any(unit.alone for unit in running):
        return None
    longest_first = sorted(waiting, key=lambda unit: (-unit.seconds, unit.name))
    fitting = [unit for unit in longest_first if unit.peak <= unclaimed and not (running and unit.alone)]
    return next(iter(fitting if running else fitting + longest_first), None)


def guess(source: str) -> Unit:
    """Guess an unknown unit by its kind, from what vLLM's units were measured to need (docs/source-build.md); on the safe side."""
    name = source.lower()
    if not name.endswith(".cu"):
        return Unit(name=source, seconds=20, peak=2 * GIB)
    if any(word in name for word in ("cutlass", "scaled_mm", "qutlass", "grouped_mm", "blockwise_moe", "mla")):
        return Unit(name=source, seconds=100, peak=10 * GIB)
    if any(word in name for word in ("marlin", "flash", "machete", "moe")):
        return Unit(name=source, seconds=80, peak=7 * GIB // 2)
    return Unit(name=source, seconds=30, peak=3 * GIB)
