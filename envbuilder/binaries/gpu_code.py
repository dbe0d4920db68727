"""What of a file's GPU code runs on a GPU: natively, by its family, compiled from PTX at first use, or not at all.

The rules are NVIDIA's (CUDA C++ Programming Guide, "Application Compatibility" and "Feature Set Compiler Targets"):
machine code for X.y runs on X.z where z >= y; code for an `a` target runs on exactly that number; for an `f` target,
within its major from its number on. So sm_120 and sm_120f run on a GB10 (12.1), sm_120a does not.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

from envbuilder.binaries.elf import read_elf_path
from envbuilder.binaries.environment import TORCH_LIBRARY, python_tag, shared_objects
from envbuilder.binaries.fatbin import GpuCode, read_code_outside, read_gpu_code
from envbuilder.binaries.layout import MalformedElfError
from envbuilder.binaries.source import FileSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import Any

    from envbuilder.binaries.fatbin import Arch, Code

SCHEMA = "envbuilder/gpu-code/1"
GPU_FILES = (".cubin", ".fatbin")


class Way(StrEnum):
    """How code gets to run on a GPU, the best first."""

    NATIVE = "native"
    FAMILY = "family"
    JIT = "jit"
    NONE = "none"
    HOST_ONLY = "host-only"


@dataclass(frozen=True, kw_only=True)
class GpuCodeFile:
    """One file: its pieces by arch, and how its translation units run. `verdict`: the best way any of them has.

    A file is seldom of one kind: vLLM's `_C` has units for sm_120f, others as PTX, and some for other GPUs only.
    `outside`: how many units lie outside .nv_fatbin, where one looks only if nothing in it runs.
    """

    path: str
    cubins: dict[str, int]
    ptx: dict[str, int]
    units: dict[str, int]
    verdict: Way
    outside: int = 0


@dataclass(frozen=True, kw_only=True)
class GpuCodeReport:
    """All files asked about, for one arch. `unreadable`: (path, why).

    `ok`: each path asked about has GPU code that runs, or none at all, none of its packages is `lacking`, and every
    file could be read. A file that cannot run is no fault among others: vLLM ships FlashAttention 3, for sm_90a only,
    to every GPU. A package is: cuBLAS beside it does not make up for a vLLM without code for this GPU.
    """

    arch: str
    ok: bool
    files: tuple[GpuCodeFile, ...]
    unreadable: tuple[tuple[str, str], ...] = ()
    lacking: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "arch": self.arch,
            "ok": self.ok,
            "files": [asdict(file) for file in self.files],
            "unreadable": [{"path": path, "why": why} for path, why in self.unreadable],
            "lacking": list(self.lacking),
        }

    @staticmethod
    def from_json(document: dict[str, Any]) -> GpuCodeReport:
        """Read what as_json wrote. Raises KeyError, ValueError or TypeError on anything else."""
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema {document['schema']!r} is not {SCHEMA!r}")
        return GpuCodeReport(
            arch=document["arch"],
            ok=document["ok"],
            files=tuple(GpuCodeFile(**{**file, "verdict": Way(file["verdict"])}) for file in document["files"]),
            unreadable=tuple((entry["path"], entry["why"]) for entry in document["unreadable"]),
            lacking=tuple(document.get("lacking", ())),
        )


def runs(code: Code, gpu: Arch) -> Way:
    """Tell how one piece of code gets to run on a GPU, whose number alone counts (121 for sm_121a)."""
    same_family = code.arch.major == gpu.major and code.arch.number <= gpu.number
    match code.arch.variant:
        case "a":
            fits = code.arch.number == gpu.number
        case "f":
            fits = same_family
        case _:
            fits = code.arch.number <= gpu.number if code.ptx else same_family
    if not fits:
        return Way.NONE
    if code.ptx:
        return Way.JIT
    return Way.NATIVE if code.arch.number == gpu.number else Way.FAMILY


def best(ways: Iterable[Way]) -> Way:
    order = list(Way)
    return min(ways, key=order.index, default=Way.HOST_ONLY)


def judge(path: str, code: GpuCode, gpu: Arch) -> GpuCodeFile:
    """Judge a file: each translation unit runs in the best way that any piece of its code has."""
    units: Counter[Way] = Counter()
    for pieces, count in code.units.items():
        if pieces:
            units[best(runs(piece, gpu) for piece in pieces)] += count
    return GpuCodeFile(
        path=path,
        cubins=_counted(code, ptx=False),
        ptx=_counted(code, ptx=True),
        units={way.value: units[way] for way in Way if units[way]},
        verdict=best(units),
        outside=code.outside,
    )


def check_gpu_code(paths: Sequence[Path], gpu: Arch) -> GpuCodeReport:
    """Read files and folders. In a folder, what is not ELF at all is passed over: it holds no GPU code."""
    return merged([_check_folder(path, gpu) if path.is_dir() else _check_file(path, gpu) for path in paths], gpu)


def merged(reports: Sequence[GpuCodeReport], gpu: Arch) -> GpuCodeReport:
    return GpuCodeReport(
        arch=f"sm_{gpu}",
        ok=all(report.ok for report in reports),
        files=tuple(file for report in reports for file in report.files),
        unreadable=tuple(entry for report in reports for entry in report.unreadable),
        lacking=tuple(name for report in reports for name in report.lacking),
    )


def below(package: Path, report: GpuCodeReport) -> GpuCodeReport:
    """Return a package's report with whole paths, for it lies elsewhere than what it is shown with."""
    if not package.is_dir():
        return report
    return replace(
        report,
        files=tuple(replace(file, path=f"{package}/{file.path}") for file in report.files),
        unreadable=tuple((f"{package}/{path}", why) for path, why in report.unreadable),
        lacking=() if report.ok else (str(package),),
    )


