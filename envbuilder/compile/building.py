"""Configuring and building in a workspace, with the launcher in front of every compile."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envbuilder.compile.admission import PATIENCE_S, Coordinator
from envbuilder.compile.inside.launcher import CCACHE, RECORDS, SOCKET
from envbuilder.compile.policy import Unit
from envbuilder.compile.toolchain import SYSTEM_PATH
from envbuilder.errors import ProgramError, StepError
from envbuilder.files import human_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from envbuilder.compile.isolation import Isolation
    from envbuilder.compile.toolchain import Compilers
    from envbuilder.compile.workspace import Workspace
    from envbuilder.console import Progress
    from envbuilder.targets.model import Compile

_PROGRESS = re.compile(r"^\[(\d+)/(\d+)\] ")
_WINDOW = 64  # compiles that ninja may have begun: the coordinator picks among those that wait


class CompileError(StepError):
    """A unit did not compile."""

    reference = "compile"


@dataclass(frozen=True, kw_only=True)
class Build:
    """One build: where, how kept apart, with what."""

    workspace: Workspace
    isolation: Isolation
    compilers: Compilers
    spec: Compile
    jobs: int
    known: Mapping[str, Unit]
    log: Path
    ccache: Path | None = None
    say: Callable[[str], None] = lambda _: None

    # -- configure -----------------------------------------------------------------------------------------------

    def configure(self) -> None:
        """Run CMake. Raises ProgramError with CMake's own words."""
        root, compilers = self.isolation.root, self.compilers
        python = str(self.isolation.python)
        launcher = f"{python};-IS;{root / 'launcher.py'}"
        cutlass = root / "deps" / "cutlass"
        settings = {
            "CMAKE_TOOLCHAIN_FILE": root / "toolchain.cmake",
            "CMAKE_MAKE_PROGRAM": root / self.workspace.ninja,
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_SKIP_RPATH": "ON",  # where the libraries lie here is nobody else's business
            "CMAKE_CXX_COMPILER_LAUNCHER": launcher,
            "CMAKE_CUDA_COMPILER_LAUNCHER": launcher,
            "VLLM_TARGET_DEVICE": "cuda",
            "VLLM_PYTHON_EXECUTABLE": python,
            "Python_INCLUDE_DIR": compilers.python_include,
            "Python_SOABI": f"cpython-{compilers.python_version.replace('.', '')}-{compilers.machine}-linux-gnu",
            "Python_SOSABI": "abi3",
            "CUDA_TOOLKIT_ROOT_DIR": root / "cuda",
            "CUTLASS_INCLUDE_DIR": cutlass / "include",
            "CUTLASS_TOOLS_UTIL_INCLUDE_DIR": cutlass / "tools/util/include",
            "CUTLASS_DIR": cutlass,
            "FETCHCONTENT_FULLY_DISCONNECTED": "ON",
            "FETCHCONTENT_BASE_DIR": root / "obj/_deps",
        }
        command: list[str | Path] = [root / self.workspace.cmake, "-G", "Ninja", "-S", root / "src", "-B", root / "obj", "-Wno-dev"]
        command += [f"-D{name}={value}" for name, value in settings.items()]
        self.isolation.run(command, variables=self.variables(), log=self.log, what="configuring vLLM", timeout_s=900)

    def variables(self) -> dict[str, str]:
        """All variables that the build sees: none of the user's."""
        root = self.isolation.root
        return {
            "PATH": f"{root / 'cuda/bin'}:{root / 'tools/bin'}:{SYSTEM_PATH}",
            "HOME": str(root / "tmp"),
            "TMPDIR": str(root / "tmp"),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "SOURCE_DATE_EPOCH": "315532800",  # 1980-01-01, the first day that a zip can name
            "PYTHONPATH": f"{root / 'python'}:{root / 'tools'}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "CUDA_HOME": str(root / "cuda"),
            "CUDA_TOOLKIT_ROOT": str(root / "cuda"),  # FindCUDA asks for this one when it crosses
            "TORCH_CUDA_ARCH_LIST": self.spec.arch,
            "VLLM_CUTLASS_SRC_DIR": str(root / "deps/cutlass"),
            RECORDS: str(root / "records"),
            "NINJA_STATUS": "[%f/%t] ",
            **({CCACHE: str(self.ccache), "CCACHE_DIR": str(root / "ccache"), "CCACHE_NOHASHDIR": "1"} if self.ccache else {}),
        }

    # -- build ---------------------------------------------------------------------------------------------------

    def run(self, targets: Sequence[str], *, progress: Callable[[int], AbstractContextManager[Progress]] | None = None) -> None:
        """Build targets of ninja; `progress` shows steps, once ninja has said how many there are.

        Raises CompileError that names the units which failed, and why as far as it shows; StepError when others hold
        the memory.
        """
        address = self.workspace.root / "run" / "admission"
        coordinator = Coordinator(address=address, cores=self.jobs, known=self.known, on_short=self._short)
        root = self.isolation.root
        began = self.begun()
        variables = {**self.variables(), SOCKET: str(root / "run/admission")}
        with coordinator.serving(), contextlib.ExitStack() as stack:
            steps = _Steps(stack, progress)

            def watch(line: str) -> None:
                if line.startswith("FAILED:"):
                    coordinator.refuse()
                steps.see(line)

            try:
                command = self._ninja(max(_WINDOW, 4 * self.jobs), targets)
                self.isolation.run(command, variables=variables, log=self.log, what="compiling vLLM", on_line=watch)
            except ProgramError as error:
                raise coordinator.starved or self._explained(error, since=began) from error

    def _ninja(self, jobs: int, targets: Sequence[str]) -> list[str | Path]:
        root = self.isolation.root
        return [root / self.workspace.ninja, "-C", root / "obj", "-j", str(jobs), *targets]

    def _short(self, unit: Unit, free: int) -> None:
        self.say(
            f"{unit.name} takes {human_size(unit.peak)} of memory and {human_size(max(0, free))} are free: "
            f"waiting up to {PATIENCE_S / 60:.0f} minutes for more …"
        )

    def begun(self) -> float:
        """Return the time of the newest record, to tell those of this run from older ones."""
        return max((path.stat().st_mtime for path in (self.workspace.root / "records").glob("*.json")), default=0.0)

    def _explained(self, error: ProgramError, *, since: float) -> CompileError | ProgramError:
        failed = [record for record in read_records(self.workspace.root, newer=since) if record["status"] != 0]
        if not failed:
            return error
        units = [record["unit"] for record in failed]
        # One at a time, and without the coordinator's address: nobody listens there any more.
        command = self._ninja(1, [goal_of(unit) for unit in units])
        replay = self.isolation.replay(command, variables=self.variables(), failed=error)
        return CompileError(
            f"{len(units)} unit{'s' if len(units) > 1 else ''} did not compile: {', '.join(units)}",
            why="\n".join(map(explain_failure, failed)),
            next=f"Log: {self.log}\n{replay}\n"
            "Run the same command again: it goes on from here, and a unit that ran out of memory then runs alone.",
        )

    def ninja_targets(self) -> list[str]:
        """Return ninja's targets for the extensions of the components that are built here."""
        return [f"{component.name}" for component in self.spec.components if component.how == "source"]


