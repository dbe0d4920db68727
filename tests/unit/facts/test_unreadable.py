"""What stands where a file should be: a pipe, a folder, a link to nowhere, a file that answers with an I/O error.

Root may read every mode, so these are real things that nobody can read, and the tests say the same for every user.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from simulated import no_gpu, spark

from envbuilder import reading
from envbuilder.doctor.examine import examine
from envbuilder.doctor.model import Status
from envbuilder.facts.detect import identify
from envbuilder.facts.environment import read_environment
from envbuilder.facts.extensions import read_extensions
from envbuilder.facts.files_around import why_not_whole
from envbuilder.facts.snapshot import take
from envbuilder.facts.toolchain import cuda_release_of
from envbuilder.facts.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

IO_ERROR = "/proc/self/mem"  # its first page is never mapped: reading it is an I/O error, for root as well


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def nowhere(path: Path) -> None:
    path.symlink_to("not-there")


def circle(path: Path) -> None:
    path.symlink_to(path.name)


def io_error(path: Path) -> None:
    path.symlink_to(IO_ERROR)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


STANDING = (pipe, folder, nowhere, circle, io_error, endless, unix_socket)


@pytest.fixture(params=STANDING, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    return request.param  # type: ignore[no-any-return]


def test_reading_it_gives_nothing_and_does_not_wait(kind: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    kind(path := Path("x"))
    started = time.monotonic()
    assert reading.data(path) == b""
    assert reading.text(path) == ""
    assert cuda_release_of(path) == ""
    assert World(variables={}).tail(path, 100) == ""
    assert why_not_whole(path) != ""
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("path", ["/proc/1073741824/comm", "a\0b", "/etc/passwd/x", "/" + "n" * 300])
def test_paths_that_lead_nowhere_give_nothing(path: str) -> None:
    assert reading.data(path) == b""


@pytest.mark.skipif(os.getuid() == 0, reason="root may read it")
def test_a_file_without_the_right_to_read_it_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0)
    assert reading.data(tmp_path / "secret") == b""


def test_a_file_is_read_to_its_end_and_no_further_than_asked(tmp_path: Path) -> None:
    """Files of /proc say that they have no size; a file may be cut while it is read."""
    (tmp_path / "x").write_bytes(b"a" * 200_000)
    assert len(reading.data(tmp_path / "x")) == 200_000
    assert len(reading.data(tmp_path / "x", limit=70_000)) == 70_000
    assert reading.text("/proc/self/status").startswith("Name:")
    assert len(reading.data("/proc/self/status", limit=10)) == 10


def replace_all(root: Path, kind: Callable[[Path], None], *, within: str) -> int:
    """Put something unreadable in the place of every file below `within`."""
    files = [path for path in (root / within).rglob("*") if path.is_file() and not path.is_symlink()]
    for path in files:
        path.unlink()
        kind(path)
    return len(files)


@pytest.mark.parametrize("kind", [pipe, folder, nowhere, circle], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("within", ["proc", "sys", "etc", "var"])
def test_a_machine_whose_files_cannot_be_read_is_still_judged(kind: Callable[[Path], None], within: str, tmp_path: Path) -> None:
    """Every file of a folder is replaced at once: no reader hangs, no check crashes, and what is lost is said."""
    build = spark(tmp_path)
    assert replace_all(tmp_path, kind, within=within) > 0
    snapshot = take(build.world(), environment=build.environment)
    assert [one.name for one in snapshot.readers if one.status == "timeout"] == []
    assert {one.name for one in snapshot.readers if one.status == "failed"} <= ({"cpu", "memory"} if within == "proc" else set())
    assert [one.check.id for one in examine(snapshot).findings if one.status is Status.CRASH] == []


def test_the_machine_is_told_from_what_can_be_read(tmp_path: Path) -> None:
    """Dead DMI tables, a PCI bus that answers with I/O errors: the release file alone still says what it is."""
    spark(tmp_path)
    replace_all(tmp_path, io_error, within="sys")
    replace_all(tmp_path, io_error, within="proc")
    assert identify(tmp_path).target == "dgx-spark"


@pytest.mark.parametrize("kind", STANDING[:6], ids=lambda kind: kind.__name__)
def test_an_environment_full_of_them_is_read(kind: Callable[[Path], None], tmp_path: Path) -> None:
    build = spark(tmp_path)
    assert build.environment is not None
    place = build.world().at(build.environment)
    assert replace_all(tmp_path, kind, within=str(place.relative_to(tmp_path))) > 5
    found = read_environment(build.world(), build.environment)
    assert found.torch is None
    assert isinstance(read_extensions(place), list)


def test_a_folder_that_vanishes_while_it_is_read_is_no_error(tmp_path: Path) -> None:
    build = spark(tmp_path)
    shutil.rmtree(tmp_path / "proc")
    shutil.rmtree(tmp_path / "sys")
    assert {one.name for one in take(build.world(), environment=build.environment).readers if one.status != "ok"} == {"cpu", "memory"}


def test_a_processor_that_cannot_be_read_lacks_nothing(tmp_path: Path) -> None:
    """In a sandbox without /proc the doctor said that vLLM would end with an illegal instruction."""
    build = no_gpu(tmp_path).remove("/proc/cpuinfo")
    found = {one.check.id: one.status for one in examine(take(build.world())).findings}
    assert found["EB-MACH-018"] is Status.UNKNOWN
