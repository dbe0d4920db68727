"""The launcher: the unit it sees, the seeds it gives, and the record it leaves, with real compiles by gcc."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from envbuilder.compile.admission import Coordinator
from envbuilder.compile.building import CompileError, explain_failure, known_units, read_records
from envbuilder.compile.inside import launcher
from envbuilder.compile.policy import GIB
from tests.unit.compile.rounds import Free, hurried_launcher, settle

if TYPE_CHECKING:
    from collections.abc import Sequence

SCRIPT = Path(launcher.__file__)
OBJECT = "CMakeFiles/_C.dir/csrc/a.cpp.o"


def compile_command(source: Path, goal: str = OBJECT) -> list[str]:
    return ["gcc", "-O2", "-c", str(source), "-o", goal]


def launch(folder: Path, command: Sequence[str], **variables: str) -> subprocess.CompletedProcess[bytes]:
    (folder / "records").mkdir(exist_ok=True)
    (folder / OBJECT).parent.mkdir(parents=True, exist_ok=True)
    env = {"PATH": os.environ["PATH"], launcher.RECORDS: str(folder / "records"), **variables}
    return subprocess.run([sys.executable, "-IS", SCRIPT, *command], cwd=folder, env=env, capture_output=True, check=False, timeout=60)


def source(folder: Path, text: str = "namespace { int hidden; } int *shown() { return &hidden; }") -> Path:
    (folder / "a.cpp").write_text(text)
    return folder / "a.cpp"


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_unit_is_named_by_target_and_source_wherever_the_build_lies() -> None:
    """The name gives the seed and the known peak: it may not depend on the folder."""
    assert launcher.unit_of(["nvcc", "-c", "/x/csrc/m/a.cu", "-o", "CMakeFiles/_C.dir/csrc/m/a.cu.o"]) == (
        "_C/csrc/m/a.cu",
        "CMakeFiles/_C.dir/csrc/m/a.cu.o",
    )
    named = launcher.unit_of(["g++", "-o", "/deep/obj/CMakeFiles/_moe_C.dir/csrc/b.cpp.o", "-c", "b.cpp"])
    assert named is not None
    assert named[0] == "_moe_C/csrc/b.cpp"


@pytest.mark.parametrize(
    "command",
    [
        ["g++", "-o", "lib.so", "a.o"],
        ["g++", "-o", "CMakeFiles/cmTC_1.dir/testCXX.cxx.o", "-c", "t.cxx"],
        ["g++", "--version"],
        ["g++", "-c", "-o"],
    ],
)
def test_links_and_cmake_s_own_checks_are_no_units(command: list[str]) -> None:
    assert launcher.unit_of(command) is None


def test_every_unit_has_its_own_seed_and_nvcc_fixed_temporary_names() -> None:
    first, again, other = (launcher.pinned(["/cuda/bin/nvcc", "-c"], unit) for unit in ("a", "a", "b"))
    assert first == again != other
    assert "--objdir-as-tempdir" in first
    assert launcher.pinned(["g++"], "a")[1:] == [first[2]]


def test_the_archs_of_a_command_are_read_from_its_gencodes() -> None:
    command = ["nvcc", "-gencode", "arch=compute_121a,code=sm_121a", "-gencode", "arch=compute_80,code=[compute_80]"]
    assert launcher.archs_of(command) == ["sm_121a", "compute_80"]


def test_a_compile_leaves_a_record(tmp_path: Path) -> None:
    done = launch(tmp_path, compile_command(source(tmp_path)))
    assert done.returncode == 0, done.stderr
    (record,) = read_records(tmp_path)
    assert record["unit"] == "_C/csrc/a.cpp"
    assert record["status"] == 0
    assert record["peak"] > 1 << 20
    assert record["object"]["bytes"] == (tmp_path / OBJECT).stat().st_size
    assert record["cache"] == "off"


def test_the_same_unit_is_the_same_object_in_another_folder(tmp_path: Path) -> None:
    text = "struct S { virtual ~S(); }; namespace { struct T : S { int x; }; } S *make() { return new T; } S::~S() {}"
    objects = []
    for name in ("one", "two/deeper"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        assert launch(folder, compile_command(source(folder, text))).returncode == 0
        objects.append((folder / OBJECT).read_bytes())
    assert objects[0] == objects[1]


def test_an_error_is_recorded_with_the_compiler_s_words_and_status(tmp_path: Path) -> None:
    done = launch(tmp_path, compile_command(source(tmp_path, "this is no C++")))
    assert done.returncode == 1
    assert b"error" in done.stderr
    (record,) = read_records(tmp_path)
    assert (record["status"], record["killed"], record["crashed"], record["object"]) == (1, False, False, None)
    assert "error" in explain_failure(record)


def test_a_compiler_that_is_killed_is_said_to_be_and_runs_alone_the_next_time(tmp_path: Path) -> None:
    """The kernel's OOM killer sends SIGKILL: tried again beside others, the unit would be killed again."""
    killer = script(tmp_path / "killed", "kill -9 $$")
    assert launch(tmp_path, [killer, "-c", "a.cpp", "-o", OBJECT]).returncode == 128 + signal.SIGKILL
    (record,) = read_records(tmp_path)
    assert record["killed"]
    assert "memory" in explain_failure(record)
    assert known_units(Path("none"), [record])["_C/csrc/a.cpp"].alone


