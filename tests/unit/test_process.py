from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envbuilder.errors import ProgramError, StorageError
from envbuilder.process import clean_environment, replay_line, run

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.programs

PYTHON = sys.executable


def gone(pid: int, *, within_s: float = 5.0) -> bool:
    """Whether a process ends in time; a zombie that nobody has waited for counts as ended."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def wait_for(path: Path, *, within_s: float = 10.0) -> str:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError):
            if text := path.read_text():
                return text
        time.sleep(0.02)
    pytest.fail(f"{path.name} was not written")


@pytest.fixture
def pidfile(tmp_path: Path) -> Iterator[Path]:
    """Where a child writes its number; it is ended if the test fails to."""
    path = tmp_path / "pid"
    yield path
    if path.exists() and path.read_text():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.read_text()), signal.SIGKILL)


# -- ending well -------------------------------------------------------------------------------------------------


def test_what_is_printed_goes_to_the_log_and_the_lines_to_who_listens(tmp_path: Path) -> None:
    log, lines = tmp_path / "x.log", list[str]()
    done = run(["sh", "-c", "echo out; echo err >&2"], log=log, on_line=lines.append)
    assert sorted(lines) == ["err", "out"]
    assert done.stdout == ""
    assert log.read_text().startswith("$ sh -c 'echo out; echo err >&2'\n")
    assert sorted(log.read_text().splitlines()[1:]) == ["err", "out"]


def test_a_second_program_adds_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    run(["echo", "one"], log=log)
    run(["echo", "two"], log=log)
    assert log.read_text() == "$ echo one\none\n$ echo two\ntwo\n"


def test_captured_output_is_apart_from_the_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert run(["sh", "-c", "echo result; echo noise >&2"], log=log, capture=True).stdout == "result\n"
    assert "result" not in log.read_text().splitlines()
    assert "noise" in log.read_text()


def test_much_output_on_both_streams_blocks_nobody() -> None:
    """Reading one pipe after the other would wait for ever as soon as the other one is full (64 KiB)."""
    code = "import sys\nfor _ in range(3000): sys.stdout.write('o' * 100); sys.stderr.write('e' * 99 + '\\n')"
    assert len(run([PYTHON, "-c", code], capture=True, timeout_s=60).stdout) == 300_000


def test_bytes_that_are_not_utf8_are_shown_not_fatal(tmp_path: Path) -> None:
    lines: list[str] = []
    run(["printf", r"\377bad\n"], on_line=lines.append, log=tmp_path / "log")
    assert lines == ["\ufffdbad"]
    assert b"\xffbad" in (tmp_path / "log").read_bytes()


def test_a_program_cannot_wait_for_an_answer() -> None:
    """One that asks `Proceed?` must see the end of its input, not the user's terminal."""
    assert run(["cat"], timeout_s=20, capture=True).stdout == ""


# -- ending badly ------------------------------------------------------------------------------------------------


def test_a_failure_shows_the_last_lines_once_and_how_to_go_on(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    with pytest.raises(ProgramError) as caught:
        run(["sh", "-c", "for i in $(seq 100); do echo line-$i; done; exit 7"], log=log, what="making it")
    error = caught.value
    assert error.what == "making it: sh ended with exit code 7"
    assert error.why.splitlines() == [f"line-{number}" for number in range(76, 101)]
    assert "line-100" not in error.what + error.next
    assert f"Log: {log}" in error.next
    assert "Replay: sh -c" in error.next
    assert error.exit_code == 4


@pytest.mark.parametrize(
    ("sign", "said"),
    [("TERM", "killed by SIGTERM"), ("KILL", "killed by SIGKILL (by the kernel, if memory ran out"), ("40", "killed by signal 40")],
)
def test_a_signal_is_not_called_an_exit_code(sign: str, said: str) -> None:
    """`exit code -9` tells a user nothing; out of memory is what it mostly is. 40 is a real-time signal, without a name."""
    with pytest.raises(ProgramError, match=re.escape(said)):
        run(["sh", "-c", f"kill -{sign} $$"])


def test_a_program_that_is_not_there_is_named_with_a_remedy() -> None:
    with pytest.raises(ProgramError) as caught:
        run(["no-such-program-anywhere"])
    assert caught.value.what == "no-such-program-anywhere is not installed"
    assert "PATH" in caught.value.next


@pytest.mark.parametrize("case", ["missing", "not executable", "no folder"])
def test_a_program_that_cannot_start_says_why(tmp_path: Path, case: str) -> None:
    script = tmp_path / "script"
    if case == "not executable":
        script.write_text("#!/bin/sh\n")
    with pytest.raises(ProgramError, match="cannot start") as caught:
        run(["/bin/true"] if case == "no folder" else [script], cwd=tmp_path / "none" if case == "no folder" else None)
    assert caught.value.why in {"No such file or directory", "Permission denied"}


def test_the_path_that_counts_is_the_childs(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!/bin/sh\necho mine\n")
    (tmp_path / "tool").chmod(0o755)
    assert run(["tool"], env={"PATH": f"{tmp_path}:/bin:/usr/bin"}, capture=True).stdout == "mine\n"


def test_a_log_on_a_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "x.log").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="the disk is full"):
        run(["echo", "text"], log=tmp_path / "x.log")


