"""The atlas: what torch releases define and vLLM releases refer to, as one committed file, asked offline.

Only symbols that some vLLM release refers to are kept (a few thousand of torch's 90,000), each set of them as bits
over one list of names. A pair is judged by the same rules as files on disk are: the atlas stands in for the files.
`envbuilder atlas update` makes it from the package index; each of its cells comes from symbols and from nothing else.
"""

from __future__ import annotations

import base64
import difflib
import functools
import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from envbuilder.binaries.abi import ANY_PYTHON, check_catalog
from envbuilder.binaries.elf import ElfFile, Reference, SymbolTable
from envbuilder.binaries.environment import TORCH_LIBRARIES, TorchBuild, assumed_sonames
from envbuilder.binaries.loader import Catalog
from envbuilder.binaries.verdicts import AbiReport, TorchInfo
from envbuilder.errors import ConfigurationError, UnknownNameError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from envbuilder.binaries.atlas_facts import FileFacts, WheelFacts

SCHEMA = "envbuilder/atlas/1"
_FILE = "data/atlas.json"
_NEAREST = 4
_TORCH_ROOT, _WHEEL_ROOT = "/atlas/torch-wheel", "/atlas/wheel"


@dataclass(frozen=True, kw_only=True)
class AtlasFile:
    """A shared object of a wheel; `symbols` is the number of its set: what it refers to, or what it defines.

    `references`: the number of what it refers to, for a file that defines something too: a library, an untagged extension.
    """

    path: str
    crc: int
    size: int
    soname: str | None
    needed: tuple[str, ...]
    runpath: tuple[str, ...]
    symbols: int
    defines: bool = False
    references: int | None = None


