"""How long the doctor takes, and how much memory, against the collectors that people use today.

    python bench/doctor.py --env ENVIRONMENT [--runs 5] [--json FILE]

ENVIRONMENT holds torch and vLLM. Each program runs RUNS times in turn, in the same environment; the median counts.
The first run of each is not counted: it reads from the disk what the others find in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LAUNCHER = str(ROOT / "bin" / "envbuilder")  # as a person starts it, the shell included
LINE = (
    b"INFO 11-23 10:00:00 [engine.py:12] Avg prompt throughput: 0.0 tokens/s, Avg generation throughput: 24.9 tokens/s, Running: 1 reqs\n"
)


def measured(command: list[str]) -> dict[str, float]:
    """Run a program once: its wall and processor seconds with those of its children, and the largest resident set of one process."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tempfile.gettempdir())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "wall_s": time.monotonic() - started,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1000,
        "exit_code": process.returncode,
    }


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, required=True, help="an environment with torch and vLLM")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "serve.log"
        with log.open("wb") as file:
            for _ in range(200_000_000 // len(LINE)):
                file.write(LINE)
            file.write(b"Failed to initialize NVML: Driver/library version mismatch\n")
        figures = run_all(arguments.env.absolute(), arguments.runs, log)
    show(figures)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def run_all(env: Path, runs: int, log: Path) -> dict[str, Any]:
    python = str(env / "bin/python")
    programs = {
        "doctor": [LAUNCHER, "doctor", "--env", str(env)],
        "doctor --help": [LAUNCHER, "doctor", "--help"],
        "explain": [LAUNCHER, "explain", "EB-DRV-006"],
        "vllm.collect_env": [python, "-m", "vllm.collect_env"],
        "torch.utils.collect_env": [python, "-m", "torch.utils.collect_env"],
    }
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    for turn in range(runs + 1):
        for name, command in programs.items():
            figures = measured(command)
            if turn:
                taken[name].append(figures)
    result: dict[str, Any] = {name: medians(each) for name, each in taken.items()}
    result["doctor --log (200 MB)"] = measured([LAUNCHER, "doctor", "--log", str(log)])
    return result


def show(figures: dict[str, Any]) -> None:
    print(f"{'':<26}{'wall s':>9}{'cpu s':>9}{'peak MB':>9}{'exit':>6}")
    for name, each in figures.items():
        print(f"{name:<26}{each['wall_s']:>9.3f}{each['cpu_s']:>9.3f}{each['peak_mb']:>9.0f}{each['exit_code']:>6.0f}")
    for other in ("vllm.collect_env", "torch.utils.collect_env"):
        wall, cpu = (figures[other][name] / figures["doctor"][name] for name in ("wall_s", "cpu_s"))
        print(f"doctor is {wall:.1f} times faster than python -m {other}; it takes a {cpu:.1f}th of its processor time")


if __name__ == "__main__":
    main()
