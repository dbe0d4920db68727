"""Making a lock: uv resolves what a target asks for, once for every Python of its range, and we keep names and hashes.

uv's own lock file names hosts, so it stays in a temporary folder: versions and markers come from its export, files,
sizes and hashes from the lock itself. Of each distribution only the one wheel that each Python would get is kept,
since some releases are served twice (vLLM 0.23.0 has a build tag `-2`) and a version alone does not pin bytes.
"""

from __future__ import annotations

import json
import tempfile
import tomllib
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

from envbuilder.compile.sources import COMPILED, pins_of, read_source
from envbuilder.errors import FetchError, HashMismatchError, LockError, ProgramError, StepError
from envbuilder.files import digest_of, sha256_file
from envbuilder.locking.model import Lock, LockedFile, LockedRequirement, intent_of
from envbuilder.locking.source import LockedSource, SourceLock, source_intent
from envbuilder.locking.tags import best_wheel
from envbuilder.store.cache import Wanted
from envbuilder.store.fetch import fetch
from envbuilder.store.git import archive_name, write_archive
from envbuilder.store.index import local_path
from envbuilder.store.settings import Settings, uv_arguments
from envbuilder.targets.model import Environment
from envbuilder.uv import run_uv

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from envbuilder.console import Console
    from envbuilder.store.cache import Store
    from envbuilder.targets.model import Commit, Compile, KnownFile, Release, Target

_CPYTHONS = [(3, minor) for minor in range(11, 16)]  # those that a target's `python` may speak of


def resolve(target: Target, release_name: str, release: Release, *, store: Store, settings: Settings, console: Console) -> Lock:
    """Resolve both environments of a release. Raises LockError with the resolver's own explanation when nothing fits."""
    environments = {}
    with tempfile.TemporaryDirectory(prefix="envbuilder-lock-") as folder:
        stand_ins = Path(folder) / "known-files"
        stand_ins.mkdir()
        _make_stand_ins(release, stand_ins, store=store, settings=settings, console=console)
        for name, environment in release.environments():
            with console.step(f"resolve {name}") as step:
                project = Path(folder) / name
                project.mkdir()
                resolver = _Resolver(target=target, release=release, project=project, stand_ins=stand_ins, store=store, settings=settings)
                environments[name] = tuple(resolver.resolve(environment))
                step.detail = f"{len(environments[name])} distributions"
    version = run_uv(["--version"], cache=store.uv_cache, what="asking uv for its version", capture=True).stdout.split()[1]
    return Lock(
        target=target.name,
        release=release_name,
        platforms=target.platforms,
        glibc=target.glibc,
        python=target.python,
        resolver=f"uv {version}",
        intent=intent_of(target, release),
        digest="",
        environments=environments,
    )


def resolve_source(target: Target, release: Release, *, store: Store, settings: Settings, console: Console) -> SourceLock | None:
    """Resolve what building a release from source needs, for every machine that may build it; None where it is not offered.

    vLLM's own source is fetched: which others its build would fetch stands in it.
    """
    if (spec := release.compile) is None:
        return None
    builders = target.model_copy(update={"platforms": ("linux/x86_64", "linux/aarch64")})
    environment = Environment(requires=spec.requires)
    asked = {canonicalize_name(Requirement(text).name) for text in spec.requires}
    with tempfile.TemporaryDirectory(prefix="envbuilder-lock-") as folder, console.step("resolve source") as step:
        project = Path(folder) / "source"
        project.mkdir()
        resolver = _Resolver(target=builders, release=release, project=project, stand_ins=project, store=store, settings=settings)
        # What they require in turn (torch, for FlashInfer) has no part in a compile.
        requirements = tuple(resolver.resolve(environment, only=asked))
        sources = _sources(spec, store=store, settings=settings, console=console)
        step.detail = f"{len(requirements)} distributions, {len(sources)} sources"
    return SourceLock(intent=source_intent(spec), requirements=requirements, sources=sources)


def _sources(spec: Compile, *, store: Store, settings: Settings, console: Console) -> tuple[LockedSource, ...]:
    archives = {name: _locked_commit(name, commit, store=store) for name, commit in spec.commits.items()}
    if spec.sdist:
        sdist = spec.sdist
        fetch([Wanted(project="vllm", **sdist.model_dump())], store=store, settings=settings, console=console)
        archives["vllm"] = LockedSource(name="vllm", **sdist.model_dump())
    own = archives["vllm"]
    pins = pins_of(read_source(store.path(own.sha256, own.filename), prefixes=COMPILED))
    trees: dict[str, dict[str, str]] = defaultdict(dict)
    for tree in spec.trees:
        if tree.sha256:
            trees[tree.name.partition("-")[0]][f"{tree.distribution}:{tree.path}"] = tree.sha256
    fetched = (
        LockedSource(name=it.name, repository=it.repository, revision=it.revision, trees=trees[it.name])
        for it in pins
        if it.name not in archives
    )
    return (*archives.values(), *fetched)


