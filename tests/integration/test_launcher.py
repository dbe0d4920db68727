"""bin/envbuilder on a machine that has python3 and git, and nothing else that we could rely on."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import make_wheel

ROOT = Path(__file__).parents[2]
# The way to the package index, as this machine's owner set it; nothing else of this process's surroundings.
INDEX = {
    name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_")) or name.lower().endswith("_proxy")
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files, as a clone has them, in a folder whose name is not plain ASCII."""
    folder = tmp_path_factory.mktemp("fresh") / "a clone ü"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in os.fsdecode(listed).split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def variables(**changes: str) -> dict[str, str]:
    return {"PATH": f"{Path(sys.executable).resolve().parent}:/usr/bin:/bin", **INDEX, **changes}


def launch(
    checkout: Path, *arguments: str, program: Path | None = None, cwd: Path | None = None, **changes: str
) -> subprocess.CompletedProcess[str]:
    command = [str(program or checkout / "bin" / "envbuilder"), *arguments]
    return subprocess.run(command, env=variables(**changes), cwd=cwd or checkout, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def used(checkout: Path) -> Path:
    """The checkout after its first use."""
    done = launch(checkout, "targets", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('{"schema": "envbuilder/targets/1"'), "what the launcher says must not be in the result"
    assert "making its own environment" in done.stderr
    return checkout


pytestmark = pytest.mark.network


def test_first_use_makes_one_environment_from_the_lock_and_leaves_nothing_else(used: Path) -> None:
    assert [path.name for path in used.glob(".venv*")] == [".venv"]
    assert (used / ".venv" / "lock.txt").read_bytes() == (used / "lockfiles" / "envbuilder" / "tool.txt").read_bytes()


def test_later_uses_make_nothing(used: Path) -> None:
    before = (used / ".venv").stat().st_mtime_ns
    done = launch(used, "--version", PIP_INDEX_URL="http://127.0.0.1:9")
    assert (done.returncode, done.stderr) == (0, "")
    assert (used / ".venv").stat().st_mtime_ns == before


def test_where_nothing_changed_no_program_is_asked(used: Path) -> None:
    """Three of them took a tenth of the doctor's time. A clone that was touched (copied, checked out again) asks once."""
    lock = used / "lockfiles" / "envbuilder" / "tool.txt"
    os.utime(lock, (1, 1))
    assert launch(used, "--version").stdout.startswith("envbuilder ")
    done = launch(used, "--version", PATH="/nonexistent")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("envbuilder ")


def test_it_may_be_called_from_anywhere_and_through_a_link(used: Path, tmp_path: Path) -> None:
    (tmp_path / "eb").symlink_to(used / "bin" / "envbuilder")
    assert launch(used, "--version", program=tmp_path / "eb", cwd=tmp_path).stdout.startswith("envbuilder ")
    relative = os.path.relpath(used / "bin" / "envbuilder", tmp_path)
    assert launch(used, "--version", program=Path(relative), cwd=tmp_path, CDPATH="/usr").stdout.startswith("envbuilder ")


def test_the_users_python_settings_have_no_say(used: Path, tmp_path: Path) -> None:
    """A PYTHONPATH for another project, as robotics and CUDA setups have it, would shadow our libraries."""
    (tmp_path / "envbuilder.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "argparse.py").write_text("raise SystemExit('the wrong one')")
    done = launch(used, "--version", PYTHONPATH=str(tmp_path), PYTHONHOME="", PYTHONSAFEPATH="", cwd=tmp_path)
    assert done.stdout.startswith("envbuilder "), done.stderr


def test_arguments_and_exit_code_pass_unchanged(used: Path) -> None:
    done = launch(used, "build", "--target", "a b 'c' $d")
    assert done.returncode == 2
    assert "unknown target \"a b 'c' $d\"" in done.stderr


@pytest.fixture
def clone(checkout: Path, tmp_path: Path) -> Path:
    """A clone that was never used, with a lock of one small local wheel: `--version` needs none of the real ones."""
    wheel = make_wheel(tmp_path / "wheels", "alpha")
    shutil.copytree(checkout, tmp_path / "clone", symlinks=True, ignore=shutil.ignore_patterns(".venv*"))
    line = f"alpha==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
    lock = tmp_path / "clone" / "lockfiles" / "envbuilder" / "tool.txt"
    lock.write_text(f"--no-index\n--find-links {wheel.parent}\n" + line)
    return tmp_path / "clone"


def test_an_interpreter_that_went_away_is_noticed(clone: Path) -> None:
    """A system upgrade takes python3.11 away: the environment must be made anew, not end in `not found`."""
    assert launch(clone, "--version").returncode == 0
    python = clone / ".venv" / "bin" / "python"
    for path in [path for path in (clone / ".venv" / "bin").glob("python*") if path.is_symlink()]:
        path.unlink()
    python.symlink_to("/nonexistent/python3.11")
    done = launch(clone, "--version")
    assert done.returncode == 0, done.stderr
    assert "making its own environment" in done.stderr


@pytest.mark.parametrize("years", [-1, 1])
def test_another_lock_makes_another_environment(clone: Path, years: int) -> None:
    """Whatever its time: a checkout of an older commit, or a copy that kept the times, brings an older file."""
    lock = clone / "lockfiles" / "envbuilder" / "tool.txt"
    assert launch(clone, "--version").returncode == 0
    before = lock.stat()
    lock.write_text(lock.read_text() + "# changed\n")
    os.utime(lock, (before.st_mtime + years * 365 * 86400,) * 2)
    assert "making its own environment" in launch(clone, "--version").stderr
    assert launch(clone, "--version").stderr == ""


def test_what_runs_is_the_environment_that_was_made(used: Path) -> None:
    """It is started without `site`: programs that look for their own files (uv's does) must find the same as with it."""
    names = "sys.prefix, sys.executable, sysconfig.get_path('scripts'), sysconfig.get_path('purelib'), uv.find_uv_bin()"
    (used / "envbuilder" / "commands" / "where.py").write_text(
        "import sys, sysconfig, uv\n\n\ndef configure(parser):\n    pass\n\n\n"
        f"def run(args, console):\n    print({names}, sep='\\n')\n    return 0\n"
    )
    cli = used / "envbuilder" / "cli.py"
    before = cli.read_text()
    cli.write_text(before.replace("COMMANDS = {", 'COMMANDS = {\n    "where": "",'))
    try:
        said = launch(used, "where").stdout
    finally:
        cli.write_text(before)
        (used / "envbuilder" / "commands" / "where.py").unlink()
    python = used / ".venv" / "bin" / "python"
    with_site = subprocess.run(
        [python, "-I", "-c", f"import sys, sysconfig, uv; print({names}, sep='\\n')"], capture_output=True, text=True, check=True
    )
    assert said == with_site.stdout != ""


def test_no_index_is_said_and_nothing_is_left(clone: Path) -> None:
    lock = clone / "lockfiles" / "envbuilder" / "tool.txt"
    lock.write_text(lock.read_text().splitlines()[-1] + "\n")
    closed = {"PIP_INDEX_URL": "http://127.0.0.1:9", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_RETRIES": "0"}
    done = launch(clone, "--version", **closed)
    assert done.returncode == 4
    assert "next: check the network and pip's settings" in done.stderr
    assert not list(clone.glob(".venv*"))


@pytest.mark.parametrize("python", ["/usr/bin/false", "/nonexistent/python 3"])
def test_a_python_that_is_none_is_named(clone: Path, python: str) -> None:
    done = launch(clone, "--version", ENVBUILDER_PYTHON=python)
    assert done.returncode == 2
    assert f"error: {python}, which ENVBUILDER_PYTHON names" in done.stderr


def test_without_any_python_the_remedy_is_said(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("sh", "dirname", "readlink", "cmp", "rm", "mkdir", "mv", "cp"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    done = launch(clone, "--version", PATH=str(tmp_path / "bin"))
    assert done.returncode == 2
    assert "apt install python3 python3-venv" in done.stderr


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_first_use_is_made_good(clone: Path, sign: signal.Signals) -> None:
    """A shell runs no EXIT trap when a signal ends it, and none at all on SIGKILL: the next use must clear up."""
    first = subprocess.Popen(
        [str(clone / "bin" / "envbuilder"), "--version"],
        env=variables(),
        cwd=clone,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        # What runs in a shell's background ignores SIGINT, and a shell cannot trap what it was started to ignore.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no thread runs here
    )
    end = time.monotonic() + 60
    while not list(clone.glob(".venv.new.*/bin/python")):
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(first.pid, sign)
    first.wait()
    if sign != signal.SIGKILL:
        time.sleep(0.5)
        assert not list(clone.glob(".venv*"))
    assert launch(clone, "--version").returncode == 0
    assert [path.name for path in clone.glob(".venv*")] == [".venv"]


def test_two_first_uses_at_once_both_end_well(clone: Path) -> None:
    """The slower one must not pull the environment from under the faster one's command."""
    command = [str(clone / "bin" / "envbuilder"), "--version"]
    running = [
        subprocess.Popen(command, env=variables(), cwd=clone, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    ended = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], ended
    assert [path.name for path in clone.glob(".venv*")] == [".venv"]
