"""Renders the results of runs on a GPU machine as a page: `page.py result.json [later.json ...] > docs/gpu-run.md`.

A stage that a later result has too is taken from there. The page says only what the results hold; the words about what
was meant, and what each surprise came to, belong below the table, in the file's last part, which is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from run import STAGES

NOTES = "## Notes\n"
_MARKS = {"passed": "passed", "failed": "**failed**", "not-run": "not run"}
_LONGEST = 240  # characters of one figure; the record has all of it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="result.json of one run or several, in their order")
    parser.add_argument("--page", type=Path, help="write this page, and keep its notes (default: print)")
    arguments = parser.parse_args()
    text = render(merged([json.loads(path.read_text(encoding="utf-8")) for path in arguments.results]))
    if arguments.page is None:
        print(text, end="")
        return 0
    before = arguments.page.read_text(encoding="utf-8") if arguments.page.exists() else ""
    _, _, notes = before.partition(NOTES)
    arguments.page.write_text(f"{text}{NOTES}{notes}" if notes else text, encoding="utf-8")
    return 0


def merged(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one document: machine and date of the last run, each stage from the last run that had it."""
    stages = {name: {**stage, "date": one["date"]} for one in documents for name, stage in one["stages"].items()}
    order = [stage.name for stage in STAGES]
    return {**documents[-1], "stages": {name: stages[name] for name in sorted(stages, key=order.index)}}


def render(document: dict[str, Any]) -> str:
    machine = document["machine"]
    questions = {stage.name: stage.question for stage in STAGES}
    lines = ["# A run on a real NVIDIA GPU", ""]
    lines += [f"{', '.join(machine.get('gpus', ['no GPU']))}; {machine['arch']}, {machine['cpus']} CPUs, Linux {machine['kernel']},"]
    lines += [
        f"Python {machine['python']}, {', '.join(f'{name} {version}' for name, version in machine['versions'].items())}; {document['date']}.",
        "",
    ]
    lines += ["No part of this machine is a DGX Spark's: what holds for sm_90 on x86_64 is said here, and nothing about sm_121a.", ""]
    lines += ["| stage | question | result | seconds |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {questions[name]}? | {_MARKS[stage['status']]} | {stage['seconds']} |" for name, stage in document["stages"].items()
    ]
    for name, stage in document["stages"].items():
        lines += ["", f"## {name}", ""]
        if stage["reason"]:
            lines += [f"{stage['reason']}.", ""]
        for check in stage["checks"]:
            reason = f" ({clipped(check['reason'])})" if check["reason"] else ""
            lines += [f"- {check['name']}: {_MARKS[check['status']]}{reason}"]
            lines += [f"  - {key}: {shown(value)}" for key, value in check["figures"].items() if value not in ({}, [])]
    return "\n".join(lines) + "\n\n"


def shown(value: Any) -> str:
    """Return one figure as text: a table of names and numbers without JSON's quotes, anything long cut."""
    match value:
        case dict():
            return clipped(", ".join(f"{key} {shown(one)}" for key, one in value.items()))
        case list():
            return clipped("; ".join(shown(one) for one in value))
        case float():
            return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
        case _:
            return clipped(str(value))


def clipped(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


if __name__ == "__main__":
    sys.exit(main())
