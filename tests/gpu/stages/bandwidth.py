"""The smoke test's measurement of memory bandwidth, twice, and a plain device-to-device copy on the same machine."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import report

_SCRIPT = "envbuilder/smoke/inside/bandwidth.py"


def measured(this: object, name: str) -> dict:
    folder = Path(this.request["work"]) / name
    folder.mkdir(exist_ok=True)
    (folder / "request.json").write_text(json.dumps({"device": "cuda" if this.gpu else "cpu"}), encoding="utf-8")
    subprocess.run([sys.executable, str(Path(this.request["root"]) / _SCRIPT), str(folder / "request.json")], check=True, timeout=60)
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def copied(*, size: int, repetitions: int) -> list[float]:
    """Return GB/s of torch's copy_ within the GPU's memory: the bytes read and the bytes written."""
    import torch

    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device="cuda")
    goal = torch.empty_like(source)
    rates = []
    for _ in range(repetitions + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        goal.copy_(source)
        end.record()
        end.synchronize()
        rates.append(2 * size / begin.elapsed_time(end) / 1e6)
    assert torch.equal(goal, source)
    return rates[3:]


def main() -> None:
    this = report()
    first: dict = {}
    with this.check("the smoke test's measurement") as figures:
        first = measured(this, "bandwidth-1")
        figures.update(first)
        assert first["gb_per_s"] > 0
    with this.check("a second time: the spread") as figures:
        second = measured(this, "bandwidth-2")
        figures.update(gb_per_s=second["gb_per_s"], ratio=round(second["gb_per_s"] / first["gb_per_s"], 3))
        assert not this.gpu or 0.9 < figures["ratio"] < 1.1, "two runs differ by more than a tenth"
    with this.check("against a device-to-device copy") as figures:
        this.require_gpu()
        rates = copied(size=4_000_000_000, repetitions=15)
        copy = statistics.median(rates)
        figures.update(copy_gb_per_s=round(copy, 1), lowest=round(min(rates), 1), highest=round(max(rates), 1))
        figures.update(measured_gb_per_s=first["gb_per_s"], ratio=round(first["gb_per_s"] / copy, 3))
        # A read-only stream may be a little faster than a copy; half of it would mean that something else was measured.
        assert 0.7 < figures["ratio"] < 1.25, "the measurement is not the memory's bandwidth"
    with this.check("time of the check itself") as figures:
        started = time.monotonic()
        measured(this, "bandwidth-3")
        figures["seconds"] = round(time.monotonic() - started, 1)


main()
