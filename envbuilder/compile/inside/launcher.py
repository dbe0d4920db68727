"""The compiler launcher: stands in front of every compile of a source build (CMAKE_<LANG>_COMPILER_LAUNCHER).

It gives the unit a seed and temporary names that depend on nothing but the unit, waits until the build's coordinator
admits it, chains ccache where the build wants it, and writes down what the unit took. It runs by its path, isolated,
under a bare interpreter: only the standard library may be imported.

The connection to the coordinator is the claim on memory: when this process ends, in whatever way, the kernel closes
it, and the claim is gone. Nothing stale can stay behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

SOCKET, RECORDS, CCACHE = "ENVBUILDER_ADMISSION", "ENVBUILDER_RECORDS", "ENVBUILDER_CCACHE_PROGRAM"
_KILLED = re.compile(rb"died due to signal 9|Killed signal terminated program|: Killed\b")
_CRASHED = re.compile(rb"died due to signal (\d+)|internal compiler error")
_POLL_S = 0.5
_KEEP = 64_000  # bytes of the compiler's words that a record keeps


def unit_of(command: list[str]) -> tuple[str, str] | None:
    """Return (unit, object) of a compile of one of the build's targets; None for a link or one of CMake's own checks.

    A unit is named by target and source, as in "_C/csrc/torch_bindings.cpp", whatever folder the build is in.
    """
    if "-c" not in command or "-o" not in command[:-1]:
        return None
    goal = command[command.index("-o") + 1]
    match = re.search(r"(?:^|/)CMakeFiles/([^/]+)\.dir/(.+)\.o$", goal)
    if match is None or "CMakeScratch" in goal or match[1].startswith("cmTC_"):
        return None
    return f"{match[1]}/{match[2]}", goal


def pinned(command: list[str], unit: str) -> list[str]:
    """Return the command with all that is random in it fixed by the unit's name.

    nvcc puts a random number into the names of a unit without an external symbol, and its process number into those
    of temporary files, which end up in symbols (`tmpxft_<pid>_…`).
    """
    seed = f"-frandom-seed={hashlib.sha256(unit.encode()).hexdigest()[:16]}"
    if Path(command[0]).name == "nvcc":
        return [*command, seed, "--objdir-as-tempdir", "-Xcompiler", seed]
    return [*command, seed]


def archs_of(command: list[str]) -> list[str]:
    """Return the codes that a command makes for GPUs: "sm_121a", or "compute_80" for PTX."""
    return list(dict.fromkeys(re.findall(r"\bcode=\[?((?:sm|compute)_\w+)", " ".join(command))))


class Claim:
    """A place among those that compile. Without a coordinator (a build run by hand) every place is free."""

    def __init__(self, unit: str) -> None:
        self._socket: socket.socket | None = None
        self.waited = 0.0
        address = os.environ.get(SOCKET)
        if address is None:
            return
        started = time.monotonic()
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(address)  # waits, where a hundred launchers knock at once
            self._tell({"unit": unit})
            if self._socket.recv(16) != b"go\n":
                raise ConnectionError
        except OSError:
            sys.exit("envbuilder launcher: the build that this compile belongs to has ended")
        self.waited = time.monotonic() - started

    def _tell(self, message: dict[str, object]) -> None:
        if self._socket:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def using(self, rss: int) -> bool:
        """Tell what the compile uses; False when nobody listens any more."""
        try:
            self._tell({"rss": rss})
        except OSError:
            return False
        return True


def family(pid: int) -> list[int]:
    """Return a process and all below it, parents first."""
    found, at = [pid], 0
    while at < len(found):
        with contextlib.suppress(OSError, ValueError):
            for task in Path(f"/proc/{found[at]}/task").iterdir():
                found += map(int, (task / "children").read_text(encoding="ascii").split())
        at += 1
    return found


def tree_rss(pid: int) -> int:
    """Return the resident memory of a process and all below it, in bytes."""
    total, page = 0, os.sysconf("SC_PAGE_SIZE")
    for one in family(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += int(Path(f"/proc/{one}/statm").read_text(encoding="ascii").split()[1]) * page
    return total


def end(pid: int) -> None:
    """Kill a compile with all that it started: nvcc's cicc or ptxas would go on for minutes after nvcc is gone."""
    for one in family(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


class Watch(threading.Thread):
    """Tells the coordinator what the compile uses, and remembers the most. Without a coordinator, the compile is stopped."""

    def __init__(self, pid: int, claim: Claim) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.stopped = threading.Event()  # by this launcher, since its build has ended: what the compiler says then means nothing
        self._pid, self._claim, self._ended = pid, claim, threading.Event()

    def run(self) -> None:
        while not self._ended.wait(_POLL_S):
            rss = tree_rss(self._pid)
            self.peak = max(self.peak, rss)
            if not self._claim.using(rss):  # the build was killed: what nobody waits for must not go on
                self.stop()
                return

    def stop(self) -> None:
        self.stopped.set()  # first: the compiler's end may be noticed at once
        end(self._pid)

    def end(self) -> None:
        self._ended.set()
        self.join()


def main(command: list[str]) -> int:
    found = unit_of(command)
    if found is None:
        os.execvp(command[0], command)  # noqa: S606 - the whole point
    unit, goal = found
    command = pinned(command, unit)
    ccache = os.environ.get(CCACHE)
    statistics = Path(f"{goal}.ccache")
    variables = {**os.environ, **({"CCACHE_STATSLOG": str(statistics)} if ccache else {})}
    claim = Claim(unit)
    started = time.monotonic()
    with subprocess.Popen([*([ccache] if ccache else []), *command], stderr=subprocess.PIPE, env=variables) as process:
        watch = Watch(process.pid, claim)
        for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(sign, lambda *_: watch.stop())
        watch.start()
        assert process.stderr is not None  # noqa: S101 - for the type checker
        words = process.stderr.read()
        _, ended, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(ended)
        watch.end()
    sys.stderr.buffer.write(words)
    status = process.returncode if process.returncode >= 0 else 128 - process.returncode
    if watch.stopped.is_set():
        return status  # a record would say that memory ran out, and the next build would run the unit alone
    killed = process.returncode == -signal.SIGKILL or (process.returncode != 0 and bool(_KILLED.search(words)))
    record = {
        "unit": unit,
        "seconds": round(time.monotonic() - started, 2),
        "user": round(usage.ru_utime, 2),
        "system": round(usage.ru_stime, 2),
        "waited": round(claim.waited, 2),
        "peak": max(usage.ru_maxrss * 1024, watch.peak),
        "archs": archs_of(command),
        "cache": cache_result(statistics) if ccache else "off",
        "status": process.returncode,
        "killed": killed,
        "crashed": process.returncode != 0 and not killed and bool(_CRASHED.search(words)),
        "object": describe(Path(goal)) if process.returncode == 0 else None,
        "words": words[-_KEEP:].decode(errors="replace"),
    }
    write_record(unit, record)
    return status


def describe(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def cache_result(statistics: Path) -> str:
    """Read what ccache says it did: "hit" or "miss", or its own word for why it could not."""
    try:
        words = [line for line in statistics.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
        statistics.unlink()
    except OSError:
        return "unknown"
    if any(word.endswith("_cache_hit") for word in words):
        return "hit"
    return "miss" if any(word.endswith("cache_miss") for word in words) else " ".join(words) or "unknown"


def write_record(unit: str, record: dict[str, object]) -> None:
    """Write a unit's record, whole or not at all; without a place for it (a build run by hand), nothing."""
    folder = os.environ.get(RECORDS)
    if folder is None:
        return
    goal = Path(folder) / (hashlib.sha256(unit.encode()).hexdigest()[:24] + ".json")
    temporary = goal.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(record), encoding="utf-8")
    temporary.replace(goal)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
