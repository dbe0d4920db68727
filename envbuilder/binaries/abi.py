"""Does every extension of an environment load with the torch beside it? Answered from files alone, for any architecture.

The reader's facts go through the loader's rules (loader.py); here each extension gets its verdict, each missing name
its kind, and the report its causes, the root first: "this torch has no CUDA", not eighteen symbols.
"""

from __future__ import annotations

import contextlib
import fnmatch
import gc
import os
from collections import Counter
from pathlib import Path

from envbuilder import elsewhere
from envbuilder.binaries.causes import causes_of, could_own_symbols, kind_of_symbol, verdict_of
from envbuilder.binaries.environment import TORCH_LIBRARY, interpreter_of, locate_torch, python_tag, shared_objects
from envbuilder.binaries.known import EVERYWHERE, ExpectedFault, accepted_by
from envbuilder.binaries.layout import MalformedElfError
from envbuilder.binaries.loader import LIBSTDCXX, SYSTEM, Catalog, Loader, Process, process_with
from envbuilder.binaries.symbols import demangle, owned_by_runtime, owned_by_torch
from envbuilder.binaries.system import DEBIAN_12, this_system
from envbuilder.binaries.verdicts import (
    AbiReport,
    ExtensionReport,
    Kind,
    MissingSymbol,
    NeededLibrary,
    Skipped,
    Verdict,
)
from envbuilder.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import TypeAlias

    from envbuilder.binaries.elf import Reference
    from envbuilder.binaries.environment import TorchBuild
    from envbuilder.binaries.loader import Closure, Unresolved
    from envbuilder.binaries.system import System

    Spelling: TypeAlias = Callable[[Iterable[str]], Mapping[str, str]]


OVERLAY_FOLDER = "_envbuilder_lib"  # stand-ins for system libraries, which a build's overlays load before vLLM
_MANY, _CHILD_LIMIT_S = 64, 3600
ANY_PYTHON = "any"  # a wheel may carry extensions for several


def check_environment(
    site_packages: Path,
    *,
    torch: TorchBuild | None = None,
    catalog: Catalog | None = None,
    python: str | None = None,
    machine: str | None = None,
    system: System | None = DEBIAN_12,
    expected: Sequence[ExpectedFault] = (),
) -> AbiReport:
    """Check all extensions below a site-packages folder.

    `torch`: another one than the environment's own (`catalog`: where its files are known, if they are not on the
    disk). `python`: the interpreter's tag ("311"), `machine`: what the environment is for ("aarch64"); both are found
    out where they are not given. `system`: what the environment will run on; None is this machine, where it is of the
    environment's kind. `expected`: faults that the caller accepts, beside those
    known of popular wheels and those that the environment's own target accepts.
    """
    root = site_packages.absolute()
    paths = sorted(os.path.normpath(path) for path in shared_objects(root))
    if torch is not None:  # the environment's own is not the one that is loaded
        paths = [path for path in paths if not path.startswith((f"{root}/torch/", f"{root}/functorch/"))]
    return check_catalog(
        catalog or Catalog(),
        root,
        paths,
        torch=torch or locate_torch(root),
        python=python,
        machine=machine,
        system=system,
        expected=(*expected, *accepted_by(root), *EVERYWHERE),
    )


def check_wheel(
    wheel: Path, *, torch: TorchBuild | None = None, catalog: Catalog | None = None, system: System | None = DEBIAN_12
) -> AbiReport:
    """Check all extensions of a wheel file. Raises WheelError."""
    from envbuilder.binaries.wheel import unpacked  # noqa: PLC0415 - and with it zipfile, for who asks about a wheel only

    with unpacked(wheel) as root:
        return check_environment(root, torch=torch, catalog=catalog, python=ANY_PYTHON, system=system)


def check_files(
    files: Sequence[Path], *, torch: TorchBuild | None = None, catalog: Catalog | None = None, system: System | None = DEBIAN_12
) -> AbiReport:
    """Check single files as extensions, whatever their names; without `torch`, with that of the environment they lie in."""
    paths = [os.path.normpath(file.absolute()) for file in files]
    homes = (parent for file in files for parent in file.absolute().parents if (parent / "torch" / "lib").is_dir())
    home = next(homes, None)
    root = home or files[0].absolute().parent
    torch = torch or (locate_torch(home) if home else None)
    return check_catalog(catalog or Catalog(), root, paths, torch=torch, system=system, asked=True)


