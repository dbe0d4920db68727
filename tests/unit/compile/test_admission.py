"""The coordinator with real launchers' sockets: who may start, who must wait, and what a killed one leaves."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import select
import socket
from typing import TYPE_CHECKING

import pytest

from envbuilder.compile import admission
from envbuilder.compile.admission import Coordinator, available_memory, reserve_of, total_memory
from envbuilder.compile.policy import GIB, Unit
from envbuilder.files import remove_tree
from tests.unit.compile.rounds import Free, settle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Knock:
    """What a launcher does, without a compile."""

    def __init__(self, address: Path, unit: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)  # a test that fails must not hang
        self.socket.connect(str(address))
        self.tell(unit=unit)

    def tell(self, **message: object) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def admitted(self, *, within: float = 20.0) -> bool:
        return bool(select.select([self.socket], [], [], within)[0]) and self.socket.recv(16) == b"go\n"

    def gone(self) -> bool:
        """Whether the other side is, as a launcher sees it; one that was not even heard is reset."""
        try:
            return self.socket.recv(16) == b""
        except ConnectionResetError:
            return True

    def end(self) -> None:
        self.socket.close()


def coordinator(tmp_path: Path, *, free: int, cores: int = 8, known: dict[str, int] | None = None) -> Coordinator:
    units = {name: Unit(name=name, seconds=10, peak=gib * GIB) for name, gib in (known or {}).items()}
    return Coordinator(address=tmp_path / "admission", cores=cores, known=units, free=Free(free), reserve=0, claims=tmp_path / "claims")


@pytest.fixture
def knocks() -> Iterator[list[Knock]]:
    made: list[Knock] = []
    yield made
    for knock in made:
        with contextlib.suppress(OSError):
            knock.end()


def test_what_fits_starts_and_what_does_not_waits_until_a_claim_ends(tmp_path: Path, knocks: list[Knock]) -> None:
    with (serving := coordinator(tmp_path, free=10, known={"a": 8, "b": 8})).serving():
        knocks += [Knock(serving.address, "a")]
        assert knocks[0].admitted()
        knocks += [Knock(serving.address, "b")]
        settle(serving, waiting=1)
        assert not knocks[1].admitted(within=0)
        knocks[0].end()  # a launcher that was killed does no more than this: the kernel closes its socket
        assert knocks[1].admitted()


def test_a_claim_counts_only_what_is_not_used_yet(tmp_path: Path, knocks: list[Knock]) -> None:
    """The kernel's free memory has what a compile uses taken off already; to take it off twice would waste half the machine."""
    with (serving := coordinator(tmp_path, free=10, known={"a": 8, "b": 8})).serving():
        knocks += [Knock(serving.address, "a")]
        assert knocks[0].admitted()
        knocks += [Knock(serving.address, "b")]
        settle(serving, waiting=1)
        assert not knocks[1].admitted(within=0)
        knocks[0].tell(rss=7 * GIB)
        assert knocks[1].admitted()


def test_never_more_than_the_cores(tmp_path: Path, knocks: list[Knock]) -> None:
    with (serving := coordinator(tmp_path, free=1000, cores=2)).serving():
        knocks += [Knock(serving.address, f"unit {number}") for number in range(5)]
        settle(serving, waiting=3)
        assert sum(knock.admitted(within=0) for knock in knocks) == 2


def test_a_lone_unit_may_take_the_reserve(tmp_path: Path, knocks: list[Knock]) -> None:
    """Else a machine that is just large enough for its largest unit would never build it."""
    serving = coordinator(tmp_path, free=10, known={"a": 10})
    serving.reserve = 2 * GIB
    with serving.serving():
        knocks += [Knock(serving.address, "a")]
        assert knocks[0].admitted()


def test_a_lone_unit_that_does_not_fit_waits_for_memory_and_others_that_do_go_first(tmp_path: Path, knocks: list[Knock]) -> None:
    """A served model holds the memory: to start all the same is what takes a Spark to a standstill."""
    short: list[str] = []
    serving = coordinator(tmp_path, free=4, known={"huge": 9, "small": 3})
    serving.on_short = lambda unit, free: short.append(f"{unit.name}: {free // GIB}")
    with serving.serving():
        knocks += [Knock(serving.address, "huge")]
        settle(serving, waiting=1)
        assert not knocks[0].admitted(within=0)
        assert short == ["huge: 4"], "said once, not in each round"
        knocks += [Knock(serving.address, "small")]
        assert knocks[1].admitted()
        knocks[1].end()
        serving.free = lambda: 9 * GIB
        assert knocks[0].admitted()
    assert serving.starved is None


def test_a_build_that_waits_for_memory_too_long_is_given_up(tmp_path: Path, knocks: list[Knock]) -> None:
    """No deadlock: nothing of this build runs that could end, and who holds the memory may hold it for days."""
    serving = coordinator(tmp_path, free=4, known={"huge": 9})
    serving.patience_s = 0.2
    with serving.serving():
        knocks += [Knock(serving.address, "huge")]
        assert not knocks[0].admitted()
        assert knocks[0].gone()
    assert serving.starved is not None
    assert "huge alone takes 9.7 GB; 4.3 GB of" in serving.starved.why


