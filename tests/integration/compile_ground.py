"""What builds of real units stand on: locked wheels and a source in the store, and the compilers of this machine."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from envbuilder.compile import isolation
from envbuilder.compile.building import Build
from envbuilder.compile.toolchain import find_compilers
from envbuilder.compile.workspace import Inputs, Workspace
from envbuilder.console import Console
from envbuilder.errors import ProgramError
from envbuilder.store.cache import Store, Wanted, default_root
from envbuilder.store.fetch import fetch
from envbuilder.store.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from envbuilder.compile.toolchain import Compilers
    from envbuilder.locking.model import LockedWheel
    from envbuilder.targets.model import Compile


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What every build of a file of tests stands on."""

    inputs: Inputs
    compilers: Compilers

    def build(self, place: Path, *, jobs: int) -> Build:
        place.mkdir(parents=True, exist_ok=True)
        workspace = Workspace(place)
        chosen = isolation.choose(place, log=place / "log")
        workspace.make(self.inputs, self.compilers, inside=chosen.root)
        return Build(
            workspace=workspace, isolation=chosen, compilers=self.compilers, spec=self.inputs.spec, jobs=jobs, known={}, log=place / "log"
        )


def ground_of(spec: Compile, *, tools: Mapping[str, LockedWheel], libraries: Mapping[str, LockedWheel]) -> Ground:
    """Fetch all of it; skip where there is no compiler for aarch64."""
    try:
        compilers = find_compilers("aarch64", here=platform.machine())
    except ProgramError as error:
        pytest.skip(f"{error.what}: {error.next}")
    store = Store(default_root())
    assert spec.sdist is not None
    wanted = [
        Wanted(project=it.name, filename=it.file.filename, sha256=it.file.sha256, size=it.file.size)
        for it in (*tools.values(), *libraries.values())
    ]
    wanted.append(Wanted(project="vllm", **spec.sdist.model_dump()))
    fetch(wanted, store=store, settings=read_settings(), console=Console())
    return Ground(
        inputs=Inputs(
            spec=spec,
            sources={"vllm": store.path(spec.sdist.sha256, spec.sdist.filename)},
            tools={name: store.path(it.file.sha256, it.file.filename) for name, it in tools.items()},
            libraries={name: store.path(it.file.sha256, it.file.filename) for name, it in libraries.items()},
        ),
        compilers=compilers,
    )
