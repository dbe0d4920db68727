"""What the atlas keeps of one wheel: of torch, what its libraries define; of vLLM, what its extensions refer to."""

from __future__ import annotations

import re
import tempfile
from dataclasses import asdict, dataclass

from envbuilder.binaries.elf import ElfFile, read_elf, read_symbols
from envbuilder.binaries.environment import SHARED_OBJECT, TORCH_LIBRARIES, python_tag
from envbuilder.binaries.layout import MalformedElfError, checked_bounds, read_header, read_segments
from envbuilder.binaries.source import FileSource, NotKeptError, StreamedSource
from envbuilder.binaries.symbols import owned_by_runtime
from envbuilder.binaries.system import BASE_SONAMES, driver_symbol, named_by_system, python_symbol
from envbuilder.torch_version import parse_torch_version

TYPE_CHECKING = False
if TYPE_CHECKING:
    import zipfile
    from collections.abc import Callable, Iterator
    from typing import Any

    from envbuilder.binaries.elf import SymbolTable
    from envbuilder.binaries.source import ByteSource

_REQUIRES_TORCH = re.compile(r"^Requires-Dist:\s*torch\s*==\s*([0-9][^\s;,]*)", re.MULTILINE)
_CHUNK = 1 << 20
_ENDS = 40 << 20  # torch's names take 16 MB at the end of libtorch_cpu.so
_MAX_METADATA = 4 << 20


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """One shared object. `references`: strong ones that no base system, interpreter or driver satisfies, as name[@version]."""

    path: str
    crc: int
    size: int
    machine: str
    soname: str | None
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]
    references: tuple[str, ...] = ()
    defined: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WheelFacts:
    """One wheel. `torch` is the version that its metadata pins; `cuda` and `build` (2.10.0+cpu) are a torch wheel's own."""

    filename: str
    sha256: str
    project: str
    version: str
    machine: str
    torch: str | None = None
    build: str | None = None
    cuda: str | None = None
    files: tuple[FileFacts, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(document: dict[str, Any]) -> WheelFacts:
        lists = ("needed", "rpath", "runpath", "references", "defined")
        files = tuple(FileFacts(**{**file, **{name: tuple(file[name]) for name in lists}}) for file in document["files"])
        return WheelFacts(**{**document, "files": files})


def read_torch_wheel(archive: zipfile.ZipFile, *, filename: str, sha256: str, version: str, machine: str) -> WheelFacts:
    """Read what a torch wheel defines. Raises MalformedElfError, zipfile.BadZipFile."""
    by_name = {
        entry.filename.rpartition("/")[2]: entry for entry in archive.infolist() if entry.filename.startswith(("torch/lib/", "torch.libs/"))
    }
    pending = [name for name in TORCH_LIBRARIES if name in by_name]
    files: dict[str, FileFacts] = {}
    while pending:
        name = pending.pop(0)
        if name in files:
            continue
        files[name] = _read(archive, by_name[name], _definitions)
        pending += [needed for needed in files[name].needed if needed in by_name]
    build = parse_torch_version(archive.read("torch/version.py")[:_CHUNK].decode("utf-8", "replace"))
    return WheelFacts(
        filename=filename,
        sha256=sha256,
        project="torch",
        version=version,
        machine=machine,
        build=build.version if build else None,
        cuda=build.cuda if build else None,
        files=tuple(files.values()),
    )


def read_extension_wheel(archive: zipfile.ZipFile, *, filename: str, sha256: str, project: str, version: str, machine: str) -> WheelFacts:
    """Read what the extensions of a wheel refer to. Raises MalformedElfError, zipfile.BadZipFile."""
    files = tuple(_read(archive, entry, _needs) for entry in archive.infolist() if SHARED_OBJECT.search(entry.filename))
    return WheelFacts(
        filename=filename, sha256=sha256, project=project, version=version, machine=machine, torch=_pinned_torch(archive), files=files
    )


def matters(name: str, version: str | None, library: str | None) -> bool:
    """Tell whether a reference says anything of torch or CUDA: not the system's, the interpreter's or the driver's."""
    if library in BASE_SONAMES or python_symbol(name) or driver_symbol(name):
        return False
    return version is not None or not (named_by_system(name, BASE_SONAMES) or owned_by_runtime(name))


def _needs(path: str, table: SymbolTable) -> dict[str, tuple[str, ...]]:
    chosen = [it for it in table.undefined if not it.weak and matters(it.name, it.version, it.library)]
    references = tuple(sorted(it.name if it.version is None else f"{it.name}@{it.version}" for it in chosen))
    # A library beside the extensions may serve them; an extension serves nobody.
    return {"references": references, "defined": () if python_tag(path) else tuple(sorted(table.defined))}


def _definitions(_path: str, table: SymbolTable) -> dict[str, tuple[str, ...]]:
    return {"defined": tuple(sorted(table.defined))}


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, choose: Callable[[str, SymbolTable], dict[str, tuple[str, ...]]]) -> FileFacts:
    """Read one file's tables as it is unpacked. Only where that does not do (moved program headers), write it to the disk."""
    try:
        with archive.open(entry) as stream, checked_bounds():
            elf, table = _read_tables(StreamedSource(stream, entry.file_size, ends=_ENDS, pieces=_tables))
    except MalformedElfError as error:
        if not isinstance(error.__cause__, NotKeptError):
            raise
        with tempfile.TemporaryDirectory(prefix="envbuilder-atlas-") as folder, FileSource(archive.extract(entry, folder)) as file:
            elf, table = _read_tables(file)
    return FileFacts(
        path=entry.filename,
        crc=entry.CRC,
        size=entry.file_size,
        machine=elf.machine,
        soname=elf.soname,
        needed=elf.needed,
        rpath=elf.rpath,
        runpath=elf.runpath,
        **(choose(entry.filename, table) if table else {}),
    )


def _read_tables(source: ByteSource) -> tuple[ElfFile, SymbolTable | None]:
    try:
        return read_elf(source), read_symbols(source)
    except MalformedElfError as error:
        if error.is_elf:
            raise
        return ElfFile(machine="none"), None


def _tables(start: ByteSource) -> list[tuple[int, int]]:
    """Choose the dynamic section, and each small segment: patchelf puts tables it has moved into one of their own."""
    try:
        segments, dynamic = read_segments(start, read_header(start))
    except MalformedElfError:
        return []
    chosen = [segment for segment in segments if segment.size <= _ENDS]
    return [(segment.offset, segment.size) for segment in ([*chosen, dynamic] if dynamic else chosen)]


def _pinned_torch(archive: zipfile.ZipFile) -> str | None:
    for name in _metadata(archive):
        found = _REQUIRES_TORCH.search(archive.read(name)[:_MAX_METADATA].decode("utf-8", "replace"))
        return found[1] if found else None
    return None


def _metadata(archive: zipfile.ZipFile) -> Iterator[str]:
    return (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
