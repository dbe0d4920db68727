"""Without the guard, a killed envbuilder would leave a server behind that holds gigabytes. Real processes throughout."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envbuilder.smoke import children, server

if TYPE_CHECKING:
    from collections.abc import Iterator

# A server with a child in a session of its own that ignores SIGTERM, as a daemon would; both write their pids.
_STUBBORN = """
import os, pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (here / "orphan").write_text(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
os.wait()
(here / "leader").write_text(str(os.getpid()))
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    script = tmp_path / "stubborn.py"
    script.write_text(_STUBBORN)
    yield (sys.executable, "-IS", str(script), str(tmp_path))
    for name in ("leader", "orphan"):  # a test that failed must not leave them either
        with contextlib.suppress(OSError, ValueError):
            pid = _pid(tmp_path / name)
            if str(script) in Path(f"/proc/{pid}/cmdline").read_text():  # and not a later process of that number
                os.kill(pid, signal.SIGKILL)


def _pid(file: Path) -> int:
    return int(file.read_text())


def _appears(file: Path) -> int:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            return _pid(file)
        time.sleep(0.02)
    raise AssertionError(f"{file.name} never came")


def _gone(pid: int, *, within_s: float = 15.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state in "ZX":  # ended; whether it is collected is its new parent's business
            return True
        time.sleep(0.02)
    return False


def _guard(argv: tuple[str, ...], *, grace: str = "0.3") -> list[str]:
    return [sys.executable, "-IS", str(children.INSIDE / "guard.py"), "--grace", grace, "--", *argv]


def test_stopping_ends_the_server_and_its_stubborn_orphan(
    tmp_path: Path, program: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_GRACE_S", 0.3)
    with server.started((*program, "600"), env=children.variables(Path(sys.executable)), log=tmp_path / "log") as running:
        leader, orphan = _appears(tmp_path / "leader"), _appears(tmp_path / "orphan")
        assert running.exit_code() is None
    assert _gone(leader, within_s=0.1)
    assert _gone(orphan, within_s=0.1)
    assert running.exit_code() == 0


def test_an_error_inside_stops_the_server(tmp_path: Path, program: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_GRACE_S", 0.3)
    pids: list[int] = []

    def interrupted() -> None:
        with server.started((*program, "600"), env=children.variables(Path(sys.executable)), log=tmp_path / "log"):
            pids.extend(_appears(tmp_path / name) for name in ("leader", "orphan"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    leader, orphan = pids
    assert _gone(leader, within_s=0.1)
    assert _gone(orphan, within_s=0.1)


def test_sigkill_of_the_asker_leaves_nothing(tmp_path: Path, program: tuple[str, ...]) -> None:
    asker = textwrap.dedent(f"""
        import subprocess, time
        guard = subprocess.Popen({_guard((*program, "600"))!r}, stdin=subprocess.PIPE, start_new_session=True)
        time.sleep(600)
    """)
    with subprocess.Popen([sys.executable, "-IS", "-c", asker]) as process:
        leader, orphan = _appears(tmp_path / "leader"), _appears(tmp_path / "orphan")
        process.kill()
    assert _gone(leader)
    assert _gone(orphan)


def test_sigterm_to_the_guard_ends_everything(tmp_path: Path, program: tuple[str, ...]) -> None:
    with subprocess.Popen(_guard((*program, "600")), stdin=subprocess.PIPE) as guard:
        leader, orphan = _appears(tmp_path / "leader"), _appears(tmp_path / "orphan")
        guard.terminate()
        assert guard.wait(timeout=15) == 0
    assert _gone(leader, within_s=0.1)
    assert _gone(orphan, within_s=0.1)


def test_sigkill_of_the_guard_takes_the_server_along(tmp_path: Path, program: tuple[str, ...]) -> None:
    with subprocess.Popen(_guard((*program, "600")), stdin=subprocess.PIPE) as guard:
        leader = _appears(tmp_path / "leader")
        guard.kill()
    assert _gone(leader)


def test_a_server_that_ends_by_itself_takes_its_orphan_along(tmp_path: Path, program: tuple[str, ...]) -> None:
    with subprocess.Popen(_guard((*program, "0.2")), stdin=subprocess.PIPE) as guard:
        orphan = _appears(tmp_path / "orphan")
        assert guard.wait(timeout=15) == 0
    assert _gone(orphan, within_s=0.1)


@pytest.mark.parametrize(("code", "seen"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_the_exit_code_is_the_servers(code: str, seen: int) -> None:
    with subprocess.Popen(_guard((sys.executable, "-ISc", code)), stdin=subprocess.PIPE) as guard:
        assert guard.wait(timeout=15) == seen


def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    done = subprocess.run(_guard((str(tmp_path / "none"),)), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert "cannot start" in done.stderr


def test_a_polite_server_gets_its_grace(tmp_path: Path) -> None:
    """A server such as vLLM frees shared memory on SIGTERM: killed at once, it would leave it behind."""
    polite = (
        "import pathlib, signal, sys, time\n"
        "def leave(*_):\n    time.sleep(0.3); pathlib.Path(sys.argv[1], 'tidied').touch(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "pathlib.Path(sys.argv[1], 'leader').write_text('1')\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(_guard((sys.executable, "-ISc", polite, str(tmp_path)), grace="10"), stdin=subprocess.PIPE) as guard:
        _appears(tmp_path / "leader")
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait(timeout=15)
    assert (tmp_path / "tidied").exists()
