"""A lock as plain data, its text, and reading it back with every byte accounted for.

`serve.txt`, `quantize.txt` and, where vLLM is built from source, `build.txt` are requirements files with hashes, which
pip and uv both read. `inputs.toml` holds what they cannot: each file's name and size, what the target asked for (the *intent*, so that a changed target is
noticed), and last a digest over all of it. Nothing here names a host.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from envbuilder.errors import LockError
from envbuilder.files import digest_of, write_atomic
from envbuilder.locking.rootfs import ImageLock, image_intent, image_text, parse_image_lock
from envbuilder.locking.source import SourceLock, parse_source_lock, source_intent, source_text
from envbuilder.locking.tags import best_wheel
from envbuilder.targets.markers import marker_environment
from envbuilder.targets.model import ENVIRONMENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from envbuilder.targets.model import EnvironmentName, Machine, Release, Target

SCHEMA = "envbuilder/lock/1"
_DIGEST_LINE = re.compile(r'^digest = "sha256:([0-9a-f]{64})"\n\Z', re.MULTILINE)
_HASH = re.compile(r"\s--hash=sha256:([0-9a-f]{64})(?=\s|$)")
_BUILD = "build"  # build.txt
_HAS_SOURCE = re.compile(r"^\[source\]$", re.MULTILINE)
_WRITTEN_BY = "# Written by `envbuilder lock`; change the target's TOML instead, and lock again.\n"


@dataclass(frozen=True, kw_only=True)
class LockedFile:
    """A wheel: its name, its sha256 in hex, its bytes (0 where the locking machine could not learn them)."""

    filename: str
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class LockedRequirement:
    """One pinned distribution with every file that may be installed for it."""

    name: str
    version: str
    marker: str
    files: tuple[LockedFile, ...]


@dataclass(frozen=True, kw_only=True)
class LockedWheel:
    """The one file of a distribution that a given interpreter gets."""

    name: str
    version: str
    file: LockedFile


@dataclass(frozen=True, kw_only=True)
class Lock:
    """All that a release is built from. `digest` and `intent` are sha256 in hex."""

    target: str
    release: str
    platforms: tuple[str, ...]
    glibc: str
    python: str
    resolver: str
    intent: str
    digest: str
    environments: Mapping[EnvironmentName, tuple[LockedRequirement, ...]]

    images: ImageLock | None = None
    source: SourceLock | None = None

    def hashes(self) -> set[str]:
        """Return the sha256 of every file that the lock names: wheels, sources, and what its images are made from."""
        sources = {source.sha256 for source in self.source.sources if source.sha256} if self.source else set()
        images = self.images.hashes() if self.images else set()
        return sources | images | {file.sha256 for file in self.files()}

    def files(self) -> list[LockedFile]:
        """Return every wheel that the lock names, for whichever use."""
        build = self.source.requirements if self.source else ()
        return [file for requirements in (*self.environments.values(), build) for item in requirements for file in item.files]

    def wheels(self, environment: EnvironmentName, python: str, machine: Machine) -> tuple[LockedWheel, ...]:
        """Return what one environment consists of under an interpreter, given by its full version ("3.11.2").

        Raises LockError where the lock has no fitting file.
        """
        return self._chosen(self.environments[environment], python, machine)

    def build_wheels(self, python: str, machine: Machine) -> tuple[LockedWheel, ...]:
        """Return the tools of a source build for an interpreter of the machine that builds. Raises LockError."""
        return self._chosen(self.source.requirements if self.source else (), python, machine)

    def _chosen(self, requirements: Iterable[LockedRequirement], python: str, machine: Machine) -> tuple[LockedWheel, ...]:
        environment = marker_environment(python, machine)
        major, minor, *_ = python.split(".")
        chosen = []
        for requirement in requirements:
            if requirement.marker and not Requirement(f"x ; {requirement.marker}").marker.evaluate(environment):  # type: ignore[union-attr]
                continue
            by_name = {file.filename: file for file in requirement.files}
            name = best_wheel(by_name, python=(int(major), int(minor)), machine=machine, glibc=self.glibc)
            if name is None:
                raise LockError(
                    f"the lock has no file of {requirement.name} {requirement.version} for CPython {python} on {machine}",
                    why=f"It has: {', '.join(by_name)}.",
                    next=f"Use a Python that the lock covers ({self.python}), or lock again.",
                )
            chosen.append(LockedWheel(name=requirement.name, version=requirement.version, file=by_name[name]))
        return tuple(chosen)


def intent_of(target: Target, release: Release) -> str:
    """Return the digest of what a target asks the resolver for; gates and overlays have no part in it."""
    return digest_of(
        {
            "platforms": sorted(target.platforms),
            "glibc": target.glibc,
            "python": str(SpecifierSet(target.python)),
            "environments": {
                name: {
                    "requires": sorted(environment.requires),
                    "constraints": sorted(environment.constraints),
                    "excludes": sorted(canonicalize_name(exclusion.name) for exclusion in environment.excludes),
                }
                for name, environment in release.environments()
            },
            "known-files": sorted((file.filename, file.sha256) for file in release.known_files),
        }
    )


def check_images(lock: Lock, target: Target, release: str) -> None:
    """Raise LockError where the lock's part on images is not what the target asks for."""
    wanted = image_intent(target.images, target.machines) if target.images else None
    if wanted != (lock.images.intent if lock.images else None):
        raise LockError(
            f"the lock of {target.name} {release} is stale in its images",
            why="The target asks for other packages, or another compressor, than when the lock was made.",
            next=f"Run `envbuilder lock --images --target {target.name} --release {release}`.",
        )