# -- nothing is left running -------------------------------------------------------------------------------------


def test_the_limit_ends_the_whole_family(pidfile: Path) -> None:
    """Both uv and vLLM start children of their own: killing the first process alone would leave them."""
    with pytest.raises(ProgramError, match=r"was stopped after 1 s"):
        run(["sh", "-c", f"sleep 300 & echo $! > {shlex.quote(str(pidfile))}; wait"], timeout_s=1)
    assert gone(int(pidfile.read_text()))


@pytest.mark.parametrize("end", ["true", "false"])
def test_what_a_program_leaves_in_the_background_is_ended_with_it(pidfile: Path, end: str) -> None:
    with contextlib.suppress(ProgramError):
        run(["sh", "-c", f"sleep 300 >/dev/null 2>&1 & echo $! > {shlex.quote(str(pidfile))}; {end}"])
    assert gone(int(pidfile.read_text()))


def test_an_error_in_the_listener_ends_the_program(pidfile: Path) -> None:
    def listen(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", f"echo $$ > {shlex.quote(str(pidfile))}; echo go; exec sleep 300"], on_line=listen)
    assert gone(int(pidfile.read_text()))


def test_a_child_that_ignores_sigterm_is_killed(pidfile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listen(_: str) -> None:
        raise RuntimeError("stop")

    monkeypatch.setattr("envbuilder.process.kill_group.__kwdefaults__", {"grace_s": 0.2})
    with pytest.raises(RuntimeError):
        run(["sh", "-c", f"trap '' TERM; echo $$ > {shlex.quote(str(pidfile))}; echo go; while :; do sleep 0.1; done"], on_line=listen)
    assert gone(int(pidfile.read_text()))


def test_a_child_dies_when_its_parent_is_killed(tmp_path: Path, pidfile: Path) -> None:
    """`kill -9` of envbuilder must not leave uv or a server at work in the output folder."""
    code = f"import sys; from envbuilder.process import run\nrun(['sh', '-c', 'echo $$ > {shlex.quote(str(pidfile))}; exec sleep 300'])"
    parent = subprocess.Popen([PYTHON, "-c", code], cwd=Path(__file__).parents[2])
    child = int(wait_for(pidfile))
    parent.kill()
    parent.wait()
    assert gone(child)


def test_a_child_whose_parent_died_before_it_could_ask_does_not_start() -> None:
    """The kernel only kills for a parent that dies later; between fork and the request there is a gap."""
    code = "import os\nfrom envbuilder.process import die_with_parent\ndie_with_parent(os.getpid())\nprint('went on')"
    done = subprocess.run([PYTHON, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


# -- surroundings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "VIRTUAL_ENV", "LD_PRELOAD", "CONDA_PREFIX"])
def test_what_would_mislead_another_python_is_left_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the user's PYTHONPATH, a built environment would import the user's torch."""
    monkeypatch.setenv(name, "/somewhere")
    assert name not in clean_environment()
    assert clean_environment({name: "/meant"})[name] == "/meant"


def test_the_rest_is_kept_and_the_user_site_is_shut_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    assert clean_environment({"A": "1"}).items() >= {"HTTPS_PROXY": "http://proxy", "PYTHONNOUSERSITE": "1", "A": "1"}.items()


ODD = st.text(st.characters(min_codepoint=1, max_codepoint=0x2FF, exclude_categories=["Cs"]), max_size=12)


@given(arguments=st.lists(ODD, max_size=4), value=ODD)
def test_a_replay_line_is_read_by_a_shell_as_the_same_command(arguments: list[str], value: str) -> None:
    argv = ["prog", *(argument.replace("@", "") for argument in arguments)]
    line = replay_line(argv, env={**os.environ, "EB_TEST": value.replace("@", "")})
    assert shlex.split(line) == ["env", f"EB_TEST={value.replace('@', '')}", *argv]


def test_a_replay_line_really_replays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same folder, same arguments, same variables: also those that were taken away, whatever they are called."""
    monkeypatch.setenv("UV_INDEX_URL", "misleading")
    monkeypatch.setenv("PYTHONPATH", "misleading")
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    script = folder / "show"
    script.write_text('#!/bin/sh\nprintf "%s|" "$PWD" "$@" "$EB" "${UV_INDEX_URL-unset}" "${PYTHONPATH-unset}"\n')
    script.chmod(0o755)
    env = {name: value for name, value in clean_environment({"EB": "a 'b' $c"}).items() if name != "UV_INDEX_URL"}
    argv = [str(script), "one two", "$HOME", "`id`"]
    ran = run(argv, env=env, cwd=folder, capture=True).stdout
    line = replay_line(argv, env=env, cwd=folder)
    again = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
    assert again == ran == f"{folder}|one two|$HOME|`id`|a 'b' $c|unset|unset|"


def test_a_replay_line_shows_no_password() -> None:
    line = replay_line(["uv", "--index", "https://user:s3cret@host/simple"], env={**os.environ, "ALL_PROXY": "http://me:hush@proxy:1"})
    assert "s3cret" not in line
    assert "hush" not in line
    assert "****@host/simple" in line
