"""Giving an environment the torch that its extension modules need, and nothing else.

First it is known, then it is done: each torch that a lock names for this interpreter is fetched by hash and every
extension of the environment is resolved against it, statically, with the CUDA libraries that are there. The first one
against which nothing speaks is put in the place of the one that is there, by renames; whatever goes wrong on the way, the
old one comes back, also after SIGKILL (the next run finds the journal). What no torch can cure, an MPI that is not there
for one, is told, and keeps no torch out.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import zipfile
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from envbuilder.binaries.abi import check_environment, check_files
from envbuilder.binaries.environment import among, torch_at
from envbuilder.binaries.verdicts import Kind, merged
from envbuilder.binaries.wheel import unpacked
from envbuilder.build.install import settle_programs
from envbuilder.errors import AbiError, UsageError
from envbuilder.facts.site_packages import distributions, find_site, torch_build
from envbuilder.files import digest_of, remove_tree, storage_errors, write_json
from envbuilder.locking.tags import best_wheel
from envbuilder.store.cache import Wanted
from envbuilder.store.fetch import fetch
from envbuilder.turns import alone
from envbuilder.uv import run_uv

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from envbuilder.binaries.verdicts import AbiReport, Cause
    from envbuilder.console import Console
    from envbuilder.locking.model import Lock, LockedFile
    from envbuilder.store.cache import Store
    from envbuilder.store.settings import Settings
    from envbuilder.targets.model import Machine

# Faults that one torch has and another has not.
_TORCHS = frozenset({Kind.NO_TORCH, Kind.CPU_ONLY_TORCH, Kind.CUDA_MAJOR, Kind.OLD_CXX11_ABI, Kind.TORCH_VERSION})
_CUDA = ("nvidia-", "cuda-toolkit")  # what distributions with CUDA's libraries are called
_PARTS = ("site", "bin")  # site-packages, and the programs


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A torch that some lock names for an interpreter: its version, and its wheel by hash."""

    version: str
    file: LockedFile


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """What `align` found: the torch that is there ("" if none), what the extensions say of it, and the one to put in."""

    site: Path
    installed: str
    report: AbiReport
    chosen: Candidate | None