def _locked_commit(name: str, asked: Commit, *, store: Store) -> LockedSource:
    """Fetch a commit and put its archive into the store: its hash is what is locked."""
    with store.incoming(digest_of([asked.repository, asked.revision])) as partial:
        commit = write_archive(asked.repository, asked.revision, partial)
        filename, sha256, size = archive_name(asked.repository, commit), sha256_file(partial), partial.stat().st_size
        store.admit(partial, sha256, filename)
    return LockedSource(
        name=name, repository=asked.repository, revision=asked.revision, commit=commit, filename=filename, sha256=sha256, size=size
    )


def pythons_of(specifier: str) -> list[tuple[int, int]]:
    """Return the CPython minor versions that a target's `python` admits."""
    return [(major, minor) for major, minor in _CPYTHONS if SpecifierSet(specifier).contains(f"{major}.{minor}.99")]


@dataclass(frozen=True, kw_only=True)
class _Resolver:
    target: Target
    release: Release
    project: Path
    stand_ins: Path
    store: Store
    settings: Settings

    def resolve(self, environment: Environment, *, only: Collection[str] | None = None) -> Iterator[LockedRequirement]:
        """Yield what an environment consists of, or of that `only` the distributions so named."""
        (self.project / "pyproject.toml").write_text(self._pyproject(environment), encoding="utf-8")
        options, variables = uv_arguments(self.settings)
        lock: list[str | Path] = ["lock", "--project", self.project, "--find-links", self.stand_ins]
        try:
            run_uv(
                [*lock, *options],
                cache=self.store.uv_cache,
                what=f"resolving {self.project.name}",
                variables=variables,
            )
        except ProgramError as error:
            raise _unresolved(error, f"{self.target.name} asks for in {self.project.name}") from error
        export: list[str | Path] = [
            "export",
            "--project",
            self.project,
            "--frozen",
            "--no-hashes",
            "--no-emit-project",
            "--no-annotate",
            "--no-header",
        ]
        exported = run_uv(export, cache=self.store.uv_cache, what="exporting the lock", capture=True).stdout
        files = self._files(tomllib.loads((self.project / "uv.lock").read_text(encoding="utf-8")))
        for line in exported.splitlines():
            requirement = Requirement(line)
            version = next(iter(requirement.specifier)).version
            name = canonicalize_name(requirement.name)
            marker = str(requirement.marker or "")
            if only is None or name in only:
                best = tuple(self._best(name, version, files[name, version]))
                yield LockedRequirement(name=name, version=version, marker=marker, files=best)

    def _pyproject(self, environment: Environment) -> str:
        """A throwaway project that asks uv for exactly this environment, on exactly these platforms, from wheels only."""
        platforms = json.dumps([f"sys_platform == 'linux' and platform_machine == '{machine}'" for machine in self.target.machines])
        lines = [
            "[project]",
            'name = "envbuilder-environment"',
            'version = "0"',
            f"requires-python = {json.dumps(self.target.python)}",
            f"dependencies = {json.dumps(environment.requires)}",
            "[tool.uv]",
            f"environments = {platforms}",
            f"required-environments = {platforms}",
            "no-build = true",
            f"constraint-dependencies = {json.dumps(environment.constraints)}",
            f"exclude-dependencies = {json.dumps([exclusion.name for exclusion in environment.excludes])}",
        ]
        return "\n".join(lines) + "\n"

    def _files(self, locked: Mapping[str, Any]) -> dict[tuple[str, str], list[LockedFile]]:
        """Return the wheels of uv's lock by distribution; a known file has the target's hash in place of its stand-in's."""
        known = {file.filename: file for file in self.release.known_files}
        files: defaultdict[tuple[str, str], list[LockedFile]] = defaultdict(list)
        for package in locked["package"]:
            for wheel in package.get("wheels", ()):
                place = wheel.get("url") or wheel.get("path") or wheel["filename"]
                filename = unquote(urlsplit(place).path).rpartition("/")[2]
                if filename in known:
                    file = LockedFile(filename=filename, sha256=known[filename].sha256, size=known[filename].size)
                elif "hash" in wheel:
                    file = LockedFile(filename=filename, sha256=wheel["hash"].removeprefix("sha256:"), size=wheel.get("size", 0))
                else:  # a folder of wheels states no hashes
                    file = self._hashed(place, filename)
                files[canonicalize_name(package["name"]), package["version"]].append(file)
        # Where another source has a file of the same version, uv names that source's files alone and not the stand-ins.
        for name, item in known.items():
            project, version, _, _ = parse_wheel_filename(name)
            there = files.get((str(project), str(version)), [])
            if there and name not in {file.filename for file in there}:
                there.append(LockedFile(filename=name, sha256=item.sha256, size=item.size))
        return files

    def _hashed(self, place: str, filename: str) -> LockedFile:
        path = local_path(place) if place.startswith("file:") else self.project / place
        if not (path and path.is_file()):
            raise LockError(
                f"no source states a sha256 of {filename}",
                why=f"It was found at {place}.",
                next="Name an index that states hashes, or a folder that holds the file, in your settings.",
            )
        return LockedFile(filename=filename, sha256=sha256_file(path), size=path.stat().st_size)

    def _best(self, name: str, version: str, files: Sequence[LockedFile]) -> Iterator[LockedFile]:
        by_name = {file.filename: file for file in files}
        pythons = pythons_of(self.target.python)
        machines = self.target.machines
        chosen = {
            best_wheel(by_name, python=python, machine=machine, glibc=self.target.glibc) for python in pythons for machine in machines
        }
        chosen.discard(None)
        if not chosen:
            raise LockError(
                f"{name} {version} has no wheel for glibc {self.target.glibc} on {' or '.join(machines)}",
                why=f"Its wheels: {', '.join(sorted(by_name)) or 'none'}.",
                next="Raise `glibc` in the target, or constrain the distribution to a version with such a wheel.",
            )
        yield from sorted((by_name[filename] for filename in chosen if filename), key=lambda file: file.filename)


