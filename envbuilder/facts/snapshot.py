"""All readers, each with its own time limit: one that fails or hangs leaves a hole in the snapshot, and says so.

Those that wait (for a child, for the journal) have a thread each. The others are a few milliseconds of small files: they
go one after the other, for twenty threads would spend more time on taking Python's lock from each other. Where one of
them hangs, the next goes on in another thread.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from pathlib import Path

from envbuilder import __version__, elsewhere
from envbuilder.facts import detect
from envbuilder.facts.model import Choice, Environment, Extension, Reading, Snapshot
from envbuilder.facts.world import World
from envbuilder.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

LIMIT_S = 5.0
_EXTENSIONS_LIMIT_S = 20
_PATIENCE_S = 0.25


@value
class Reader:
    """A named part of the world. `limit_s` counts from its start; `waits`: mostly for others, beside whom work can be done."""

    name: str
    read: Callable[[], Any]
    limit_s: float = LIMIT_S
    waits: bool = False


def take(
    world: World | None = None,
    *,
    environment: Path | None = None,
    model: Path | None = None,
    target: str = "",
    meanwhile: Callable[[], object] | None = None,
) -> Snapshot:
    """Read a machine, and the environment at `environment` (or the one in use) on it. Never raises for what it finds.

    `meanwhile` is called when only those that wait for others are left: work for a process that would else do nothing.
    """
    world = world or World()
    choice = Choice(path=str(world.directory / environment), why="--env") if environment else find_environment(world, target=target)
    chosen = Path(choice.path) if choice else None
    # The slowest starts before anything else is even imported, on another core.
    early = [_extensions_reader(world.at(chosen))] if chosen else []
    identity = detect.identify(world.root)
    values, readings = _gather([*early, *_readers(world, chosen, world.directory / model if model else None)], meanwhile)
    extensions = values.pop("extensions", None)
    found = values.get("environment")
    if isinstance(found, Environment) and found.valid:
        values["environment"] = replace(found, extensions=extensions)
    nvml = values.get("nvml")
    if nvml is not None and nvml.gpus:
        first = nvml.gpus[0]
        identity = detect.refine(
            identity, name=first.name, compute_capability=first.compute_capability, memory_known=first.memory_total is not None
        )
    return Snapshot(
        tool=__version__,
        machine=identity.machine.value,
        target=target,
        chosen=choice,
        product=identity.product,
        detected=identity.evidence,
        readers=readings,
        **values,
    )


def find_environment(world: World, *, target: str = "") -> Choice | None:
    """Return the environment that one would mean without naming it: the active one, one made here, or a container's own."""
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if value := world.variables.get(name, ""):
            return Choice(path=str(world.directory / value), why=name)
    here = [
        *((place, "built in this folder") for place in _built(world, target)),
        *((name, "found in this folder") for name in (".venv", "venv")),
    ]
    for name, why in here:
        place = world.directory / name
        if world.exists(place / "pyvenv.cfg") and not _our_own(world, place):
            return Choice(path=str(place), why=why)
    return _of_container(world)


def _built(world: World, target: str) -> list[str]:
    """Return the serving environments that builds left in this folder, that of the target asked for or of this machine first."""
    names = world.names(world.directory / ".envbuilder")
    wanted = target or (detect.identify(world.root).target if len(names) > 1 else "")
    return [f".envbuilder/{name}/envs/serve" for name in sorted(names, key=lambda name: (name != wanted, name))]


def _our_own(world: World, place: Path) -> bool:
    """Whether it is what envbuilder runs in itself (a clone's .venv), and nothing that serves."""
    return world.live and place.resolve() == Path(sys.prefix).resolve() and not _serves(world, place)


def _serves(world: World, prefix: Path) -> bool:
    return any(
        name.startswith("python3") and world.exists(prefix / "lib" / name / kind / package)
        for name in world.names(prefix / "lib")
        for kind in ("site-packages", "dist-packages")
        for package in ("vllm", "torch")
    )


def _of_container(world: World) -> Choice | None:
    """Return the prefix where an image has its packages: that of the first Python on PATH, or Debian's /usr/local."""
    from envbuilder.facts.machine import container_of  # noqa: PLC0415 - `detect_target` must not pay for it

    if not container_of(world):
        return None
    pythons = (world.which("python3"), world.which("python"), "/usr/local/bin/python3")
    prefixes = dict.fromkeys(Path(python).parent.parent for python in pythons if python)
    return next((Choice(path=str(prefix), why="the container's own") for prefix in prefixes if _serves(world, prefix)), None)


