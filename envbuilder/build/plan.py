"""What a build is to do, decided before anything is done."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from envbuilder.build.interpreters import find_interpreter
from envbuilder.errors import ConfigurationError, LockError, UsageError
from envbuilder.locking.model import check_source, intent_of, read_lock
from envbuilder.store.settings import read_settings
from envbuilder.targets.catalogue import lock_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from envbuilder.build.interpreters import Interpreter
    from envbuilder.layout import Layout
    from envbuilder.locking.model import Lock, LockedWheel
    from envbuilder.locking.source import LockedSource
    from envbuilder.store.cache import Store
    from envbuilder.store.settings import Settings
    from envbuilder.targets.model import EnvironmentName, Machine, Release, Target


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A build's inputs, all of them: target and release, the proved lock, the interpreter, and where things are and go."""

    target: Target
    release_name: str
    release: Release
    lock: Lock
    interpreter: Interpreter
    layout: Layout
    store: Store
    settings: Settings
    offline: bool
    smoke: bool
    wheels: Mapping[EnvironmentName, tuple[LockedWheel, ...]]
    lock_folder: Path
    images: bool = True
    vllm: Literal["source", "published"] = "published"
    tools: tuple[LockedWheel, ...] = ()  # of a source build, for the machine that builds
    sources: Mapping[str, LockedSource] = field(default_factory=dict)  # of a source build: the archives, by name
    jobs: int | None = None  # at once, in a source build; None: one for each core
    verify: bool = False  # whether a source build is made twice and compared


def make_plan(
    target: Target,
    target_file: Path,
    release_name: str | None,
    *,
    machine: Machine,
    layout: Layout,
    store: Store,
    offline: bool,
    smoke: bool,
    images: bool = True,
    vllm: str | None = None,
    jobs: int | None = None,
    verify: bool = False,
) -> Plan:
    """Read the lock and the settings and check that they fit the target and this machine; `machine` is the one built for.

    Raises LockError (missing, changed, stale), UsageError (a way to vLLM that is not offered), ConfigurationError
    (another system, no fitting Python).
    """
    _require_linux()
    name, release = target.release(release_name)
    folder = lock_folder(target_file, target, name)
    lock = _current_lock(folder, target, name, target_file=target_file)
    interpreter = find_interpreter(target, machine, store=store)
    way = choose_vllm(release, vllm)
    if verify and way != "source":
        raise _nothing_to_verify(target, name, release)
    if way == "source":
        check_source(lock, target, name, release)
    return Plan(
        target=target,
        release_name=name,
        release=release,
        lock=lock,
        interpreter=interpreter,
        layout=layout,
        store=store,
        settings=read_settings(),
        offline=offline,
        smoke=smoke,
        wheels={part: lock.wheels(part, interpreter.version, interpreter.machine) for part, _ in release.environments()},
        lock_folder=folder,
        images=images,
        vllm=way,
        tools=lock.build_wheels(platform.python_version(), builder_machine()) if way == "source" else (),
        sources=lock.source.archives if way == "source" and lock.source else {},
        jobs=jobs,
        verify=verify,
    )


def _nothing_to_verify(target: Target, name: str, release: Release) -> UsageError:
    return UsageError(
        "--verify compares two compiles of vLLM, and this build compiles nothing",
        why="It takes the published wheel." if release.compile else f"{target.name} {name} has no vLLM to be compiled.",
        next="Leave --verify out" + (", or build with --vllm source." if release.compile else "."),
    )


def _require_linux() -> None:
    if platform.system() != "Linux":
        raise ConfigurationError("envbuilder builds on Linux only", why=f"This is {platform.system()}.")


def _current_lock(folder: Path, target: Target, release: str, *, target_file: Path) -> Lock:
    lock = read_lock(folder)
    if lock.intent != intent_of(target, target.releases[release]):
        raise LockError(
            f"the lock of {target.name} {release} is stale",
            why=f"{target_file.name} asks for something else than when the lock was made.",
            next=f"Run `envbuilder lock --target {target.name} --release {release}`, or take the target's file back.",
        )
    return lock


def chosen_machine(target: Target, asked: str | None) -> Machine:
    """Return the machine to build for: of the platform asked for, else of this one's kind, else the target's first. Raises UsageError."""
    if asked is None:
        return next((it for it in target.machines if it == platform.machine()), target.machines[0])
    by_platform = dict(zip(target.platforms, target.machines, strict=True))
    if asked not in by_platform:
        raise UsageError(f"target {target.name} is not built for {asked}", next=f"Its platforms: {', '.join(target.platforms)}.")
    return by_platform[asked]


def choose_vllm(release: Release, choice: str | None) -> Literal["source", "published"]:
    """Return how vLLM is to be had: as asked for, or as the release says. Raises UsageError where the release does not offer it."""
    match choice or release.vllm:
        case "published":
            return "published"
        case "source" if release.compile is not None:
            return "source"
        case other:
            raise UsageError(
                f"this release does not offer vLLM as {other}",
                why="Its target has no `compile` table: nobody has said yet how this vLLM is built from source.",
                next="Leave --vllm out, or choose another release.",
            )


def builder_machine() -> Machine:
    """Return the machine that builds, as wheel tags have it. Raises ConfigurationError where no CUDA toolchain exists for it."""
    match platform.machine():
        case "x86_64":
            return "x86_64"
        case "aarch64":
            return "aarch64"
        case other:
            raise ConfigurationError(f"vLLM cannot be compiled on {other}", why="NVIDIA's compilers exist for x86_64 and aarch64.")