@dataclass(frozen=True, kw_only=True)
class AtlasWheel:
    """A wheel. Of torch: `build` (2.10.0+cpu) and `cuda`; of vLLM: `torch`, the version its metadata pins."""

    filename: str
    sha256: str
    version: str
    machine: str
    files: tuple[AtlasFile, ...]
    build: str | None = None
    cuda: str | None = None
    torch: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A pair for which the real loader was asked too, and said the same of every extension."""

    wheel: str
    torch: str


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """All that is known, and what can be asked of it."""

    made: str
    symbols: tuple[str, ...]
    sets: tuple[str, ...]
    torch: tuple[AtlasWheel, ...]
    vllm: tuple[AtlasWheel, ...]
    verified: tuple[Verified, ...] = ()
    _decoded: dict[int, frozenset[str]] = field(default_factory=dict, compare=False, repr=False)  # filled as it is asked

    @functools.cached_property
    def all_names(self) -> frozenset[str]:
        return frozenset(self.symbols)

    def names(self, number: int) -> frozenset[str]:
        """Return a set of symbols by its number."""
        if number not in self._decoded:
            bits = int.from_bytes(base64.b64decode(self.sets[number]), "little")
            self._decoded[number] = frozenset(name for index, name in enumerate(self.symbols) if bits >> index & 1)
        return self._decoded[number]

    def torch_release(self, version: str, machine: str) -> AtlasWheel:
        """Return a torch by its release (2.10.0) or build (2.10.0+cpu). Raises UnknownNameError."""
        known = [wheel for wheel in self.torch if wheel.machine == machine]
        for wheel in reversed(known):
            if version in {wheel.version, wheel.build}:
                return wheel
        names = sorted({wheel.build or wheel.version for wheel in known}, key=Version)
        raise UnknownNameError(f"torch release for {machine} in the atlas", version, names, likely=_of_release(version, names))

    def wheel(self, filename: str) -> AtlasWheel:
        """Return a vLLM wheel by its file name. Raises UnknownNameError."""
        for wheel in self.vllm:
            if wheel.filename == filename:
                return wheel
        likely, near = _nearest(filename, self.vllm)
        why = f"The atlas has {len(self.vllm)} wheels of vLLM; these are the nearest."
        raise UnknownNameError("wheel in the atlas", filename, near, why=why, likely=likely)

    def check(self, wheel: AtlasWheel, torch: AtlasWheel) -> AbiReport:
        """Judge a known wheel against a known torch, as if both were unpacked here."""
        catalog = self.catalog_with(torch)
        for file in wheel.files:
            path = f"{_WHEEL_ROOT}/{file.path}"
            catalog.put(path, _elf(file, wheel.machine), self._table(file))
        paths = [f"{_WHEEL_ROOT}/{file.path}" for file in wheel.files]
        return check_catalog(catalog, Path(_WHEEL_ROOT), paths, torch=self.torch_build(torch), machine=wheel.machine, python=ANY_PYTHON)

    def _table(self, file: AtlasFile) -> SymbolTable:
        wanted = file.references if file.defines else file.symbols
        undefined = tuple(map(_reference, sorted(self.names(wanted)))) if wanted is not None else ()
        return SymbolTable(defined=self.names(file.symbols) if file.defines else frozenset(), undefined=undefined)

    def torch_build(self, torch: AtlasWheel) -> TorchBuild:
        lib = f"{_TORCH_ROOT}/torch/lib"
        present = {file.path.rpartition("/")[2]: f"{_TORCH_ROOT}/{file.path}" for file in torch.files}
        return TorchBuild(
            info=TorchInfo(version=torch.build or torch.version, cuda=torch.cuda, source=f"atlas: {torch.filename}"),
            lib=lib,
            modules=tuple(present[name] for name in TORCH_LIBRARIES if name in present),
            visible=(),
            preloaded=(),
            cuda_folders=(),
            bare=True,
            assumed=assumed_sonames(torch.cuda),
        )

    def catalog_with(self, torch: AtlasWheel) -> Catalog:
        """Return a catalog in which a torch's libraries can be looked up, for files that are really here."""
        catalog = Catalog()
        for file in torch.files:
            catalog.put(f"{_TORCH_ROOT}/{file.path}", _elf(file, torch.machine), SymbolTable(defined=self.names(file.symbols)))
        return catalog

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "made": self.made,
            "symbols": list(self.symbols),
            "sets": list(self.sets),
            "torch": [_wheel_json(wheel) for wheel in self.torch],
            "vllm": [_wheel_json(wheel) for wheel in self.vllm],
            "verified": [[pair.wheel, pair.torch] for pair in self.verified],
        }

    @staticmethod
    def from_json(document: dict[str, Any]) -> Atlas:
        """Read what as_json wrote. Raises ConfigurationError on anything else."""
        if document.get("schema") != SCHEMA:
            raise ConfigurationError("this is not an atlas that this envbuilder can read", why=f"schema {document.get('schema')!r}")
        return Atlas(
            made=document["made"],
            symbols=tuple(document["symbols"]),
            sets=tuple(document["sets"]),
            torch=tuple(map(_wheel_from, document["torch"])),
            vllm=tuple(map(_wheel_from, document["vllm"])),
            verified=tuple(Verified(wheel=wheel, torch=torch) for wheel, torch in document["verified"]),
        )


@functools.cache
def load() -> Atlas:
    """Return the atlas that comes with envbuilder."""
    text = resources.files("envbuilder.binaries").joinpath(_FILE).read_text(encoding="utf-8")
    return Atlas.from_json(json.loads(text))


def build(facts: Iterable[WheelFacts], *, made: str, verified: Sequence[Verified] = ()) -> Atlas:
    """Put the facts of wheels together: the list of names that any extension refers to, and everything as sets of it."""
    wheels = sorted(facts, key=_order)
    symbols = tuple(sorted({name for wheel in wheels if wheel.project != "torch" for file in wheel.files for name in file.references}))
    plain = frozenset(symbols) | {name.partition("@")[0] for name in symbols}
    everything = tuple(sorted(plain))
    encoder = _Encoder(everything)
    made_wheels = [(wheel.project, _atlas_wheel(wheel, encoder)) for wheel in wheels]
    return Atlas(
        made=made,
        symbols=everything,
        sets=tuple(encoder.sets),
        torch=tuple(wheel for project, wheel in made_wheels if project == "torch"),
        vllm=tuple(wheel for project, wheel in made_wheels if project != "torch"),
        verified=tuple(verified),
    )


