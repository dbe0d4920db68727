"""The one way in which a program is run: logged, quiet, bounded in time, replayable when it fails.

What a program prints goes to a log file; on success nobody sees it, on failure its last lines are in the error
and never printed twice. Every child dies with its parent: a killed envbuilder leaves nothing running.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, BinaryIO

from envbuilder.errors import ProgramError
from envbuilder.files import storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

_TAIL_LINES = 25
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Loaded before any fork: between fork and exec only async-signal-safe work is allowed.
_LIBC = ctypes.CDLL(None, use_errno=True)
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")

# Variables that would make a built environment's interpreter load something else than what was built.
_MISLEADING = frozenset({"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_PRELOAD"})


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A program that ended well: what it printed on standard output (if captured), and its wall seconds."""

    stdout: str
    seconds: float


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without what misleads another Python, plus `extra`."""
    kept = {name: value for name, value in os.environ.items() if name not in _MISLEADING}
    return {**kept, "PYTHONNOUSERSITE": "1", **(extra or {})}


def inside(environment: Path, chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for a program of a built environment, whose own programs come first on PATH.

    `chosen` is what the target sets: only where the user has not, for their word counts.
    """
    path = f"{environment / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**chosen, **clean_environment(), "VIRTUAL_ENV": str(environment), "PATH": path}


def replay_line(argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Return a line for a shell that runs the same program again, with the variables that differ from this process's.

    It goes into logs and messages, so the credentials in an address are left out; whoever replays it puts them back.
    """
    changed = [f"{name}={value}" for name, value in sorted((env or {}).items()) if os.environ.get(name) != value]
    unset = [part for name in sorted(os.environ.keys() - (os.environ if env is None else env).keys()) for part in ("-u", name)]
    prefix = ["env", *unset, *changed] if changed or unset else []
    line = _CREDENTIALS.sub("****@", shlex.join([*prefix, *map(str, argv)]))
    return f"cd {shlex.quote(str(cwd))} && {line}" if cwd else line


def run(
    argv: Sequence[str | Path],
    *,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float | None = None,
    capture: bool = False,
    on_line: Callable[[str], None] | None = None,
    what: str = "",
) -> Completed:
    """Run a program to its end.

    With `capture`, standard output is returned and only standard error goes to the log; else both go there.
    `on_line` sees each line of what is logged, as it comes. `what` says in the error what the program was for.

    Raises ProgramError: not found, ended with an error, killed by a signal, or over `timeout_s` (then its whole
    process group is killed). Raises StorageError when the log cannot be written.
    """
    started = time.monotonic()
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with contextlib.ExitStack() as stack:
        if log:
            stack.enter_context(storage_errors(log))
        # Unbuffered: what the program said last is in the log also when envbuilder is killed.
        sink = stack.enter_context(log.open("ab", buffering=0)) if log else None
        if sink:
            sink.write(f"$ {replay_line(argv, env=env, cwd=cwd)}\n".encode())
        process = _start(argv, env=env, cwd=cwd, capture=capture)
        stack.enter_context(_ended(process))
        output = process.stdout if not capture else process.stderr
        assert output is not None  # noqa: S101 - for the type checker: both are pipes
        timer = stack.enter_context(_deadline(process, timeout_s))
        stdout = _drain(process, output, capture=capture, sink=sink, tail=tail, on_line=on_line)
        code = process.wait()
    if code != 0:
        raise _failure(argv, code, tail, what=what, env=env, cwd=cwd, log=log, timed_out=timer.expired, timeout_s=timeout_s)
    return Completed(stdout=stdout, seconds=time.monotonic() - started)


def die_with_parent(parent: int) -> None:
    """In a child, before exec: ask the kernel for SIGKILL when the parent dies (prctl(2), PR_SET_PDEATHSIG)."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)


def kill_group(process: subprocess.Popen[bytes], *, grace_s: float = 5.0) -> None:
    """End a process started in its own session, and all that it started: SIGTERM, then SIGKILL after `grace_s`.

    Where the process has ended by itself, what it left running in its group is ended at once.
    """
    for sign in () if process.poll() is not None else (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=grace_s)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the leader has ended; its children may not have


@dataclass
class _Timer:
    expired: bool = False


def _start(argv: Sequence[str | Path], *, env: Mapping[str, str] | None, cwd: Path | None, capture: bool) -> subprocess.Popen[bytes]:
    name = str(argv[0])
    if "/" not in name and shutil.which(name, path=(env or os.environ).get("PATH")) is None:
        raise ProgramError(f"{name} is not installed", next=f"Install {name}, or put it on PATH.")
    try:
        return subprocess.Popen(  # one prctl call, preloaded; no lock is taken between fork and exec
            [*map(str, argv)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if capture else subprocess.STDOUT,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - see above
        )
    except OSError as error:
        raise ProgramError(
            f"cannot start {name}", why=error.strerror or str(error), next=f"Replay: {replay_line(argv, env=env, cwd=cwd)}"
        ) from error


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whatever happens inside, the process and its children are gone afterwards."""
    try:
        yield
    finally:
        kill_group(process)
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()


@contextlib.contextmanager
def _deadline(process: subprocess.Popen[bytes], timeout_s: float | None) -> Iterator[_Timer]:
    import threading  # noqa: PLC0415 - only where a limit is asked for

    state = _Timer()
    if timeout_s is None:
        yield state
        return

    def expire() -> None:
        state.expired = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(timeout_s, expire)
    timer.start()
    try:
        yield state
    finally:
        timer.cancel()


def _drain(
    process: subprocess.Popen[bytes],
    output: IO[bytes],
    *,
    capture: bool,
    sink: BinaryIO | None,
    tail: deque[str],
    on_line: Callable[[str], None] | None,
) -> str:
    """Read all that is printed, so that the child never blocks on a full pipe; return the captured part."""
    import threading  # noqa: PLC0415

    captured: list[bytes] = []
    reader: threading.Thread | None = None
    if capture and process.stdout:
        reader = threading.Thread(target=lambda pipe: captured.append(pipe.read()), args=(process.stdout,), daemon=True)
        reader.start()
    for raw in output:
        if sink:
            sink.write(raw)
        line = raw.decode(errors="replace").rstrip("\n")
        tail.append(line)
        if on_line:
            on_line(line)
    if reader:
        reader.join()
    return b"".join(captured).decode(errors="replace")


def _failure(
    argv: Sequence[str | Path],
    code: int,
    tail: Sequence[str],
    *,
    what: str,
    env: Mapping[str, str] | None,
    cwd: Path | None,
    log: Path | None,
    timed_out: bool,
    timeout_s: float | None,
) -> ProgramError:
    name = str(argv[0]).rsplit("/", 1)[-1]
    if timed_out:
        end = f"{name} was stopped after {timeout_s:.0f} s"
    elif code < 0:
        end = f"{name} was killed by {_signal_name(-code)}"
        if -code == signal.SIGKILL:
            end += " (by the kernel, if memory ran out: see `dmesg`)"
    else:
        end = f"{name} ended with exit code {code}"
    lines = [f"Log: {log}"] if log else []
    lines.append(f"Replay: {replay_line(argv, env=env, cwd=cwd)}")
    return ProgramError(f"{what}: {end}" if what else end, why="\n".join(tail).strip(), next="\n".join(lines))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"