def _unresolved(error: ProgramError, what: str) -> LockError | StepError:
    """Tell what cannot be from what could not be found out: only the first is for the target's author to mend."""
    if "No solution found" in error.why:
        return LockError(f"nothing fits what {what}", why=error.why, next="Change `requires`, `constraints` or `python` in the target.")
    return StepError(f"could not resolve what {what}", why=error.why, next="Check the network, and the indexes in pip's and uv's settings.")


def _make_stand_ins(release: Release, folder: Path, *, store: Store, settings: Settings, console: Console) -> None:
    """Make for each known file a wheel of its name with nothing but metadata, for the resolver to read.

    The wheels of one version have the same metadata for every Python, so the one that can be had speaks for all.
    """
    versions: defaultdict[tuple[str, str], list[KnownFile]] = defaultdict(list)
    for file in release.known_files:
        project, version, _, _ = parse_wheel_filename(file.filename)
        versions[str(project), str(version)].append(file)
    for (name, _), files in versions.items():
        wanted = [Wanted(project=name, filename=file.filename, sha256=file.sha256, size=file.size) for file in files]
        metadata = _metadata_of_any(wanted, store=store, settings=settings, console=console, torch_backend=release.torch_backend)
        for file in files:
            stem = "-".join(file.filename.split("-")[:2])
            tags = "-".join(file.filename.removesuffix(".whl").split("-")[-3:])
            with zipfile.ZipFile(folder / file.filename, "w") as archive:
                archive.writestr(f"{stem}.dist-info/METADATA", metadata)
                archive.writestr(
                    f"{stem}.dist-info/WHEEL", f"Wheel-Version: 1.0\nGenerator: envbuilder\nRoot-Is-Purelib: false\nTag: {tags}\n"
                )
                archive.writestr(f"{stem}.dist-info/RECORD", "")


def _metadata_of_any(wanted: Sequence[Wanted], *, store: Store, settings: Settings, console: Console, torch_backend: str | None) -> bytes:
    refusals = []
    for item in wanted:
        try:
            fetch([item], store=store, settings=settings, console=console, torch_backend=torch_backend)
        except (FetchError, HashMismatchError) as error:
            refusals.append(error.why)
            continue
        with zipfile.ZipFile(store.path(item.sha256, item.filename)) as archive:
            name = next(member for member in archive.namelist() if member.endswith(".dist-info/METADATA"))
            return archive.read(name)
    raise LockError(
        f"none of the known files of {wanted[0].project} can be had",
        why="\n".join(refusals),
        next="The resolver needs the metadata of one of them: name a folder that has it in PIP_FIND_LINKS.",
    )
