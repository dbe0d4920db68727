"""A wheel of vLLM from its locked inputs: the workspace, the build in it, the packing, and the proofs of what came out."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envbuilder.binaries.fatbin import parse_arch
from envbuilder.binaries.gpu_code import Way, check_gpu_code
from envbuilder.compile import isolation
from envbuilder.compile.admission import available_memory, reserve_of, too_little_free, total_memory
from envbuilder.compile.building import Build, known_units, object_of, read_records
from envbuilder.compile.packing import compressor, pack
from envbuilder.compile.sources import read_source
from envbuilder.compile.workspace import Workspace, held
from envbuilder.errors import StepError, VerificationError
from envbuilder.files import digest_of, free_bytes, human_size, sha256_file, storage_errors, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from envbuilder.binaries.gpu_code import GpuCodeReport
    from envbuilder.compile.packing import Packed
    from envbuilder.compile.sources import Pin
    from envbuilder.compile.toolchain import Compilers
    from envbuilder.compile.workspace import Inputs
    from envbuilder.console import Console

SCHEMA = "envbuilder/compile/1"
_SHIPPED = Path(__file__).resolve().parent / "known_units.json"
_ROOM_TO_GO_ON = 1_000_000_000  # in a workspace that has its parts: objects, and nvcc's temporary files
_ROOM = 6_000_000_000  # a workspace of vLLM 0.23.0 takes 2.4 GB, its objects a fifth of that; nvcc's temporary files the rest
_BUILD_TAG = "1"


@dataclass(frozen=True, kw_only=True)
class Made:
    """The wheel, and the document about it (schema envbuilder/compile/1)."""

    wheel: Path
    sha256: str
    size: int
    document: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Makes wheels of one set of inputs. `kept` is the folder in which workspaces are kept between builds."""

    inputs: Inputs
    compilers: Compilers
    published: Path
    kept: Path
    jobs: int
    console: Console
    ccache: Path | None = None

    @property
    def workspace(self) -> Path:
        """Where the build goes on: one folder for each toolchain, so that a changed source is built upon what was there."""
        parts = [*sorted(self.inputs.tools.values()), *sorted(self.inputs.libraries[name] for name in (*self.inputs.spec.cuda, "torch"))]
        return self.kept / digest_of([[path.parent.name for path in parts], self.compilers.identity])[:16]

    def make(self, goal: Path, *, log: Path, workspace: Path | None = None) -> Made:
        """Build in the kept workspace (or in another one) and write the wheel to `goal`; one build at a time in a workspace.

        Raises CompileError, EditError, HashMismatchError, ProgramError, StepError, StorageError, VerificationError.
        """
        place = Workspace(workspace or self.workspace)
        with held(place.root, self.console):
            return self._make(place, goal, log)

    def _make(self, place: Workspace, goal: Path, log: Path) -> Made:
        started = time.monotonic()
        self._require_room(place)
        self._require_memory(place)
        with storage_errors(place.root):
            place.root.mkdir(parents=True, exist_ok=True)
            log.unlink(missing_ok=True)
        chosen = isolation.choose(place.root, log=log)
        if chosen.way is isolation.Way.NONE:
            self.console.warn(f"the compile is not isolated, so its bytes are this machine's own: {chosen.why}\n{isolation.REMEDY}")
        pins = place.make(self.inputs, self.compilers, inside=chosen.root)
        known = known_units(_SHIPPED, read_records(place.root))
        build = Build(
            workspace=place, isolation=chosen, compilers=self.compilers, spec=self.inputs.spec, jobs=self.jobs, known=known, log=log, ccache=self.ccache,
            say=self.console.line,
        )  # fmt: skip
        build.configure()
        build.run(build.ninja_targets(), progress=lambda total: self.console.progress("compiling", total, unit="steps"))
        built = {path.name: path for path in sorted((place.root / "obj").glob("*.so"))}
        packed = pack(
            goal,
            published=self.published,
            source=read_source(self.inputs.sources["vllm"]),
            commit=self.inputs.commit,
            built=built,
            components=self.inputs.spec.components,
            build_tag=_BUILD_TAG,
        )
        gpu_code = require_native(built, self.inputs.spec.arch)
        document = self._document(chosen, pins, packed, gpu_code, read_records(place.root))
        self._note(started, place)
        return Made(wheel=packed.path, sha256=packed.sha256, size=packed.size, document=document)

    def look_ahead(self, workspace: Path | None = None) -> int:
        """Return the bytes of disk that a build takes yet. Raises StepError without the memory for it."""
        place = Workspace(workspace or self.workspace)
        self._require_memory(place)
        return _room_for(place)

    def _require_room(self, place: Workspace) -> None:
        free, needed = free_bytes(place.root), _room_for(place)
        if free < needed:
            raise StepError(
                f"not enough room to compile in {place.root}",
                why=f"A build takes {human_size(needed)}; {human_size(free)} are free.",
                next="Free some space, or set ENVBUILDER_CACHE to a folder on another disk.",
            )

    def _require_memory(self, place: Workspace) -> None:
        """Raise StepError where a unit that is still to be compiled cannot run: for want of memory, or of free memory."""
        known = known_units(_SHIPPED, read_records(place.root)).values()
        waiting = [unit for unit in known if not object_of(place.root, unit.name).exists()]
        if not waiting:
            return
        largest = max(waiting, key=lambda unit: unit.peak)
        have = total_memory()
        if have - reserve_of(have) // 2 < largest.peak:
            raise StepError(
                "this machine has too little memory to compile vLLM",
                why=f"{largest.name} alone takes {human_size(largest.peak)}; the machine has {human_size(have)}.",
                next="Build on a larger machine: the wheel is the same (from x86_64 as well). Or use --vllm published.",
            )
        if (free := available_memory()) < largest.peak:
            raise too_little_free(largest, free)

    def _document(
        self, chosen: isolation.Isolation, pins: Iterable[Pin], packed: Packed, gpu_code: GpuCodeReport, records: list[dict[str, Any]]
    ) -> dict[str, Any]:
        spec = self.inputs.spec
        return {
            "schema": SCHEMA,
            "source": {"filename": self.inputs.sources["vllm"].name, "sha256": self.inputs.sources["vllm"].parent.name},
            "arch": f"sm_{spec.arch.replace('.', '')}",
            "wheel": {"filename": packed.path.name, "sha256": packed.sha256, "size": packed.size, "compressor": compressor()},
            "isolation": isolation.describe(chosen),
            "compilers": self.compilers.identity,
            "inputs": {
                "trees": {name: path.parent.name for name, path in sorted(self.inputs.sources.items()) if name != "vllm"},
                "tools": {name: path.parent.name for name, path in sorted(self.inputs.tools.items())},
                "libraries": {name: self.inputs.libraries[name].parent.name for name in sorted((*spec.cuda, "torch"))},
                "published": self.published.parent.name,
            },
            "fetched_by_cmake": [asdict(pin) for pin in pins],
            "components": [{"name": it.name, "how": it.how, "reason": it.reason} for it in spec.components],
            "edits": [{"name": edit.name, "path": edit.path, "reason": edit.reason} for edit in spec.edits],
            "files": {"origins": packed.origins, "left_out": packed.left_out, "other_than_published": list(packed.differing)},
            "gpu_code": [{"path": Path(it.path).name, "cubins": it.cubins, "ptx": it.ptx, "verdict": it.verdict} for it in gpu_code.files],
            "units": [{key: record[key] for key in ("unit", "archs", "object")} for record in records if record["status"] == 0],
        }

    def _note(self, started: float, place: Workspace) -> None:
        """Keep what differs from run to run beside the workspace, not in the document: it must not change the build's bytes."""
        write_json(place.root / "last-build.json", {"seconds": round(time.monotonic() - started, 1), "jobs": self.jobs})


