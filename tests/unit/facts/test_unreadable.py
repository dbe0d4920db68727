"""What stands where a file should be: a pipe, a folder, a link to nowhere, a file that answers with an I/O error.

Root may read every mode, so these are real things that nobody can read, and the tests say the same for every user.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from simulated import no_gpu, spark

from envbuilder import reading
from envbuilder.doctor.document import document
from envbuilder.doctor.examine import examine
from envbuilder.doctor.model import Status
from envbuilder.facts import redact
from envbuilder.facts.codec import load, to_json
from envbuilder.facts.detect import identify
from envbuilder.facts.environment import read_environment
from envbuilder.facts.extensions import read_extensions
from envbuilder.facts.files_around import why_not_whole
from envbuilder.facts.snapshot import take
from envbuilder.facts.toolchain import cuda_release_of
from envbuilder.facts.world import World
from envbuilder.files import write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulated import Builder

    from envbuilder.facts.model import Snapshot

pytestmark = pytest.mark.usefixtures("redacted_once", "asked_once")
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


@pytest.mark.timeout(20)  # a pipe that is opened, or /dev/zero that is read to its end, is waited for without one
def test_reading_it_gives_nothing_and_does_not_wait(kind: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    kind(path := Path("x"))
    assert reading.data(path) == b""
    assert reading.text(path) == ""
    assert cuda_release_of(path) == ""
    assert World(variables={}).tail(path, 100) == ""
    assert why_not_whole(path) != ""


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


def looked_at(root: Path, build: Builder) -> Snapshot:
    """Read a machine, judge it, save it and judge what was saved: nothing of that may raise, or say something else."""
    model = Path(f"{HUB}/models--a--b/snapshots/1")
    snapshot = take(build.world(), environment=build.environment, model=model)
    result = examine(snapshot)
    assert [(one.check.id, one.verdict) for one in result.findings if one.status is Status.CRASH] == []
    json.dumps(document(result))
    write_json(root / "saved.json", to_json(redact.tree(snapshot)))
    again = examine(load(root / "saved.json"))
    assert [(one.check.id, one.status) for one in again.findings] == [(one.check.id, one.status) for one in result.findings]
    return snapshot


HUB = "/home/alice/.cache/huggingface/hub"


def with_files_around(root: Path) -> Builder:
    """A Spark with a model, a source tree and all else that a reader opens."""
    build = spark(root)
    for name in ("config.json", "model.safetensors", "model.safetensors.index.json"):
        build.file(f"{HUB}/models--a--b/snapshots/1/{name}", "{}")
    for name in (
        "setup.py",
        "pyproject.toml",
        "CMakeLists.txt",
        "rust-toolchain.toml",
        "vllm/__init__.py",
        ".git/HEAD",
        "a-1.0-py3-none-any.whl",
    ):
        build.file(f"/home/alice/{name}", "x")
    return build.file(f"{HUB}/models--a--b/refs/main", "1").file("/var/log/wtmp", bytes(384 * 3)).file("/run/systemd/container", "x")


CONTENTS = {
    "nothing": b"",
    "no text": b"\xff\xfe\x80\0\n" * 200,
    "zeros": bytes(4096),
    "one long line": b"a" * 3_000_000,
    "lists without an end": b"[" * 100_000,
    "objects without an end": b'{"":' * 100_000,
    "digits of other scripts": "\u0663=\u0660\n".encode() * 100,
    "a number too long": b"-" + b"9" * 4090,
    "numbers too long": b"".join(b"%s: %s kB\n" % (name, b"9" * 4000) for name in (b"MemTotal", b"MemFree", b"MemAvailable", b"SwapFree")),
}


@pytest.mark.parametrize("within", ["proc", "sys etc var", "usr home lib"])
@pytest.mark.parametrize("content", CONTENTS)
def test_whatever_stands_in_files_costs_no_section(content: str, within: str, tmp_path: Path) -> None:
    """One version.json that is nested too deep took all toolkits with it, one kernel's name that is too long all of the driver."""
    build = with_files_around(tmp_path)
    for part in within.split():
        assert replace_all(tmp_path, lambda path: path.write_bytes(CONTENTS[content]) and None, within=part) > 0
    readers = looked_at(tmp_path, build).readers
    assert {one.name for one in readers if one.status != "ok"} <= ({"cpu", "memory"} if (content, within) == ("nothing", "proc") else set())


