"""Run a program, and end it with everything it started as soon as whoever asked for it is gone.

`guard.py --grace SECONDS -- PROGRAM ARGUMENT...`, standard input being a pipe that the asker holds open. The pipe's end
is the one signal to stop: the asker closes it when done, and the kernel closes it when the asker is killed, SIGKILL
included. Being a child subreaper (prctl(2)), the guard inherits every orphan of the program, whatever session it made
for itself, so that "everything it started" can be found: it is what descends from the guard.

Ends with the program's own code (128 + the signal's number if one ended it), or 0 after a stop that was asked for.
Only the standard library, and Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True)
_TICK_S = 0.02
_KILL_S = 10.0  # SIGKILL takes effect at once but for a process in uninterruptible sleep


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grace", type=float, required=True, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("program", nargs="+")
    arguments = parser.parse_args()
    if _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(sign, _leave)
    code = 0
    leader = _start(arguments.program)
    try:
        if _wait(leader, pipe=sys.stdin.fileno()):
            code = _reap(leader)
    finally:
        _end_everything(leader, grace_s=arguments.grace)
    return code


def _leave(_sign: int, _frame: object) -> None:
    raise SystemExit(0)


def _start(argv: list[str]) -> int:
    """Fork and exec; the program dies with the guard, should the guard be killed itself."""
    guard = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(sign, signal.SIG_DFL)
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard:  # it died before the line above
            os._exit(127)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)  # the pipe is the guard's alone
        os.execvp(argv[0], argv)  # noqa: S606 - an argument list, no shell
    except OSError as error:
        print(f"guard: cannot start {argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(127)


def _wait(leader: int, *, pipe: int) -> bool:
    """Sleep until the program ends (True) or the pipe does."""
    handle = os.pidfd_open(leader)
    try:
        while True:
            ready, _, _ = select.select([handle, pipe], [], [])
            if handle in ready:
                return True
            if not os.read(pipe, 4096):
                return False
    finally:
        os.close(handle)


def _reap(leader: int) -> int:
    _, status = os.waitpid(leader, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _end_everything(leader: int, *, grace_s: float) -> None:
    """SIGTERM to the program, which knows how to end its own; what is left after `grace_s` gets SIGKILL."""
    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(sign, signal.SIG_IGN)
    if leader in _descendants():
        with contextlib.suppress(ProcessLookupError):
            os.kill(leader, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while not _all_reaped() and time.monotonic() < deadline:
        time.sleep(_TICK_S)
    deadline = time.monotonic() + _KILL_S
    while not _all_reaped() and time.monotonic() < deadline:  # again and again: a process may fork while it is being killed
        for pid in _descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_TICK_S)


def _all_reaped() -> bool:
    """Collect what has ended; whether nothing is left. Orphans come to the guard, so no children means none at all."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def _descendants() -> set[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                # The name in the second field may hold spaces and brackets; the parent is the second word after it.
                parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    waiting = [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


if __name__ == "__main__":
    sys.exit(main())