class _Steps:
    """Ninja's steps as progress, which is drawn from the first one on."""

    def __init__(self, stack: contextlib.ExitStack, start: Callable[[int], AbstractContextManager[Progress]] | None) -> None:
        self._stack, self._start = stack, start
        self._progress: Progress | None = None
        self._done = 0

    def see(self, line: str) -> None:
        match = _PROGRESS.match(line)
        if match is None or self._start is None:
            return
        if self._progress is None:
            self._progress = self._stack.enter_context(self._start(int(match[2])))
        self._progress.advance(int(match[1]) - self._done)
        self._done = int(match[1])


def explain_failure(record: Mapping[str, Any]) -> str:
    """Say of a unit that failed what is known: killed for memory, a compiler that crashed, or an error in the source."""
    if record["killed"]:
        return (
            f"{record['unit']}: its compiler was killed after {record['seconds']:.0f} s at {human_size(record['peak'])}; "
            "that is what the kernel does when memory runs out (`dmesg` says so)."
        )
    tail = "\n".join(record["words"].strip().splitlines()[-12:])
    if record["crashed"]:
        return f"{record['unit']}: the compiler itself crashed, after {record['seconds']:.0f} s at {human_size(record['peak'])}:\n{tail}"
    return f"{record['unit']}: exit code {record['status']}:\n{tail}"


def read_records(root: Path, *, newer: float = -1.0) -> list[dict[str, Any]]:
    """Return the units' records, by name. One that is half written belongs to a launcher that was killed; it is passed over."""
    records = []
    for path in (root / "records").glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            if path.stat().st_mtime > newer:
                records.append(json.loads(path.read_bytes()))
    return sorted(records, key=lambda record: str(record["unit"]))


def known_units(shipped: Path, records: Iterable[Mapping[str, Any]]) -> dict[str, Unit]:
    """Return what is known of units: what ships with envbuilder, and over it what this machine's own builds recorded."""
    known = {}
    with contextlib.suppress(OSError):
        rows = json.loads(shipped.read_bytes())["units"]
        known = {row["unit"]: Unit(name=row["unit"], seconds=row["seconds"], peak=row["peak"]) for row in rows}
    for record in records:
        if record["killed"]:
            known[record["unit"]] = Unit(name=record["unit"], seconds=record["seconds"], peak=record["peak"], alone=True)
        elif record["status"] == 0 and record["cache"] != "hit":
            known[record["unit"]] = Unit(name=record["unit"], seconds=record["seconds"], peak=record["peak"])
    return known


def goal_of(unit: str) -> str:
    """Return the object of a unit as ninja names it, by the unit's name (launcher.unit_of)."""
    target, _, source = unit.partition("/")
    return f"CMakeFiles/{target}.dir/{source}.o"


def object_of(root: Path, unit: str) -> Path:
    return root / "obj" / goal_of(unit)


def default_jobs() -> int:
    return len(os.sched_getaffinity(0))


def find_ccache() -> Path | None:
    """Return ccache if the user wants it (ENVBUILDER_CCACHE=1) and has it. Raises ProgramError when it is wanted and not there."""
    if os.environ.get("ENVBUILDER_CCACHE", "").lower() not in {"1", "true", "yes", "on"}:
        return None
    found = shutil.which("ccache", path=SYSTEM_PATH)
    if found is None:
        raise ProgramError("ccache is not installed", why="ENVBUILDER_CCACHE asks for it.", next="Debian, Ubuntu: apt install ccache")
    return Path(found)
