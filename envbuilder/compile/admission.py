"""Admission to memory: the coordinator that every launcher of a build asks before it starts its compiler.

It listens on a socket in the build's folder. A launcher names its unit and waits; when its turn comes it is told to
go, and from then on tells what it uses. Its connection is its claim, so a killed launcher leaves none. What several
builds on one machine have claimed beyond what they use yet is added up through small files, each locked by its
build: a lock ends with its process, so a killed build's claim is void as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import socket
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from envbuilder.compile.policy import GIB, Unit, guess, next_to_start
from envbuilder.errors import StepError
from envbuilder.files import human_size, storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_TICK_S = 0.5
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
_VERSION_2 = ("memory.max", "memory.current", "")
PATIENCE_S = 300.0  # that a build waits for memory which others hold
_RESERVE = 1 * GIB  # left free for everything else on the machine, at least


def available_memory(*, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that programs could still take: the kernel's estimate, or the control group's room if less."""
    rows = dict(row.split(":", 1) for row in (proc / "meminfo").read_text(encoding="ascii").splitlines())
    free = int(rows["MemAvailable"].split()[0]) * 1024
    return min([free, *(limit - used for limit, used in _group_memory(proc, cgroups))])


def total_memory(*, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the machine's memory, or the control group's limit if less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *(limit for limit, _ in _group_memory(proc, cgroups))])