def test_a_part_of_nvcc_that_is_killed_is_said_to_be(tmp_path: Path) -> None:
    """It is cicc or ptxas that the kernel kills; nvcc itself ends with an exit code."""
    command = script(tmp_path / "nvcc", "echo \"nvcc error   : 'cicc' died due to signal 9 (Kill signal)\" >&2; exit 9")
    launch(tmp_path, [command, "-c", "a.cu", "-o", OBJECT])
    (record,) = read_records(tmp_path)
    assert record["killed"]
    assert not record["crashed"]


def test_a_compiler_that_crashes_is_said_to(tmp_path: Path) -> None:
    command = script(tmp_path / "nvcc", "echo \"nvcc error   : 'ptxas' died due to signal 11 (Invalid memory reference)\" >&2; exit 11")
    launch(tmp_path, [command, "-c", "a.cu", "-o", OBJECT])
    (record,) = read_records(tmp_path)
    assert record["crashed"]
    assert not record["killed"]
    assert "crashed" in explain_failure(record)


def test_a_later_success_lifts_the_ban(tmp_path: Path) -> None:
    record: dict[str, Any] = {"unit": "u", "seconds": 1.0, "peak": GIB, "killed": False, "status": 0, "cache": "off"}
    assert not known_units(Path("none"), [record])["u"].alone


def test_a_cache_hit_teaches_nothing_about_a_unit(tmp_path: Path) -> None:
    """Its milliseconds and its 10 MB would admit twenty of the largest units at once."""
    record: dict[str, Any] = {"unit": "u", "seconds": 0.01, "peak": 1, "killed": False, "status": 0, "cache": "hit"}
    assert known_units(Path("none"), [record]) == {}


def test_a_half_written_record_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records/x.json").write_text('{"unit": "')
    assert read_records(tmp_path) == []


@pytest.mark.parametrize(("words", "result"), [("# a.cu\ndirect_cache_hit\n", "hit"), ("cache_miss\n", "miss"), ("", "unknown")])
def test_what_ccache_says_is_understood(tmp_path: Path, words: str, result: str) -> None:
    (tmp_path / "log").write_text(words)
    assert launcher.cache_result(tmp_path / "log") == result


def coordinator(folder: Path, cores: int) -> Coordinator:
    return Coordinator(address=folder / "admission", cores=cores, known={}, free=Free(100), reserve=0, claims=folder / "claims")


def test_a_launcher_whose_build_is_gone_compiles_nothing(tmp_path: Path) -> None:
    done = launch(tmp_path, compile_command(source(tmp_path)), **{launcher.SOCKET: str(tmp_path / "nobody")})
    assert done.returncode != 0
    assert b"has ended" in done.stderr
    assert not (tmp_path / OBJECT).exists()


def test_a_killed_launcher_s_place_is_free_again(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    slow, launched = script(tmp_path / "slow", "exec sleep 60"), hurried_launcher(tmp_path)
    env = {"PATH": os.environ["PATH"], launcher.SOCKET: str(tmp_path / "admission"), launcher.RECORDS: str(tmp_path / "records")}
    started: list[str] = []
    serving = coordinator(tmp_path, 1)
    serving.on_start = lambda unit: started.append(unit.name)
    with serving.serving():
        first = subprocess.Popen(
            [sys.executable, "-IS", launched, slow, "-c", "a", "-o", OBJECT], cwd=tmp_path, env=env, start_new_session=True
        )
        deadline = time.monotonic() + 20
        while not started and time.monotonic() < deadline:
            time.sleep(0.05)
        done = subprocess.Popen([sys.executable, "-IS", launched, *compile_command(source(tmp_path), OBJECT)], cwd=tmp_path, env=env)
        (tmp_path / OBJECT).parent.mkdir(parents=True)
        settle(serving, waiting=1)
        assert done.poll() is None, "the second was not to start beside the first"
        os.killpg(first.pid, signal.SIGKILL)
        assert first.wait(timeout=10) == -signal.SIGKILL
        assert done.wait(timeout=30) == 0


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("how", ["coordinator gone", "terminated"])
def test_nothing_of_a_compile_outlives_its_build(tmp_path: Path, how: str) -> None:
    """For cicc and ptxas nvcc starts a shell: killing nvcc alone leaves them at work, with gigabytes, for minutes.

    A record of the kill would say that memory ran out: the next build would run every interrupted unit alone.
    """
    (tmp_path / "records").mkdir()
    (tmp_path / OBJECT).parent.mkdir(parents=True)
    deep = script(tmp_path / "nvcc", f"sh -c 'echo $$ > {tmp_path}/pid; exec sleep 60' & wait")
    env = {"PATH": os.environ["PATH"], launcher.SOCKET: str(tmp_path / "admission"), launcher.RECORDS: str(tmp_path / "records")}
    with coordinator(tmp_path, 1).serving():
        process = subprocess.Popen(
            [sys.executable, "-IS", hurried_launcher(tmp_path), deep, "-c", "a", "-o", OBJECT], cwd=tmp_path, env=env
        )
        deadline = time.monotonic() + 20
        while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        pid = int((tmp_path / "pid").read_text())
        assert alive(pid)
        if how == "terminated":
            process.terminate()
            process.wait(timeout=20)
    process.wait(timeout=20)
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)
    assert read_records(tmp_path) == []


def test_the_error_of_a_failed_build_has_its_own_reference() -> None:
    assert CompileError.reference == "compile"
    assert CompileError.exit_code == 4


def test_a_record_is_json_with_the_unit_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(launcher.RECORDS, str(tmp_path))
    launcher.write_record("unit", {"unit": "unit"})
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_bytes()) == {"unit": "unit"}