def check_catalog(
    catalog: Catalog,
    root: Path,
    paths: Sequence[str],
    *,
    torch: TorchBuild | None,
    python: str | None = None,
    machine: str | None = None,
    system: System | None = DEBIAN_12,
    expected: Sequence[ExpectedFault] = (),
    asked: bool = False,
    spell: Spelling = demangle,
) -> AbiReport:
    """Check files that a catalog knows or can read.

    `asked`: each is taken for an extension, whatever its name. `spell`: how symbols are given back.
    """
    with _no_collection():
        return _check(
            catalog, root, paths, torch=torch, python=python, machine=machine, system=system, expected=expected, asked=asked, spell=spell
        )


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Hold the garbage collector off: a few hundred thousand names are made and kept, in no cycles, and it would walk them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check(
    catalog: Catalog,
    root: Path,
    paths: Sequence[str],
    *,
    torch: TorchBuild | None,
    python: str | None,
    machine: str | None,
    system: System | None,
    expected: Sequence[ExpectedFault],
    asked: bool,
    spell: Spelling,
) -> AbiReport:
    machine = machine or machine_of(catalog, paths, torch)
    system = system or this_system(machine or "")
    checker = _Checker(root=f"{root}/", catalog=catalog, system=system, machine=machine, torch=torch, spell=spell)
    python = python or interpreter_of(root, paths, torch)

    def judge(path: str) -> ExtensionReport | Skipped | None:
        tag = python_tag(path)
        if not asked and tag and tag not in {python, "abi3"} and python != ANY_PYTHON:
            return Skipped(path=checker.shown(path), reason=f"for another Python ({tag})")
        if asked or checker.is_extension(path, tag):
            return _with_expectation(checker.report(path), expected)
        return None if catalog.readable(path) else Skipped(path=checker.shown(path), reason="named like a shared object, and not one")

    judged = elsewhere.divided(judge, paths, limit_s=_CHILD_LIMIT_S) if len(paths) >= _MANY else list(map(judge, paths))
    report = AbiReport(
        torch=torch.info if torch else None,
        machine=machine,
        extensions=tuple(it for it in judged if isinstance(it, ExtensionReport)),
        skipped=tuple(it for it in judged if isinstance(it, Skipped)),
    )
    return replace(report, causes=causes_of(report, present=[path.rpartition("/")[2] for path in paths]))


def _with_expectation(report: ExtensionReport, expected: Iterable[ExpectedFault]) -> ExtensionReport:
    if report.verdict is Verdict.OK:
        return report
    reasons = (fault.reason for fault in expected if fault.verdict is report.verdict and fnmatch.fnmatchcase(report.path, fault.path))
    return replace(report, expected=next(reasons, None))


def machine_of(catalog: Catalog, paths: Sequence[str], torch: TorchBuild | None) -> str | None:
    """Return what files are for: torch's machine, else the most frequent one."""
    machines: Counter[str] = Counter()
    for path in (torch.modules[-1:] if torch else ()) or paths:
        if catalog.readable(path):
            machines[catalog.elf(path).machine] += 1
    return max(sorted(machines), key=machines.__getitem__, default=None)


