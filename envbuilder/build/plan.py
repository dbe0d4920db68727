"""What a build is to do, decided before anything is done."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envbuilder.build.interpreters import find_interpreter
from envbuilder.errors import ConfigurationError, LockError, UsageError
from envbuilder.locking.model import intent_of, read_lock
from envbuilder.store.settings import read_settings
from envbuilder.targets.catalogue import lock_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from envbuilder.build.interpreters import Interpreter
    from envbuilder.layout import Layout
    from envbuilder.locking.model import Lock, LockedWheel
    from envbuilder.store.cache import Store
    from envbuilder.store.settings import Settings
    from envbuilder.targets.model import EnvironmentName, Release, Target


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


def make_plan(
    target: Target,
    target_file: Path,
    release_name: str | None,
    *,
    layout: Layout,
    store: Store,
    offline: bool,
    smoke: bool,
) -> Plan:
    """Read the lock and the settings and check that they fit the target and this machine.

    Raises LockError (missing, changed, stale), ConfigurationError (another system, no fitting Python).
    """
    if platform.system() != "Linux":
        raise ConfigurationError("envbuilder builds on Linux only", why=f"This is {platform.system()}.")
    name, release = target.release(release_name)
    lock = read_lock(lock_folder(target_file, target, name))
    if lock.intent != intent_of(target, release):
        raise LockError(
            f"the lock of {target.name} {name} is stale",
            why=f"{target_file.name} asks for something else than when the lock was made.",
            next=f"Run `envbuilder lock --target {target.name} --release {name}`, or take the target's file back.",
        )
    interpreter = find_interpreter(target, store=store)
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
        wheels={
            environment: lock.wheels(environment, interpreter.version, interpreter.machine) for environment, _ in release.environments()
        },
    )


def check_vllm_choice(release: Release, choice: str | None) -> None:
    """Refuse a way of getting vLLM that the release does not offer."""
    if choice is not None and choice != release.vllm:
        raise UsageError(
            f"this release takes vLLM as {release.vllm}",
            why=f"--vllm {choice} was asked for.",
            next="Leave --vllm out, or choose another release.",
        )
