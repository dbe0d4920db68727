"""A whole small build, with the real launcher and coordinator in front of a compiler of a few lines: killed, resumed, failed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from envbuilder import console
from envbuilder.compile import building
from envbuilder.compile.admission import Coordinator
from envbuilder.compile.building import Build, CompileError, known_units, read_records
from envbuilder.compile.inside import launcher
from envbuilder.compile.inside.enter import NO_PLACE
from envbuilder.compile.isolation import Isolation, Way, choose
from envbuilder.compile.policy import Unit
from envbuilder.compile.workspace import Workspace
from envbuilder.console import Console
from envbuilder.errors import ProgramError, StepError
from tests.unit.compile.rounds import hurried_launcher

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[3]
UNITS = ("a", "b")
# Ninja in a few lines: each unit through the launcher, all at once; what fails is said as ninja says it.
NINJA = """#!{python} -IS
import subprocess, sys
root, units = {root!r}, {units!r}
goals = [f"CMakeFiles/_C.dir/csrc/{{unit}}.cpp.o" for unit in units]
started = [
    subprocess.Popen([sys.executable, "-IS", root + "/launcher.py", root + "/compiler", "-c", unit, "-o", goal]) for unit, goal in zip(units, goals)
]
failed = [goal for goal, process in zip(goals, started) if process.wait() != 0]
for number, goal in enumerate(goals):
    print(("FAILED: " if goal in failed else f"[{{number + 1}}/{{len(goals)}}] ") + goal, flush=True)
sys.exit(bool(failed))
"""
CHILD = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from pathlib import Path
from test_building import small_build
small_build(Path(sys.argv[3])).run(["_C"])
"""


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def small_build(root: Path, units: Sequence[str] = UNITS) -> Build:
    """Lay out a workspace of units whose compiler is `root`/compiler; what earlier builds in it recorded is known."""
    for name in ("run", "records", "tmp", "obj"):
        (root / name).mkdir(parents=True, exist_ok=True)
    program(root / "tools/bin/ninja", NINJA.format(python=sys.executable, root=str(root), units=tuple(units)))
    hurried_launcher(root)
    isolation = Isolation(way=Way.NONE, workspace=root, python=Path(sys.executable))
    small = {name: Unit(name=name, seconds=1, peak=1_000_000) for name in (f"_C/csrc/{unit}.cpp" for unit in units)}
    known = small | known_units(Path("none"), read_records(root))
    return Build(
        workspace=Workspace(root),
        isolation=isolation,
        compilers=SimpleNamespace(),  # type: ignore[arg-type]
        spec=SimpleNamespace(arch="12.1a"),  # type: ignore[arg-type]
        jobs=2,
        known=known,
        log=root / "log",
    )


def compiler(root: Path, text: str) -> None:
    """Give the workspace a compiler; its arguments are -c UNIT -o OBJECT and the seed."""
    program(root / "compiler", f"#!/bin/sh\n{text}\n")


COMPILES = 'mkdir -p "${4%/*}" && echo compiled > "$4"'