def check_source(lock: Lock, target: Target, release_name: str, release: Release) -> None:
    """Raise LockError where the lock's part on the source is not what the target asks for."""
    wanted = source_intent(release.compile) if release.compile else None
    if wanted != (lock.source.intent if lock.source else None):
        raise LockError(
            f"the lock of {target.name} {release_name} is stale in its source",
            why="The target asks for another source, other build requirements or other trees than when the lock was made.",
            next=f"Run `envbuilder lock --source --target {target.name} --release {release_name}`.",
        )


# -- writing -----------------------------------------------------------------------------------------------------


def write_lock(folder: Path, lock: Lock) -> Lock:
    """Write a lock's files and return it with its digest. The digest comes last: an interrupted write is a lock that does not verify."""
    texts: dict[str, str] = {name: _requirements_text(lock.environments[name]) for name in ENVIRONMENTS}
    if lock.source:
        texts[_BUILD] = _requirements_text(lock.source.requirements)
    head = _inputs_text(lock)
    digest = _digest(head, texts)
    for name, text in texts.items():
        write_atomic(folder / f"{name}.txt", text)
    write_atomic(folder / "inputs.toml", f'{head}digest = "sha256:{digest}"\n')
    return read_lock(folder)


def _requirements_text(requirements: Iterable[LockedRequirement]) -> str:
    parts = [_WRITTEN_BY]
    for requirement in sorted(requirements, key=lambda item: (item.name, item.version)):
        marker = f" ; {requirement.marker}" if requirement.marker else ""
        hashes = sorted(file.sha256 for file in requirement.files)
        lines = [f"{requirement.name}=={requirement.version}{marker}", *(f"    --hash=sha256:{value}" for value in hashes)]
        parts.append(" \\\n".join(lines) + "\n")
    return "".join(parts)


def _inputs_text(lock: Lock) -> str:
    files = {file.filename: file for file in lock.files()}
    rows = [f'{json.dumps(name)} = {{ sha256 = "{file.sha256}", size = {file.size} }}' for name, file in sorted(files.items())]
    values = {
        "schema": SCHEMA,
        "target": lock.target,
        "release": lock.release,
        "platforms": lock.platforms,
        "glibc": lock.glibc,
        "python": lock.python,
        "resolver": lock.resolver,
        "intent": f"sha256:{lock.intent}",
    }
    head = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return (
        "\n".join(
            [
                _WRITTEN_BY.rstrip(),
                *head,
                "",
                "[files]",
                *rows,
                "",
                *(source_text(lock.source) if lock.source else ()),
                *(image_text(lock.images) if lock.images else ()),
                "[seal]",
            ]
        )
        + "\n"
    )