class _Checker:
    """Judges the extensions of one environment."""

    def __init__(
        self, *, root: str, catalog: Catalog, system: System, machine: str | None, torch: TorchBuild | None, spell: Spelling
    ) -> None:
        self._root, self._catalog, self._machine, self._torch, self._spell = root, catalog, machine, torch, spell
        stand_ins = sorted(map(str, Path(root, OVERLAY_FOLDER).glob("*")))
        process = process_with(torch, catalog, system, machine=machine, first=stand_ins) if machine else Process()
        self._loader = Loader(catalog, system, machine=machine or "", process=process)
        self._alone = Loader(catalog, system, machine=machine or "", fallback=torch.cuda_folders if torch else ())
        self._torch_own = frozenset(torch.modules) if torch else frozenset()

    def shown(self, path: str) -> str:
        return path.removeprefix(self._root)

    def is_extension(self, path: str, tag: str | None) -> bool:
        """Tell whether a file is what Python or torch.ops loads: by its tag, its init function, or its need of torch.

        The rest are libraries, and count where an extension needs them: NVSHMEM's transports and cuFile's RDMA
        plugin need libraries that few machines have, and nobody misses them.
        """
        if tag is not None:
            return True
        name = path.rpartition("/")[2]
        if not name.endswith(".so") or not self._catalog.readable(path) or (self._torch and path.startswith(f"{self._torch.lib}/")):
            return False
        if any(map(TORCH_LIBRARY.fullmatch, self._catalog.elf(path).needed)):
            return True
        try:
            return self._catalog.defines(path, f"PyInit_{name.removesuffix('.so')}")
        except MalformedElfError:
            return True  # an ELF file that lies: better reported than passed over

    def report(self, path: str) -> ExtensionReport:
        try:
            machine = self._catalog.elf(path).machine
            if machine != self._machine:
                detail = f"{machine}, in an environment for {self._machine}"
                return ExtensionReport(path=self.shown(path), machine=machine, verdict=Verdict.WRONG_MACHINE, detail=detail)
            return self._judge(path, machine)
        except MalformedElfError as error:
            return ExtensionReport(path=self.shown(path), machine=None, verdict=Verdict.NOT_ELF, detail=str(error))

    def _judge(self, path: str, machine: str) -> ExtensionReport:
        loader = self._alone if path in self._torch_own else self._loader
        closure = loader.closure(path)
        missing = (*self._missing_symbols(loader.unresolved(closure), closure), *self._refused_versions(loader, closure))
        return ExtensionReport(
            path=self.shown(path),
            machine=machine,
            verdict=verdict_of(missing, library_missing=bool(closure.missing())),
            missing=missing,
            needed=self._needed(closure),
            detail="; ".join(dict.fromkeys(self.shown(dependency.reason) for dependency in closure.missing() if dependency.reason)),
        )

    def _missing_symbols(self, unresolved: Sequence[Unresolved], closure: Closure) -> tuple[MissingSymbol, ...]:
        root = closure.members[0]
        # A C++ name of nobody we know is the extension's own, unless another project's library that it needs may own it.
        alone = not any(could_own_symbols(dependency.soname) for dependency in closure.dependencies if dependency.needed_by == root)
        spelled = self._spell(entry.reference.name for entry in unresolved)
        info = self._torch.info if self._torch else None
        return tuple(
            MissingSymbol(
                symbol=entry.reference.name if entry.reference.version is None else f"{entry.reference.name}@{entry.reference.version}",
                demangled=spelled[entry.reference.name],
                kind=Kind.NOT_LINKED
                if self._elsewhere(entry.reference, closure)
                else kind_of_symbol(entry.reference.name, torch=info, own=alone and entry.needed_by == root),
                via=self._via(entry.needed_by, root),
            )
            for entry in unresolved
        )

    def _elsewhere(self, reference: Reference, closure: Closure) -> bool:
        """Tell whether torch or the C++ runtime defines a name after all, in a library that is not among those needed."""
        name = reference.name
        if reference.version is not None:
            return False
        if owned_by_runtime(name):
            return all(dependency.soname != LIBSTDCXX for dependency in closure.dependencies)
        return (owned_by_torch(name) or name.startswith("_Z")) and any(self._defines(module, name) for module in self._torch_own)

    def _defines(self, path: str, name: str) -> bool:
        try:
            return self._catalog.defines(path, name)
        except MalformedElfError:
            return False

    def _refused_versions(self, loader: Loader, closure: Closure) -> Iterator[MissingSymbol]:
        for soname, version, needed_by in loader.refused_versions(closure):
            system = any(dependency.soname == soname and dependency.found == SYSTEM for dependency in closure.dependencies)
            yield MissingSymbol(
                symbol=f"{soname}({version})",
                demangled=f"{soname} of version {version}",
                kind=Kind.SYSTEM_TOO_OLD if system else Kind.OTHER_LIBRARY,
                via=self._via(needed_by, closure.members[0]),
            )

    def _needed(self, closure: Closure) -> tuple[NeededLibrary, ...]:
        """The extension's own needs, and those of its libraries that are missing."""
        root = closure.members[0]
        return tuple(
            NeededLibrary(soname=d.soname, found=None if d.found is None else self.shown(d.found), via=self._via(d.needed_by, root))
            for d in closure.dependencies
            if d.needed_by == root or d.found is None
        )

    def _via(self, path: str, root: str) -> str | None:
        return None if path == root else self.shown(path)