def wait_for(count: int, folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 20
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < deadline, f"{pattern} did not come"
        time.sleep(0.02)


def at_work(root: Path) -> bool:
    """Whether anything of a workspace runs still."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(root).encode() in path.read_bytes():
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_build_that_was_killed_goes_on_with_all_its_units_at_once(tmp_path: Path, sign: signal.Signals) -> None:
    """The launchers themselves kill the compilers then. Taken for want of memory, each unit would run alone: eight times slower."""
    root = tmp_path / "workspace"
    root.mkdir()
    compiler(root, f'echo > {tmp_path}/"$2".began; exec sleep 60')
    command = [sys.executable, "-c", CHILD, ROOT, Path(__file__).parent, root]
    first = subprocess.Popen(command, env={"PATH": os.environ["PATH"]}, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(2, tmp_path, "*.began")
    time.sleep(0.3)  # until the launchers watch
    first.send_signal(sign)
    first.wait(timeout=20)
    deadline = time.monotonic() + 10
    while at_work(root) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not at_work(root)
    assert read_records(root) == []
    compiler(root, COMPILES)
    again = small_build(root)
    assert not any(unit.alone for unit in again.known.values())
    again.run(["_C"])
    assert [record["status"] for record in read_records(root)] == [0, 0]


def test_a_build_without_memory_says_so_and_not_that_a_compile_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its units were never started: the compiler's log says nothing."""
    compiler(tmp_path, COMPILES)
    said: list[str] = []
    monkeypatch.setattr(building, "Coordinator", partial(Coordinator, free=lambda: 0, patience_s=0.3))
    with pytest.raises(StepError, match="too little memory is free"):
        replace(small_build(tmp_path, ["a"]), say=said.append).run(["_C"])
    assert said == ["_C/csrc/a.cpp takes 1.0 MB of memory and 0 B are free: waiting up to 5 minutes for more …"]
    assert read_records(tmp_path) == []


def test_progress_says_of_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """82 steps of an hour may be nearly all of them, or a tenth."""
    monkeypatch.setattr(console, "_PLAIN_INTERVAL_S", 0.0)
    said = io.StringIO()
    shown = Console(stream=said)
    compiler(tmp_path, COMPILES)
    small_build(tmp_path).run(["_C"], progress=lambda total: shown.progress("compiling", total, unit="steps"))
    assert said.getvalue() == "  compiling: 1 of 2 steps\n  compiling: 2 of 2 steps\n"


def test_a_unit_that_does_not_compile_is_named_with_a_line_that_compiles_it_again(tmp_path: Path) -> None:
    """The line of the whole build would start 64 compiles at once, with nobody to hold them back."""
    compiler(tmp_path, 'echo "error: no" >&2; exit 1')
    build = small_build(tmp_path, ["a"])
    with pytest.raises(CompileError, match=r"^1 unit did not compile: _C/csrc/a\.cpp$") as error:
        build.run(["_C"])
    (replay,) = [line for line in error.value.next.splitlines() if line.startswith("Replay: ")]
    assert replay.endswith("-j 1 CMakeFiles/_C.dir/csrc/a.cpp.o")
    assert launcher.SOCKET not in replay
    compiler(tmp_path, COMPILES)
    program(tmp_path / "replay", f"#!/bin/sh\n{replay.removeprefix('Replay: ')}\n")
    subprocess.run([tmp_path / "replay"], check=True)
    assert (tmp_path / "CMakeFiles/_C.dir/csrc/a.cpp.o").read_text() == "compiled\n"


def test_in_an_isolated_place_the_same_line_compiles_the_unit_alone(tmp_path: Path) -> None:
    """It reads what to run from a file; that of the whole build names a coordinator that is gone."""
    place = Isolation(way=Way.USER_NAMESPACES, workspace=tmp_path, python=Path(sys.executable))
    failed = ProgramError("compiling vLLM: python3 ended with exit code 1", next="Log: x\nReplay: python3 enter.py place.json")
    assert place.replay(["ninja", "-j", "1"], variables={"A": "1"}, failed=failed) == "Replay: python3 enter.py place.json"
    spec = json.loads((tmp_path / "place.json").read_bytes())
    assert (spec["command"], spec["variables"]) == (["ninja", "-j", "1"], {"A": "1"})


@pytest.mark.parametrize("way", [Way.USER_NAMESPACES, Way.ENGINE])
def test_a_place_that_cannot_be_written_in_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Way) -> None:
    """A Docker without root runs programs and lets them write nothing: CMake would fail, long after the trial."""

    def run(self: Isolation, command: Sequence[str], **_: object) -> None:
        if self.way is not way:
            raise ProgramError(f"trying isolation: python3 ended with exit code {NO_PLACE}")
        if self.way is Way.ENGINE:
            raise ProgramError("trying isolation: docker ended with exit code 1", why="PermissionError: '/build/tmp/trial'")
        assert "/build/tmp/trial" in command[-1]

    monkeypatch.setattr(Isolation, "run", run)
    chosen = choose(tmp_path, log=tmp_path / "log")
    assert chosen.way is (Way.NONE if way is Way.ENGINE else way)