@dataclass(frozen=True, kw_only=True)
class Aligner:
    """Aligns environments from a store, with the torch wheels that `locks` name."""

    store: Store
    settings: Settings
    console: Console
    locks: Sequence[Lock]
    offline: bool = False

    @contextlib.contextmanager
    def undisturbed(self, environment: Path) -> Iterator[None]:
        """Hold an environment for this process: another align of it waits. What an interrupted one left is undone first.

        Raises UsageError: no environment.
        """
        site = _site_of(environment)
        lock = self.store.root / f"align-{digest_of(str(site.resolve()))[:16]}.lock"
        with alone(lock, self.console, f"another align is at work in {environment}"):
            with storage_errors(site):
                _restore(site)
            yield

    def plan(self, environment: Path) -> Alignment:
        """Find out what is to be done, and change nothing.

        Raises UsageError (no environment, or one in the midst of an align), AbiError (no torch that a lock names fits).
        """
        site = _site_of(environment)
        if _workshop(site).exists():
            raise UsageError(
                f"{environment} is in the midst of an align",
                why=f"There is {_workshop(site)}: another one is at work, or was interrupted.",
                next="Run it without --dry-run: it waits for the other, or brings the old torch back, and then looks.",
            )
        build = torch_build(site)
        report = check_environment(site)
        needed = any(cause.kind in _TORCHS for cause in report.causes)
        return Alignment(
            site=site, installed=build.version if build else "", report=report, chosen=self._choose(site, report) if needed else None
        )

    def apply(self, alignment: Alignment) -> AbiReport:
        """Put the chosen torch in; return what the extensions say then. Raises AbiError, with the old one back in its place."""
        if alignment.chosen is None:
            return alignment.report
        with storage_errors(alignment.site), _swapped(alignment.site) as new:
            self._unpack(alignment.chosen, alignment.site, new / "site")
            settle_programs(new / "site", new / "bin")
            _exchange(alignment.site)
            report = check_environment(alignment.site)
            if against := _against(report, alignment.report):
                raise AbiError(
                    "the extensions do not load with the new torch either", why=_texts(against), next="The old one is back in its place."
                )
        return report

    def _choose(self, site: Path, report: AbiReport) -> Candidate:
        python = site.parent.name.removeprefix("python")
        machine: Machine = "aarch64" if report.machine == "aarch64" else "x86_64"
        candidates = sorted(_candidates(self.locks, python, machine), key=lambda it: Version(it.version), reverse=True)
        pins = _pins(site)
        candidates.sort(key=lambda it: not pins.contains(it.version, prereleases=True))  # stable: what the wheels ask for comes first
        refusals: dict[Candidate, tuple[Cause, ...]] = {}
        for candidate in candidates:
            refusals[candidate] = _against(self._check(site, candidate), report)
            if not refusals[candidate]:
                return candidate
        for candidate, causes in refusals.items():
            if {cause.kind for cause in causes} == {Kind.CUDA_LIBRARY}:
                raise _without_cuda(candidate, causes, packages=_cuda_packages(self._fetched(candidate)), environment=site.parents[2])
        raise _none_fits(report, refusals, f"No lock names a torch for CPython {python} on {machine}.")

    def _check(self, site: Path, candidate: Candidate) -> AbiReport:
        """Resolve the extensions against a torch that is not there yet, and that torch itself against what is there."""
        wheel = self._fetched(candidate)
        with unpacked(wheel) as root:
            torch = among(torch_at(root, source=candidate.file.filename), site)
            itself = check_files([Path(torch.modules[0])], torch=torch, system=None)
            return merged([check_environment(site, torch=torch), itself])

    def _fetched(self, candidate: Candidate) -> Path:
        file = candidate.file
        wanted = Wanted(project="torch", filename=file.filename, sha256=file.sha256, size=file.size)
        backend = "cpu" if candidate.version.endswith("+cpu") else None
        fetch([wanted], store=self.store, settings=self.settings, console=self.console, offline=self.offline, torch_backend=backend)
        return self.store.path(file.sha256, file.filename)

    def _unpack(self, candidate: Candidate, site: Path, goal: Path) -> None:
        """Unpack the wheel with uv, which checks its hash and links it from its cache; for any platform."""
        file = candidate.file
        minor = site.parent.name.removeprefix("python")
        machine = "aarch64" if "aarch64" in file.filename else "x86_64"
        requirement = goal.parent / "torch.txt"
        requirement.write_text(f"torch=={candidate.version} --hash=sha256:{file.sha256}\n", encoding="utf-8")
        command: list[str | Path] = ["pip", "install", "--no-deps", "--target", goal, "--python-version", minor]
        command += ["--python-platform", f"{machine}-manylinux_2_39", "--require-hashes", "--no-index", "--no-build", "--offline"]
        command += ["--find-links", self.store.link_folder([(file.sha256, file.filename)]), "-r", requirement]
        run_uv(command, cache=self.store.uv_cache, what=f"unpacking {file.filename}", variables={"UV_NO_INSTALLER_METADATA": "1"})


def _candidates(locks: Iterable[Lock], python: str, machine: Machine) -> set[Candidate]:
    major, minor = (int(part) for part in python.split("."))
    found = set()
    for lock in locks:
        for requirement in (it for requirements in lock.environments.values() for it in requirements if it.name == "torch"):
            by_name = {file.filename: file for file in requirement.files}
            name = best_wheel(by_name, python=(major, minor), machine=machine, glibc="2.39")
            if name:
                found.add(Candidate(version=requirement.version, file=by_name[name]))
    return found


def _pins(site: Path) -> SpecifierSet:
    """Return what the installed distributions that pin torch with == ask for, put together."""
    pins = SpecifierSet()
    for metadata in site.glob("*.dist-info/METADATA"):
        headers = HeaderParser().parsestr(metadata.read_text(encoding="utf-8", errors="replace"), headersonly=True)
        for text in headers.get_all("Requires-Dist") or ():
            with contextlib.suppress(InvalidRequirement):
                requirement = Requirement(text)
                if (
                    canonicalize_name(requirement.name) == "torch"
                    and not requirement.marker
                    and re.match(r"==", str(requirement.specifier))
                ):
                    pins &= requirement.specifier
    return pins


def _site_of(environment: Path) -> Path:
    site = find_site(environment)
    if site is None:
        raise UsageError(
            f"{environment} is no environment",
            why="It has no lib/python3.*/site-packages.",
            next="Name the folder of a virtual environment.",
        )
    return site


def _against(found: AbiReport, before: AbiReport) -> tuple[Cause, ...]:
    """Return what speaks against a torch: faults that a torch makes or cures, and CUDA libraries that are missed only now."""
    missed = {path for cause in before.causes if cause.kind is Kind.CUDA_LIBRARY for path in cause.extensions}
    return tuple(
        cause
        for cause in found.causes
        if cause.kind in _TORCHS or (cause.kind is Kind.CUDA_LIBRARY and not missed.issuperset(cause.extensions))
    )