def _digest(head: str, texts: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name, text in (("inputs.toml", head), *((f"{name}.txt", text) for name, text in texts.items())):
        payload = text.encode()
        digest.update(f"{name} {len(payload)}\n".encode())
        digest.update(payload)
    return digest.hexdigest()


# -- reading -----------------------------------------------------------------------------------------------------


def read_lock(folder: Path) -> Lock:
    """Read a lock and prove it whole. Raises LockError: missing, changed by as much as a byte, or not a lock."""
    relock = "Take the files from version control again, or run `envbuilder lock`."
    try:
        # As bytes: reading as text takes a carriage return for a line's end, and so would not notice one.
        inputs = (folder / "inputs.toml").read_bytes().decode()
        names = (*ENVIRONMENTS, *([_BUILD] if _HAS_SOURCE.search(inputs) else []))
        texts = {name: (folder / f"{name}.txt").read_bytes().decode() for name in names}
    except FileNotFoundError as error:
        raise LockError(
            f"there is no lock in {folder}", why=f"{error.filename} is missing.", next="Run `envbuilder lock` for this target and release."
        ) from error
    except UnicodeDecodeError as error:
        raise LockError(f"the lock in {folder} is not text", why=str(error), next=relock) from error
    except OSError as error:
        raise LockError(f"the lock in {folder} cannot be read", why=f"{error.strerror}: {error.filename}", next=relock) from error
    sealed = _DIGEST_LINE.search(inputs)
    if sealed is None:
        raise LockError(f"the lock in {folder} has no digest", why="inputs.toml must end with the digest line.", next=relock)
    found = _digest(inputs[: sealed.start()], texts)
    if found != sealed[1]:
        raise LockError(
            f"the lock in {folder} is not what was written",
            why=f"Its content has the digest sha256:{found}, but it is sealed with sha256:{sealed[1]}: a byte was changed.",
            next=relock,
        )
    return _parse(folder, inputs, texts, found)


def _parse(folder: Path, text: str, texts: Mapping[str, str], digest: str) -> Lock:
    try:
        inputs: dict[str, Any] = tomllib.loads(text)
        if inputs.get("schema") != SCHEMA:
            raise LockError(
                f"the lock in {folder} is of another kind: {inputs.get('schema')!r}", next="Lock again with this version of envbuilder."
            )
        files = {row["sha256"]: LockedFile(filename=name, sha256=row["sha256"], size=row["size"]) for name, row in inputs["files"].items()}
        return Lock(
            **{key: inputs[key] for key in ("target", "release", "glibc", "python", "resolver")},
            platforms=tuple(inputs["platforms"]),
            intent=inputs["intent"].removeprefix("sha256:"),
            digest=digest,
            environments={name: tuple(parse_requirements(texts[name], files)) for name in ENVIRONMENTS},
            source=parse_source_lock(inputs["source"], tuple(parse_requirements(texts[_BUILD], files))) if _BUILD in texts else None,
            images=parse_image_lock(inputs["images"]) if "images" in inputs else None,
        )
    except (KeyError, TypeError, AttributeError, tomllib.TOMLDecodeError, InvalidRequirement) as error:
        raise LockError(
            f"the lock in {folder} cannot be read", why=f"{type(error).__name__}: {error}", next="Run `envbuilder lock`."
        ) from error


def parse_requirements(text: str, files: Mapping[str, LockedFile]) -> Iterable[LockedRequirement]:
    """Parse a requirements file of pinned, hashed lines. Raises LockError for a line that is not one of those."""
    joined = re.sub(r"\\\n", " ", text)
    for line in joined.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        hashes = _HASH.findall(line)
        requirement = Requirement(_HASH.sub("", line).strip())
        pins = [pin.version for pin in requirement.specifier if pin.operator == "=="]
        if not hashes or len(pins) != 1 or requirement.url:
            raise LockError(f"not a pinned, hashed requirement: {line[:80]!r}", next="Run `envbuilder lock`.")
        unknown = [value for value in hashes if value not in files]
        if unknown:
            raise LockError(f"{requirement.name}: sha256:{unknown[0]} has no file name in inputs.toml", next="Run `envbuilder lock`.")
        yield LockedRequirement(
            name=canonicalize_name(requirement.name),
            version=pins[0],
            marker=str(requirement.marker or ""),
            files=tuple(files[value] for value in hashes),
        )