def _room_for(place: Workspace) -> int:
    return _ROOM_TO_GO_ON if (place.root / "obj").is_dir() else _ROOM


def require_native(built: Mapping[str, Path], arch: str) -> GpuCodeReport:
    """Check that all GPU code that was built is for the arch asked for, and none is left to be compiled at first use.

    Raises VerificationError that lists what is not.
    """
    gpu = parse_arch(arch.replace(".", ""))
    assert gpu is not None  # noqa: S101 - the target's model has checked it
    report = check_gpu_code(list(built.values()), gpu)
    wanted = f"sm_{gpu}"
    wrong = [
        f"{Path(it.path).name}: {it.cubins} {it.ptx}"
        for it in report.files
        if it.verdict is not Way.HOST_ONLY and (it.ptx or set(it.cubins) != {wanted})
    ]
    if wrong or report.unreadable:
        raise VerificationError(
            f"not all that was compiled is {wanted} code",
            why="\n".join([*wrong, *(f"{path}: {why}" for path, why in report.unreadable)]),
            next="An edit of the source that moves these units to the arch is missing; see docs/source-build.md.",
        )
    return report


def recipe() -> str:
    """Return the hash of this room's own code: how a wheel is made is an input of it like any other."""
    code = sorted(Path(__file__).resolve().parent.rglob("*.py"))
    return digest_of([(path.name, sha256_file(path)) for path in code])


def totals(root: Path) -> dict[str, Any]:
    """Sum up a workspace's records, for the summary and the bench."""
    records = [record for record in read_records(root) if record["status"] == 0]
    last = root / "last-build.json"
    return {
        "units": len(records),
        "cpu_seconds": round(sum(record["user"] + record["system"] for record in records), 1),
        "peak": max((record["peak"] for record in records), default=0),
        "last": json.loads(last.read_bytes()) if last.exists() else None,
    }