def test_after_a_failure_those_that_wait_are_sent_away(tmp_path: Path, knocks: list[Knock]) -> None:
    """Else they would all be compiled before the message about the failed one is shown."""
    with (serving := coordinator(tmp_path, free=1000, cores=1)).serving():
        knocks += [Knock(serving.address, "a")]
        assert knocks[0].admitted()
        knocks += [Knock(serving.address, "b")]
        serving.refuse()
        assert not knocks[1].admitted()
        assert knocks[1].socket.recv(16) == b""


def test_another_build_s_outstanding_claims_count_while_it_lives(tmp_path: Path, knocks: list[Knock]) -> None:
    claims = tmp_path / "claims"
    claims.mkdir()
    other = claims / "other"
    other.write_text(str(9 * GIB))
    with other.open("rb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        with (serving := coordinator(tmp_path, free=16, known={"a": 4, "b": 4})).serving():
            knocks += [Knock(serving.address, "a")]
            assert knocks[0].admitted()
            knocks += [Knock(serving.address, "b")]
            settle(serving, waiting=1)
            assert not knocks[1].admitted(within=0)  # 16 - 9 - 4 < 4
            fcntl.flock(alive, fcntl.LOCK_UN)  # the other build was killed: its lock is gone, its file is not
            assert knocks[1].admitted()
            assert not other.exists()


@pytest.mark.parametrize("trouble", ["cleaned", "full"])
def test_a_folder_of_claims_that_is_gone_or_full_stops_nobody(
    tmp_path: Path, knocks: list[Knock], monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """It lies in /tmp, which others clean and fill: a coordinator that died of it left every launcher waiting for ever."""
    with (serving := coordinator(tmp_path, free=10, known={"a": 8, "b": 8})).serving():
        if trouble == "cleaned":
            remove_tree(tmp_path / "claims")
        else:
            monkeypatch.setattr(admission.os, "pwrite", full)
        knocks += [Knock(serving.address, "a")]
        assert knocks[0].admitted()
        knocks += [Knock(serving.address, "b")]
        knocks[0].end()
        assert knocks[1].admitted()


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_coordinator_that_dies_sends_all_launchers_away_and_is_reported(tmp_path: Path, knocks: list[Knock]) -> None:
    """Else the build waits for ever for launchers that wait for an answer."""
    serving = coordinator(tmp_path, free=10, cores=1)

    def knock() -> None:
        with serving.serving():
            knocks.append(Knock(serving.address, "a"))
            assert knocks[0].admitted()
            knocks.append(Knock(serving.address, "b"))
            serving.free = lambda: 1 // 0
            assert all(knock.gone() for knock in knocks)
            with socket.socket(socket.AF_UNIX) as late, pytest.raises(OSError, match="refused"):
                late.connect(str(serving.address))

    with pytest.raises(ZeroDivisionError):
        knock()


def test_the_socket_of_a_long_path_can_be_bound(tmp_path: Path) -> None:
    """A socket's address holds 107 bytes; a workspace's path may be longer."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with coordinator(deep, free=1).serving():
        assert (deep / "admission").is_socket()
    assert not (deep / "admission").exists()


def test_the_control_group_s_limit_counts_as_the_machine_s(tmp_path: Path) -> None:
    """In a container the kernel's figures are the whole machine's: who believes them is killed."""
    proc, groups = machine(tmp_path, "0::/box/inner\n")
    (groups / "box/inner").mkdir(parents=True)
    (groups / "box/inner/memory.max").write_text("max\n")
    assert available_memory(proc=proc, cgroups=groups) == 16000000 * 1024
    (groups / "box/memory.max").write_text("5000000000\n")
    (groups / "box/memory.current").write_text("2000000000\n")
    (groups / "box/memory.stat").write_text("anon 2000000000\nfile 0\ninactive_file 0\nactive_file 0\n")
    assert available_memory(proc=proc, cgroups=groups) == 3000000000
    assert total_memory(proc=proc, cgroups=groups) == 5000000000


@pytest.mark.parametrize("version", [1, 2])
def test_files_that_the_kernel_keeps_in_memory_are_not_used_memory(tmp_path: Path, version: int) -> None:
    """After 4 GB of wheels were read they fill a container's limit: the build would crawl, one unit at a time."""
    proc, groups = machine(tmp_path, "12:cpu,memory:/box\n11:pids:/box\n" if version == 1 else "0::/box\n")
    folder = groups / ("memory/box" if version == 1 else "box")
    folder.mkdir(parents=True)
    limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    (folder / limit).write_text("8000000000\n")
    (folder / used).write_text("7000000000\n")
    prefix = "total_" if version == 1 else ""
    (folder / "memory.stat").write_text(f"{prefix}inactive_file 4000000000\n{prefix}active_file 500000000\n")
    assert available_memory(proc=proc, cgroups=groups) == 8000000000 - 2500000000


def machine(tmp_path: Path, groups: str) -> tuple[Path, Path]:
    """Lay out what a kernel says of a machine with 16 GB available and a process in these control groups."""
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:   16000000 kB\n")
    (proc / "self/cgroup").write_text(groups)
    return proc, tmp_path / "cgroup"


def test_a_reserve_is_kept_on_any_machine() -> None:
    assert reserve_of(8 * GIB) == GIB
    assert reserve_of(128 * GIB) == 8 * GIB