class _Encoder:
    """Numbers the sets of symbols, each different one once."""

    def __init__(self, names: Sequence[str]) -> None:
        self._index = {name: number for number, name in enumerate(names)}
        self._numbers: dict[str, int] = {}

    @property
    def sets(self) -> list[str]:
        return list(self._numbers)

    def number(self, names: Iterable[str]) -> int:
        bits = sum(1 << self._index[name] for name in set(names) if name in self._index)
        code = base64.b64encode(bits.to_bytes((bits.bit_length() + 7) // 8, "little")).decode()
        return self._numbers.setdefault(code, len(self._numbers))


def _atlas_wheel(wheel: WheelFacts, encoder: _Encoder) -> AtlasWheel:
    return AtlasWheel(
        filename=wheel.filename,
        sha256=wheel.sha256,
        version=wheel.version,
        machine=wheel.machine,
        build=wheel.build,
        cuda=wheel.cuda,
        torch=wheel.torch,
        files=tuple(_atlas_file(file, encoder) for file in wheel.files if file.machine != "none"),
    )


def _atlas_file(file: FileFacts, encoder: _Encoder) -> AtlasFile:
    return AtlasFile(
        path=file.path,
        crc=file.crc,
        size=file.size,
        soname=file.soname,
        needed=file.needed,
        runpath=file.runpath or file.rpath,
        symbols=encoder.number(file.defined or file.references),
        defines=bool(file.defined),
        references=encoder.number(file.references) if file.defined and file.references else None,
    )


def _of_release(version: str, names: Sequence[str]) -> str:
    """Return the newest build of the release that a version names or begins (2.11, 2.11.0+cu128), or ""."""
    try:
        wanted = Version(version).release
    except InvalidVersion:
        return ""
    return next((name for name in reversed(names) if Version(name).release[: len(wanted)] == wanted), "")


def _nearest(filename: str, wheels: Sequence[AtlasWheel]) -> tuple[str, list[str]]:
    """Return the wheel that was probably meant, and a few to show: of the same version and machine first, then the newest."""
    try:
        project, version, build, tags = parse_wheel_filename(filename)
    except InvalidWheelFilename:
        near = difflib.get_close_matches(filename, [wheel.filename for wheel in wheels], n=_NEAREST, cutoff=0)
        return "", near
    machines = {wheel.machine for wheel in wheels if any(tag.platform.endswith(wheel.machine) for tag in tags)}

    def strangeness(wheel: AtlasWheel) -> tuple[bool, bool, bool]:
        return Version(wheel.version) != version, wheel.machine not in machines, parse_wheel_filename(wheel.filename)[2] != build

    newest = sorted(wheels, key=lambda it: Version(it.version), reverse=True)
    ranked = sorted(newest, key=strangeness)[:_NEAREST]
    meant = project == "vllm" and bool(ranked) and Version(ranked[0].version) == version
    return ranked[0].filename if meant else "", [wheel.filename for wheel in ranked]


def _order(wheel: WheelFacts) -> tuple[str, Version, str, str]:
    try:
        version = Version(wheel.version)
    except InvalidVersion as error:
        raise ConfigurationError(f"{wheel.filename} has no version that can be ordered") from error
    return wheel.project, version, wheel.machine, wheel.filename


def _elf(file: AtlasFile, machine: str) -> ElfFile:
    return ElfFile(machine=machine, soname=file.soname, needed=file.needed, runpath=file.runpath)


def _reference(name: str) -> Reference:
    plain, _, version = name.partition("@")
    return Reference(plain, weak=False, version=version or None, library=version or None)


def _wheel_json(wheel: AtlasWheel) -> dict[str, Any]:
    known = {"build": wheel.build, "cuda": wheel.cuda, "torch": wheel.torch}
    return {
        "filename": wheel.filename,
        "sha256": wheel.sha256,
        "version": wheel.version,
        "machine": wheel.machine,
        **{name: value for name, value in known.items() if value is not None},
        "files": [
            [file.path, file.crc, file.size, file.soname, list(file.needed), list(file.runpath), file.symbols, file.defines]
            + ([] if file.references is None else [file.references])
            for file in wheel.files
        ],
    }


def _wheel_from(entry: dict[str, Any]) -> AtlasWheel:
    files = tuple(
        AtlasFile(
            path=path,
            crc=crc,
            size=size,
            soname=soname,
            needed=tuple(needed),
            runpath=tuple(runpath),
            symbols=symbols,
            defines=defines,
            references=next(iter(references), None),
        )
        for path, crc, size, soname, needed, runpath, symbols, defines, *references in entry["files"]
    )
    return AtlasWheel(**{**entry, "files": files})