def _group_memory(proc: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, bytes used) of this process's control groups, its own and those above, where memory is limited."""
    with contextlib.suppress(OSError, ValueError):
        for row in (proc / "self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, own = row.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = cgroups / "memory" if controllers else cgroups  # of version 1, where controllers are named, and of 2
            folder = root / own.strip("/")
            for place in (folder, *folder.parents):
                if place == root.parent:
                    break
                with contextlib.suppress(OSError, ValueError):  # "max": no limit here
                    yield _memory_of(place, *(_VERSION_1 if controllers else _VERSION_2))


def _memory_of(group: Path, limit: str, used: str, prefix: str) -> tuple[int, int]:
    """Read a group's figures. Files that the kernel keeps in memory count as used there; it gives them up when asked."""
    rows = dict(row.split() for row in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    kept = sum(int(rows.get(f"{prefix}{kind}_file", "0")) for kind in ("inactive", "active"))
    return int((group / limit).read_text(encoding="ascii")), max(0, int((group / used).read_text(encoding="ascii")) - kept)


def reserve_of(total: int) -> int:
    """Return what is kept free: a sixteenth of the memory, since GB10's is the GPU's and the desktop's as well."""
    return max(_RESERVE, total // 16)


def too_little_free(unit: Unit, free: int) -> StepError:
    """Return the error for memory that others hold."""
    return StepError(
        "too little memory is free to compile",
        why=f"{unit.name} alone takes {human_size(unit.peak)}; {human_size(max(0, free))} of {human_size(total_memory())} are free.",
        next="Stop what holds it (a model that is served: `docker ps`, `nvidia-smi`), then run the same command again: it goes on from here.",
    )


@dataclass
class _Client:
    connection: socket.socket
    buffer: bytes = b""
    unit: Unit | None = None
    started: bool = False
    rss: int = 0


@dataclass
class Coordinator:
    """Serves the launchers of one build, in a thread. `known` are units of earlier builds by name."""

    address: Path
    cores: int
    known: Mapping[str, Unit]
    on_start: Callable[[Unit], None] = lambda _: None
    on_short: Callable[[Unit, int], None] = lambda *_: None  # nothing runs, and the unit waits for memory beyond these bytes
    patience_s: float = PATIENCE_S
    free: Callable[[], int] = available_memory
    reserve: int = field(default_factory=lambda: reserve_of(total_memory()))
    claims: Path = field(default_factory=lambda: Path(tempfile.gettempdir()) / f"envbuilder-claims-{os.getuid()}")
    _clients: dict[int, _Client] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _refusing: threading.Event = field(default_factory=threading.Event)
    _fault: Exception | None = None
    _short_since: float | None = None
    starved: StepError | None = None  # why the build was given up, if it was for want of memory

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Answer launchers until the end of the block."""
        self.address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector, self._claim_file() as claim:
            with _short_path(self.address) as name:
                listener.bind(name)
            listener.listen(4096)
            listener.setblocking(False)
            selector.register(listener, selectors.EVENT_READ)
            thread = threading.Thread(target=self._serve, args=(listener, selector, claim), daemon=True)
            thread.start()
            try:
                yield
            finally:
                self._stop.set()
                thread.join()
                self.address.unlink(missing_ok=True)
            if self._fault:
                raise self._fault

    def _serve(self, listener: socket.socket, selector: selectors.BaseSelector, claim: int) -> None:
        try:
            while not self._stop.is_set():
                for key, _ in selector.select(_TICK_S):
                    if key.fileobj is listener:
                        connection, _ = listener.accept()
                        connection.setblocking(False)
                        selector.register(connection, selectors.EVENT_READ)
                        self._clients[connection.fileno()] = _Client(connection)
                    else:
                        self._hear(self._clients[key.fd], selector)
                self._admit(claim)
        except Exception as error:  # noqa: BLE001 - raised again where the build waits
            self._fault = error
        finally:
            # However it ends: a launcher that waits for an answer sees that nobody will give one.
            listener.close()
            for client in self._clients.values():
                client.connection.close()

    def _hear(self, client: _Client, selector: selectors.BaseSelector) -> None:
        try:
            data = client.connection.recv(65536)
        except OSError:
            data = b""
        if not data:
            selector.unregister(client.connection)
            del self._clients[client.connection.fileno()]
            client.connection.close()
            return
        *lines, client.buffer = (client.buffer + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "unit" in message:
                name = message["unit"]
                estimate = guess(name)
                client.unit = self.known.get(name, Unit(name=name, seconds=estimate.seconds, peak=estimate.peak))
            client.rss = message.get("rss", client.rss)

    def _admit(self, claim: int) -> None:
        if self._refusing.is_set():
            for client in self._clients.values():
                if client.unit and not client.started:
                    with contextlib.suppress(OSError):
                        client.connection.shutdown(socket.SHUT_RDWR)
            return
        while True:
            running = [client.unit for client in self._clients.values() if client.unit and client.started]
            waiting = {client.unit: client for client in self._clients.values() if client.unit and not client.started}
            mine = self._outstanding()
            room = self.free() - mine - self._claimed_elsewhere(claim, mine)
            unit = next_to_start(waiting, running, unclaimed=room - self.reserve, cores=self.cores)
            if unit is None or (not running and self._starves(unit, room)):
                return
            client = waiting[unit]
            client.started = True
            with contextlib.suppress(OSError):  # it was killed meanwhile: the next round notices
                client.connection.sendall(b"go\n")
                self.on_start(unit)

    def _starves(self, unit: Unit, room: int) -> bool:
        """Whether a unit must wait although nothing of this build runs; after a time the whole build is given up.

        What holds the memory is no compile of ours: a model that is served, another build. Started all the same, the
        unit would take a machine without swap, where the GPU's memory is the same, to a standstill.
        """
        if unit.peak <= room:
            self._short_since = None
            return False
        now = time.monotonic()
        if self._short_since is None:
            self._short_since = now
            self.on_short(unit, room)
        elif now - self._short_since >= self.patience_s:
            self.starved = too_little_free(unit, room)
            self.refuse()
        return True

    def _outstanding(self) -> int:
        """What running units will take beyond what they use already."""
        return sum(max(0, client.unit.peak - client.rss) for client in self._clients.values() if client.unit and client.started)

    def refuse(self) -> None:
        """Start nothing more: a unit has failed, and those that wait would only delay the message."""
        self._refusing.set()

    # -- other builds on this machine ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _claim_file(self) -> Iterator[int]:
        with storage_errors(self.claims):
            self.claims.mkdir(mode=0o700, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.claims)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle
        finally:
            Path(name).unlink(missing_ok=True)
            os.close(handle)

    def _claimed_elsewhere(self, own: int, outstanding: int) -> int:
        with contextlib.suppress(OSError):  # the disk is full: the others count what is used, not what will be
            os.pwrite(own, f"{outstanding:<20}".encode(), 0)
        total = 0
        mine = os.fstat(own).st_ino
        for path in self._claim_files():
            with contextlib.suppress(OSError, ValueError), path.open("rb") as file:
                if os.fstat(file.fileno()).st_ino == mine:
                    continue
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    total += int(file.read(20))  # its build is alive
                else:
                    path.unlink(missing_ok=True)  # left by one that was killed
        return total

    def _claim_files(self) -> list[Path]:
        try:
            return [*self.claims.iterdir()]
        except OSError:
            return []  # somebody has cleaned the folder for temporary files


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """Give a name of the path that fits into a socket's address (108 bytes), by way of its open folder."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
