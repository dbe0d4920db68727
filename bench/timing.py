"""Timing side by side: two commands in turn, several times, as whole processes; ratios pair by pair, so that a busy machine cancels out."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One run: wall seconds, and the peak memory of its largest process in MB (RSS)."""

    seconds: float
    peak_mb: float


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A command, and what makes each run start from the same state."""

    name: str
    command: Sequence[str]
    before: Callable[[], object] = lambda: None


def measure(contender: Contender) -> Sample:
    """Run once, output thrown away; a command that fails ends the benchmark with what it printed."""
    contender.before()
    started = time.perf_counter()
    with subprocess.Popen(contender.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{contender.name} ended with {process.returncode}:\n{said.decode(errors='replace')[-2000:]}")
    return Sample(seconds=time.perf_counter() - started, peak_mb=usage.ru_maxrss / 1000)


def compare(title: str, ours: Contender, others: Sequence[Contender], *, runs: int = 5, warm_up: int = 1) -> None:
    """Run all contenders in turn and print medians and the ratio of each other one to ours (above 1: ours is faster)."""
    contenders = [ours, *others]
    for _ in range(warm_up):
        for contender in contenders:
            measure(contender)
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
    for _ in range(runs):
        for contender in contenders:
            samples[contender.name].append(measure(contender))
    print(f"\n{title}  ({runs} runs each, in turn; median)")
    for contender in contenders:
        taken = samples[contender.name]
        seconds = statistics.median(it.seconds for it in taken)
        ratios = [other.seconds / own.seconds for other, own in zip(taken, samples[ours.name], strict=True)]
        peak = statistics.median(it.peak_mb for it in taken)
        ratio = "" if contender is ours else f"{statistics.median(ratios):6.2f} times ours ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"  {contender.name:<44} {seconds:8.3f} s {peak:7.0f} MB  {ratio}")


def machine() -> str:
    """One line about where this ran."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, Python {sys.version.split()[0]}, largest child so far {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000:.0f} MB"