def _readers(world: World, chosen: Path | None, model: Path | None) -> list[Reader]:
    from envbuilder.facts import driver, files_around, kernel_log, machine, toolchain  # noqa: PLC0415 - `detect_target` must not pay for them
    from envbuilder.facts import environment as environments  # noqa: PLC0415

    readers = [
        Reader(name="nvml", read=lambda: driver.read_nvml(world), waits=True),
        Reader(name="kernel_log", read=lambda: kernel_log.read_kernel_log(world), waits=True),
        Reader(name="host", read=lambda: machine.read_host(world)),
        Reader(name="dgx", read=lambda: machine.read_dgx(world)),
        Reader(name="cpu", read=lambda: machine.read_cpu(world)),
        Reader(name="memory", read=lambda: machine.read_memory(world)),
        Reader(name="places", read=lambda: machine.read_places(world, chosen)),
        Reader(name="pci", read=lambda: machine.read_pci(world)),
        Reader(name="driver", read=lambda: driver.read_driver(world)),
        Reader(name="toolkits", read=lambda: toolchain.read_toolkits(world)),
        Reader(name="compilers", read=lambda: toolchain.read_compilers(world)),
        Reader(name="packages", read=lambda: toolchain.read_packages(world)),
        Reader(name="containers", read=lambda: toolchain.read_containers(world)),
        Reader(name="processes", read=lambda: machine.read_processes(world)),
        Reader(name="network", read=lambda: machine.read_network(world)),
        Reader(name="variables", read=lambda: toolchain.read_variables(world)),
        Reader(name="checkpoints", read=lambda: files_around.read_checkpoints(world, model)),
        Reader(name="project", read=lambda: files_around.read_project(world)),
    ]
    if chosen is not None:
        readers.insert(0, Reader(name="environment", read=lambda: environments.read_environment(world, chosen)))
    return readers


def _extensions_reader(environment: Path) -> Reader:
    def work() -> Any:  # noqa: ANN401 - plain data
        from envbuilder.facts.extensions import read_extensions  # noqa: PLC0415 - imported in the child

        return read_extensions(environment)

    found = elsewhere.start(work, limit_s=_EXTENSIONS_LIMIT_S)
    return Reader(name="extensions", read=lambda: tuple(Extension(**fields) for fields in found()), limit_s=_EXTENSIONS_LIMIT_S, waits=True)


def read_all(readers: Iterable[Reader]) -> tuple[dict[str, Any], tuple[Reading, ...]]:
    """Run readers side by side; return what they gave, and how each fared."""
    return _gather(readers, None)


def _gather(readers: Iterable[Reader], meanwhile: Callable[[], object] | None) -> tuple[dict[str, Any], tuple[Reading, ...]]:
    """Wait for readers, each as long as it may take."""
    works = [_Work(reader) for reader in readers]
    for work in (work for work in works if work.reader.waits):
        _in_a_thread(work.run)
    _one_after_the_other(deque(work for work in works if not work.reader.waits))
    if meanwhile is not None:
        meanwhile()
    values: dict[str, Any] = {}
    readings = []
    for work in works:
        reading, value = work.result()
        readings.append(reading)
        if reading.status == "ok" and value is not None:
            values[reading.name] = value
    return values, tuple(readings)


def _one_after_the_other(pending: deque[_Work]) -> None:
    """Have readers run in order; whoever has waited long enough for one leaves it behind, and goes on with the next."""

    def drain() -> None:
        while pending:
            with contextlib.suppress(IndexError):  # a thread that was left behind came back, and took the last one
                pending.popleft().run()

    while pending:
        thread = _in_a_thread(drain)
        while thread and thread.is_alive():
            left = len(pending)
            thread.join(_PATIENCE_S)
            if left == len(pending):
                break


def _in_a_thread(work: Callable[[], None]) -> threading.Thread | None:
    """Start work in a thread, or do it here, where a limit on processes allows none.

    A thread that hangs in the kernel (a dead network mount, a wedged driver) cannot be ended: it is a daemon, left
    behind, and dies with the process.
    """
    thread = threading.Thread(target=work, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        work()
        return None
    return thread


class _Work:
    """One reader at work, and what came of it."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._done = threading.Event()
        self._value: Any = None
        self._error = ""
        self._started = time.monotonic()
        self._milliseconds = 0

    def run(self) -> None:
        self._started = time.monotonic()
        try:
            self._value = self.reader.read()
        except Exception as error:  # noqa: BLE001 - a reader that fails is a fact, whatever it failed of
            self._error = f"{type(error).__name__}: {error}"[:300]
        self._milliseconds = round(1000 * (time.monotonic() - self._started))
        self._done.set()

    def result(self) -> tuple[Reading, Any]:
        """Wait until it is done, or has had its time."""
        name = self.reader.name
        if not self._done.wait(max(0.0, self._started + self.reader.limit_s - time.monotonic())):
            waited = round(1000 * (time.monotonic() - self._started))
            return Reading(name=name, status="timeout", milliseconds=waited, error=f"no answer in {self.reader.limit_s:g} s"), None
        if self._error:
            return Reading(name=name, status="failed", milliseconds=self._milliseconds, error=self._error), None
        return Reading(name=name, status="ok", milliseconds=self._milliseconds), self._value
