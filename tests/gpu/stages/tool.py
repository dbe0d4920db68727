"""Runs envbuilder itself, under the machine's interpreter and with nothing of its packages: only the carried wheels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_START = "import sys; sys.path[:0] = [sys.argv.pop(1), sys.argv.pop(1)]; from envbuilder.cli import main; sys.exit(main())"


def paths(request: dict[str, Any]) -> list[str]:
    """Return what has to be on sys.path for envbuilder's own modules."""
    return [request["root"], str(Path(request["work"]) / "tool")]


def envbuilder(request: dict[str, Any], *arguments: str, timeout_s: float) -> tuple[int, dict[str, Any]]:
    """Run a command with --json; return its exit code and document. What it says beside that goes to this stage's log."""
    command = [sys.executable, "-IS", "-c", _START, *paths(request), *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=timeout_s)
    assert done.returncode in {0, 1}, f"envbuilder {arguments[0]} ended with {done.returncode}: {done.stdout[-500:]}"
    return done.returncode, json.loads(done.stdout)