def _check_file(path: Path, gpu: Arch) -> GpuCodeReport:
    files, unreadable = _read([(str(path), str(path))], gpu)
    unreadable += [(str(path), "not an ELF file")] if not files and not unreadable else []
    return _report([(shown, code) for shown, code in files], unreadable, gpu)


def _check_folder(root: Path, gpu: Arch) -> GpuCodeReport:
    found = sorted(shared_objects(root, also=GPU_FILES))
    loose = [path for path in found if path.endswith(GPU_FILES)]
    files, unreadable = _read([(path, os.path.relpath(path, root)) for path in found if not path.endswith(GPU_FILES)], gpu)
    # Loose cubins come by the ten thousand (flashinfer-cubin): one entry for each package.
    cubins, broken = _read([(path, os.path.relpath(path, root).partition("/")[0]) for path in loose], gpu)
    packages: dict[str, GpuCode] = {}
    for package, code in cubins:
        packages[package] = packages[package] + code if package in packages else code
    files += [(f"{package}/**", code) for package, code in packages.items()]
    report = _report(files, [*unreadable, *broken], gpu)
    lacking = tuple(_lacking(root, report.files))
    return replace(report, ok=report.ok and not lacking, lacking=lacking)


def _lacking(root: Path, files: Iterable[GpuCodeFile]) -> Iterator[str]:
    """Yield the packages in a folder that Python loads for their GPU code, and of which none runs.

    Those are packages with an extension module. One of libraries or cubins alone (flashinfer_cubin) is chosen from by
    others, which may well do without it.
    """
    if (root / "__init__.py").is_file():
        return  # it is one package, and judged as a whole
    each_alone = next(root.glob("*.dist-info"), None) is not None  # site-packages: a module at its top is a package too
    packages: dict[str, list[GpuCodeFile]] = defaultdict(list)
    for file in files:
        name, below, _ = file.path.partition("/")
        packages[name if below or each_alone else "its top level"].append(file)
    for name, its in packages.items():
        if best(file.verdict for file in its) is Way.NONE and any(_is_extension(root / file.path) for file in its):
            yield name


def _is_extension(path: Path) -> bool:
    if python_tag(str(path)) is not None:
        return True
    try:
        return any(map(TORCH_LIBRARY.fullmatch, read_elf_path(path).needed))
    except (MalformedElfError, OSError):
        return False  # `package/**`, which stands for cubins, among them


def _read(paths: Iterable[tuple[str, str]], gpu: Arch) -> tuple[list[tuple[str, GpuCode]], list[tuple[str, str]]]:
    files: list[tuple[str, GpuCode]] = []
    unreadable: list[tuple[str, str]] = []
    for path, shown in paths:
        try:
            files.append((shown, _code_of(path, gpu)))
        except MalformedElfError as error:
            if error.is_elf:
                unreadable.append((shown, str(error)))
        except OSError as error:
            unreadable.append((shown, error.strerror or str(error)))
    return files, unreadable


def _code_of(path: str, gpu: Arch) -> GpuCode:
    """Read a file's GPU code; all of its data is searched only where .nv_fatbin has nothing that runs."""
    with FileSource(path) as source:
        code = read_gpu_code(source)
        if path.endswith(GPU_FILES) or any(runs(piece, gpu) is not Way.NONE for piece in code.pieces):
            return code
        return code + read_code_outside(source)


def _report(files: Iterable[tuple[str, GpuCode]], unreadable: Sequence[tuple[str, str]], gpu: Arch) -> GpuCodeReport:
    judged = tuple(judge(shown, code, gpu) for shown, code in files)
    runs_somewhere = best(file.verdict for file in judged) is not Way.NONE
    return GpuCodeReport(arch=f"sm_{gpu}", ok=runs_somewhere and not unreadable, files=judged, unreadable=tuple(unreadable))


def _counted(code: GpuCode, *, ptx: bool) -> dict[str, int]:
    """Count pieces by their full name, in the order of the archs."""
    chosen = sorted((piece for piece in code.pieces if piece.ptx == ptx), key=lambda piece: piece.arch)
    return {str(piece): code.pieces[piece] for piece in chosen}