def _none_fits(report: AbiReport, refusals: Mapping[Candidate, tuple[Cause, ...]], nothing: str) -> AbiError:
    rows = [f"torch {candidate.version} ({candidate.file.filename}): {_texts(causes)}" for candidate, causes in refusals.items()]
    return AbiError(
        "no torch that a lock names fits the extensions of this environment",
        why="\n".join([f"now: {_texts(report.causes)}", *rows]) if rows else nothing,
        next="Build the environment from a lock (`envbuilder build`), or rebuild the extensions against the torch that is there.",
    )


def _without_cuda(candidate: Candidate, causes: Iterable[Cause], *, packages: Sequence[str], environment: Path) -> AbiError:
    """One torch would be right if only its CUDA libraries were there: say so, and how they get there."""
    command = shlex.join(["uv", "pip", "install", "--python", str(environment / "bin/python"), *packages])
    return AbiError(
        f"torch {candidate.version} fits the extensions of this environment, which has not the CUDA libraries that it needs",
        why=_texts(causes),
        next="`align` puts in no package but torch. Build the environment from a lock (`envbuilder build`), or install what this torch asks for, and then align:"
        f"\n  {command}",
    )


def _cuda_packages(wheel: Path) -> list[str]:
    """Return what a torch wheel requires of CUDA's libraries, as an installer takes it."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        headers = HeaderParser().parsestr(archive.read(name).decode(errors="replace"), headersonly=True)
    wanted = (text.partition(";")[0].strip() for text in headers.get_all("Requires-Dist") or ())
    return [requirement for requirement in wanted if requirement.startswith(_CUDA)]


def _texts(causes: Iterable[Cause]) -> str:
    return "; ".join(cause.text for cause in causes)


# -- putting one in the place of the other -----------------------------------------------------------------------


@contextlib.contextmanager
def _swapped(site: Path) -> Iterator[Path]:
    """Give a folder for the new torch; on the way out remove what is left over, or bring the old one back."""
    work = _workshop(site)
    for part in _PARTS:
        (work / "new" / part).mkdir(parents=True)
    try:
        yield work / "new"
    except BaseException:
        _restore(site)
        raise
    (work / "journal.json").unlink(missing_ok=True)  # from here on the new one counts
    remove_tree(work)


def _exchange(site: Path) -> None:
    """Rename the old torch's files out of the way and the new one's in, with a journal written before the first rename."""
    work = _workshop(site)
    for part in _PARTS:
        (work / "old" / part).mkdir(parents=True)
    incoming = sorted(f"{part}/{entry.name}" for part in _PARTS for entry in (work / "new" / part).iterdir())
    outgoing = sorted(name for name in {*_owned(site), *incoming} if _place(site, name).exists())
    write_json(work / "journal.json", {"in": incoming, "out": outgoing})
    for name in outgoing:
        _place(site, name).rename(work / "old" / name)
    for name in incoming:
        (work / "new" / name).rename(_place(site, name))


def _restore(site: Path) -> None:
    """Undo an exchange that did not come to its end; without a journal there is nothing to undo."""
    work = _workshop(site)
    try:
        journal = json.loads((work / "journal.json").read_bytes())
    except FileNotFoundError:
        journal = {"in": [], "out": []}
    # What goes wrong from here on ends the run, with the old torch where it is: only after it is back its place goes.
    for name in journal["in"]:
        if not (work / "new" / name).exists() and ((work / "old" / name).exists() or name not in journal["out"]):
            remove_tree(_place(site, name))
    for name in journal["out"]:
        if (work / "old" / name).exists():
            (work / "old" / name).rename(_place(site, name))
    remove_tree(work)


def _workshop(site: Path) -> Path:
    """Return the folder where torches are put aside: in the environment, for renames, and outside of what is checked."""
    return site.parents[2] / ".envbuilder-align"


def _place(site: Path, name: str) -> Path:
    """Return where something of one of the parts lies in an environment."""
    part, _, rest = name.partition("/")
    return (site if part == "site" else site.parents[2] / part) / rest


def _owned(site: Path) -> set[str]:
    """Return what the installed torch owns (its RECORD): the names directly below site-packages, its dist-info, its programs."""
    names: set[str] = set()
    if "torch" in distributions(site):
        for info in site.glob("torch-*.dist-info"):
            names.add(f"site/{info.name}")
            rows = [row.split(",")[0] for row in (info / "RECORD").read_text(encoding="utf-8", errors="replace").splitlines()]
            names |= {f"site/{top}" for row in rows if "/" in row and (top := row.partition("/")[0]) not in {"..", "bin", "nvidia", ""}}
            names |= {f"bin/{row.rpartition('/')[2]}" for row in rows if row.startswith("../../../bin/")}
    return names
