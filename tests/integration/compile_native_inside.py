"""Builds a few units of vLLM in the room's own way, on the machine they are for; run by that machine's Python.

Usage: python compile_native_inside.py WORKSPACE UNIT...; locks lie in /envb, the store in /store. Prints one JSON document.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

from envbuilder.compile import isolation
from envbuilder.compile.building import Build, read_records
from envbuilder.compile.toolchain import find_compilers
from envbuilder.compile.workspace import Inputs, Workspace
from envbuilder.locking.model import read_lock
from envbuilder.store.cache import Store
from envbuilder.targets.catalogue import find_target

RELEASE = "0.23.0"


def main(place: Path, units: list[str]) -> None:
    spec = find_target("dgx-spark")[0].releases[RELEASE].compile
    lock, store = read_lock(Path("/envb/lockfiles/dgx-spark") / RELEASE), Store(Path("/store"))
    machine = platform.machine()
    compilers = find_compilers(machine, here=machine)
    tools = lock.build_wheels(platform.python_version(), machine)
    libraries = [it for it in lock.wheels("serve", platform.python_version(), machine) if it.name in {*spec.cuda, "torch"}]
    inputs = Inputs(
        spec=spec,
        sources={"vllm": store.path(spec.sdist.sha256, spec.sdist.filename)},
        tools={it.name: store.path(it.file.sha256, it.file.filename) for it in tools},
        libraries={it.name: store.path(it.file.sha256, it.file.filename) for it in libraries},
    )
    place.mkdir(parents=True)
    way = isolation.choose(place, log=place / "log")
    workspace = Workspace(place)
    workspace.make(inputs, compilers, inside=way.root)
    build = Build(workspace=workspace, isolation=way, compilers=compilers, spec=spec, jobs=2, known={}, log=place / "log")
    build.configure()
    build.run(units)
    document = {"machine": machine, "cross": compilers.cross, "compiler": compilers.version, "way": way.way, "units": read_records(place)}
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
