"""Giving an environment the torch that its extension modules need, and nothing else.

First it is known, then it is done: each torch that a lock names for this interpreter is fetched by hash and every
extension of the environment is resolved against it, statically. The first one with which all of them load is put in the
place of the one that is there, by renames; whatever goes wrong on the way, the old one comes back, also after SIGKILL
(the next run finds the journal).
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from email.parser import HeaderParser
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from envbuilder.binaries.abi import check_environment
from envbuilder.binaries.environment import torch_at
from envbuilder.binaries.wheel import unpacked
from envbuilder.build.install import settle_programs
from envbuilder.errors import AbiError, UsageError
from envbuilder.facts.site_packages import distributions, find_site, torch_build
from envbuilder.files import remove_tree, storage_errors, write_json
from envbuilder.locking.tags import best_wheel
from envbuilder.store.cache import Wanted
from envbuilder.store.fetch import fetch
from envbuilder.uv import run_uv

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from envbuilder.binaries.verdicts import AbiReport
    from envbuilder.console import Console
    from envbuilder.locking.model import Lock, LockedFile
    from envbuilder.store.cache import Store
    from envbuilder.store.settings import Settings
    from envbuilder.targets.model import Machine


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

    def plan(self, environment: Path) -> Alignment:
        """Find out what is to be done. Raises UsageError (no environment), AbiError (no torch that a lock names fits)."""
        site = find_site(environment)
        if site is None:
            raise UsageError(
                f"{environment} is no environment",
                why="It has no lib/python3.*/site-packages.",
                next="Name the folder of a virtual environment.",
            )
        _restore(site)
        build = torch_build(site)
        installed = build.version if build else ""
        report = check_environment(site)
        if report.ok and installed:
            return Alignment(site=site, installed=installed, report=report, chosen=None)
        return Alignment(site=site, installed=installed, report=report, chosen=self._choose(site, report))

    def apply(self, alignment: Alignment) -> AbiReport:
        """Put the chosen torch in; return what the extensions say then. Raises AbiError, with the old one back in its place."""
        if alignment.chosen is None:
            return alignment.report
        with storage_errors(alignment.site), _swapped(alignment.site) as fresh:
            self._unpack(alignment.chosen, alignment.site, fresh)
            settle_programs(fresh, alignment.site.parents[2] / "bin")
            _exchange(alignment.site, fresh)
            report = check_environment(alignment.site)
            if not report.ok:
                raise AbiError(
                    "the extensions do not load with the new torch either", why=_causes(report), next="The old one is back in its place."
                )
        return report

    def _choose(self, site: Path, report: AbiReport) -> Candidate:
        python = site.parent.name.removeprefix("python")
        machine: Machine = "aarch64" if report.machine == "aarch64" else "x86_64"
        candidates = sorted(_candidates(self.locks, python, machine), key=lambda it: Version(it.version), reverse=True)
        pins = _pins(site)
        candidates.sort(key=lambda it: not pins.contains(it.version, prereleases=True))  # stable: what the wheels ask for comes first
        refusals = []
        for candidate in candidates:
            found = self._check(site, candidate)
            if found.ok:
                return candidate
            refusals.append(f"torch {candidate.version} ({candidate.file.filename}): {_causes(found)}")
        raise AbiError(
            "no torch that a lock names fits the extensions of this environment",
            why="\n".join([f"now: {_causes(report)}", *refusals])
            if refusals
            else f"No lock names a torch for CPython {python} on {machine}.",
            next="Build the environment from a lock (`envbuilder build`), or rebuild the extensions against the torch that is there.",
        )

    def _check(self, site: Path, candidate: Candidate) -> AbiReport:
        wheel = self._fetched(candidate)
        with unpacked(wheel) as root:
            return check_environment(site, torch=torch_at(root, source=candidate.file.filename))

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


def _causes(report: AbiReport) -> str:
    return "; ".join(cause.text for cause in report.causes) or "all extensions load"


# -- putting one in the place of the other -----------------------------------------------------------------------


@contextlib.contextmanager
def _swapped(site: Path) -> Iterator[Path]:
    """Give a folder for the new torch; on the way out remove what is left over, or bring the old one back."""
    work = _workshop(site)
    remove_tree(work)
    fresh = work / "new"
    fresh.mkdir(parents=True)
    try:
        yield fresh
    except BaseException:
        _restore(site)
        raise
    (work / "journal.json").unlink(missing_ok=True)  # from here on the new one counts
    remove_tree(work)


def _exchange(site: Path, fresh: Path) -> None:
    """Rename the old torch's folders out of the way and the new one's in, with a journal written before the first rename."""
    work = fresh.parent
    old = work / "old"
    old.mkdir()
    incoming = sorted(entry.name for entry in fresh.iterdir())
    outgoing = sorted(name for name in {*_top_level(site), *incoming} if (site / name).exists())
    write_json(work / "journal.json", {"in": incoming, "out": outgoing})
    for name in outgoing:
        (site / name).rename(old / name)
    for name in incoming:
        (fresh / name).rename(site / name)


def _restore(site: Path) -> None:
    """Undo an exchange that did not come to its end; without a journal there is nothing to undo."""
    work = _workshop(site)
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        journal = json.loads((work / "journal.json").read_bytes())
        for name in journal["in"]:
            if not (work / "new" / name).exists() and ((work / "old" / name).exists() or name not in journal["out"]):
                remove_tree(site / name)
        for name in journal["out"]:
            if (work / "old" / name).exists():
                (work / "old" / name).rename(site / name)
    remove_tree(work)


def _workshop(site: Path) -> Path:
    """Return the folder where torches are put aside: in the environment, for renames, and outside of what is checked."""
    return site.parents[2] / ".envbuilder-align"


def _top_level(site: Path) -> set[str]:
    """Return the names directly below site-packages that the installed torch owns (its RECORD), and its dist-info."""
    names = set()
    if "torch" in distributions(site):
        for info in site.glob("torch-*.dist-info"):
            names.add(info.name)
            rows = (info / "RECORD").read_text(encoding="utf-8", errors="replace").splitlines()
            names |= {row.partition("/")[0] for row in rows if "/" in row and not row.startswith(("../", "bin/"))}
    return {name for name in names if name not in {"nvidia", "..", ""}}
