"""Building target cpu with the README's command while it is killed at every stage."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from envbuilder.layout import Layout

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "bin" / "envbuilder"
STAGES = ("fetch", "assemble-serve", "assemble-quantize", "gates", "abi", "quantize", "serve", "manifest", "image")
_ENDED = re.compile(r"^✓ (\S+)")


@dataclass(frozen=True, kw_only=True)
class KilledBuild:
    """A finished build: what each stage's SIGKILL found, what the last run printed, and where it all is."""

    layout: Layout
    killed_in: tuple[str, ...]
    last_stdout: str
    last_stderr: str


def build_until_killed_in(layout: Layout, stage: str) -> None:
    """Start a build and send it SIGKILL once the stage before `stage` has ended and `stage` has left its first trace."""
    before = STAGES[STAGES.index(stage) - 1]
    command = [LAUNCHER, "build", "--target", "cpu", "--no-image", "--out", layout.out]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        log = layout.log(stage)
        reached = (layout.stages / f"{before}.json").exists()
        for line in () if reached else process.stderr:
            ended = _ENDED.match(line)
            if ended and ended[1] == before:
                break
        wait_for(log, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (layout.stages / f"{stage}.json").exists(), f"{stage} had ended before it could be killed"


def wait_for(log: Path, process: subprocess.Popen[str], timeout_s: float = 300) -> None:
    """Wait until a running stage has written to its log."""
    deadline = time.monotonic() + timeout_s
    started = time.time() - 1
    while time.monotonic() < deadline:
        if log.exists() and log.stat().st_mtime >= started and log.stat().st_size > 0:
            return
        if process.poll() is not None:
            message = f"the build ended with {process.returncode} before {log.name} was written"
            raise AssertionError(message)
        time.sleep(0.02)
    message = f"{log} was not written"
    raise AssertionError(message)