def test_a_program_with_a_hole_of_gigabytes_costs_no_section(tmp_path: Path) -> None:
    """It was read to its end, until the reader's time was over and the whole environment was lost."""
    build = with_files_around(tmp_path)
    site = build.world().at("/home/alice/.venv/lib/python3.12/site-packages")
    for path in (tmp_path / "usr/local/cuda-13.0/bin/nvcc", site / "triton/backends/nvidia/bin/ptxas"):
        with path.open("wb") as file:
            file.truncate(16 << 30)
    (tmp_path / "usr/local/cuda-13.0/version.json").unlink()
    snapshot = looked_at(tmp_path, build)
    assert [one for one in snapshot.readers if one.status != "ok"] == []
    assert snapshot.environment is not None
    assert (snapshot.environment.triton_ptxas, snapshot.toolkits and snapshot.toolkits[0].release) == ("", "")


@pytest.mark.parametrize("within", ["dev lib run tmp", "home"])
@pytest.mark.parametrize("kind", [pipe, folder, nowhere, circle, io_error, endless], ids=lambda kind: kind.__name__)
def test_the_other_folders_may_hold_them_too(kind: Callable[[Path], None], within: str, tmp_path: Path) -> None:
    """Models, source trees, firmware and device nodes are read by readers of their own."""
    build = with_files_around(tmp_path)
    for part in within.split():
        replace_all(tmp_path, kind, within=part)
    assert [one for one in looked_at(tmp_path, build).readers if one.status != "ok"] == []


@pytest.mark.parametrize("how", ["file", "pipe", "circle", "its own parent"])
@pytest.mark.parametrize(
    "within",
    [
        "proc/1 proc/driver sys/bus/pci/devices sys/class/net var/lib var/log usr/local lib dev",
        "etc home/alice",
        f"home/alice/.venv {HUB[1:]}",
        f"home/alice/.venv/lib/python3.12/site-packages {HUB[1:]}/models--a--b/snapshots",
    ],
)
def test_a_file_in_the_place_of_a_folder(within: str, how: str, tmp_path: Path) -> None:
    """A link that leads up again is the one that a walk could follow for ever."""
    build = with_files_around(tmp_path)
    for part in within.split():
        shutil.rmtree(place := tmp_path / part)
        {"file": Path.touch, "pipe": pipe, "circle": circle, "its own parent": lambda path: path.symlink_to(".")}[how](place)
    assert [one for one in looked_at(tmp_path, build).readers if one.status != "ok"] == []


def test_names_that_are_no_text_are_saved(tmp_path: Path) -> None:
    """A file name is bytes: two of them that are no UTF-8 ended `--save` in a traceback."""
    build = with_files_around(tmp_path)
    folders = [os.fsencode(path) for path in tmp_path.rglob("*") if path.is_dir() and not path.is_symlink()]
    for place in folders:
        (Path(os.fsdecode(place + b"/\xff"))).mkdir()
        for name in (b"nvidia\xff", b"lib\xff.so", b"\xff-1.0-py3-none-any.whl", b"x\n\x1b[2J.so"):
            Path(os.fsdecode(place + b"/" + name)).write_bytes(b"\xff")
        info = Path(os.fsdecode(place + b"/x\xff-1.0.dist-info"))
        info.mkdir()
        (info / "METADATA").write_bytes(b"Name: \xff\nVersion: \xff\nRequires-Dist: \xff\n\n")
        (info / "RECORD").write_bytes(b"\xff.so,,1\n")
    build.variables |= {"HF_HOME": "/\udcff", "MAX_JOBS": "\udcff", "CC": "/\udcff/gcc", "VLLM_A": "\udcff"}
    assert [one for one in looked_at(tmp_path, build).readers if one.status != "ok"] == []
