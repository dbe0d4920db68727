"""Which layers an image has, in which order: what is heavy and seldom changes lies below, our own small files on top.

A heavy wheel has a layer of its own; the many small ones share a few, each distribution always in the same one, so that
another version of one of them rewrites one small layer. Layers of equal inputs are the same blob in every image.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from envbuilder.images import entry_point
from envbuilder.images.about import describe
from envbuilder.images.cuda_home import toolkit_links
from envbuilder.images.layers import Layer
from envbuilder.images.rootfs import read_debs, root_tree
from envbuilder.images.sbom import sbom
from envbuilder.images.tree import Entry, difference, file, folder, symlink, whole
from envbuilder.images.wheels import PREFIX, wheel_entries
from envbuilder.targets.markers import marker_environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from envbuilder.images.deb import Deb
    from envbuilder.images.inputs import EnvironmentInputs, ImageName, Inputs
    from envbuilder.images.wheels import Wheel

HEAVY_BYTES = 8_000_000  # of a wheel's file: from here on it has a layer of its own
_BUCKETS = 8
OWN = "opt/envbuilder"
_FIRST = ("nvidia", "cuda", "triton", "torch")  # below the rest: they change with CUDA and torch alone


def layers_of(image: ImageName, inputs: Inputs) -> list[Layer]:
    """Return an image's layers, lowest first."""
    environment = inputs.environment_of(image)
    below, above = _wheels(image, inputs)
    layers = [*_bottom(inputs), *_wheel_layers(below, inputs, small="torch's own"), *_wheel_layers(above, inputs, last=environment.asked)]
    if image == "dev":
        layers += [_toolchain(inputs), *_cuda_home(environment, inputs)]
    if image != "base" and environment.overlays:
        layers.append(_overlays(environment, inputs))
    return [*layers, _own(image, below + above, environment, inputs)]


def contents(image: ImageName, inputs: Inputs) -> dict[str, Any]:
    """Return image.json of an image."""
    below, above = _wheels(image, inputs)
    return describe(image, below + above, inputs)


def _wheels(image: ImageName, inputs: Inputs) -> tuple[list[Wheel], list[Wheel]]:
    """Return an image's wheels: torch's, and what stands on it."""
    environment = inputs.environment_of(image)
    closure = torch_closure(environment, inputs)
    below = [wheel for wheel in environment.wheels if wheel.name in closure]
    above = [] if image == "base" else [wheel for wheel in environment.wheels if wheel.name not in closure]
    return below, above


def torch_closure(environment: EnvironmentInputs, inputs: Inputs) -> frozenset[str]:
    """Return torch and what it requires, as far as the environment holds it."""
    by_name = {wheel.name: wheel for wheel in environment.wheels}
    marker = marker_environment(f"{inputs.python}.0", inputs.machine)
    found: set[tuple[str, str]] = set()
    waiting = [("torch", "")]
    while waiting:
        name, extra = waiting.pop()
        if name not in by_name or (name, extra) in found:
            continue
        found.add((name, extra))
        for requirement in map(Requirement, inputs.parts[by_name[name].sha256].requires):
            if requirement.marker is None or requirement.marker.evaluate({**marker, "extra": extra}):
                required = str(canonicalize_name(requirement.name))
                waiting += [(required, ""), *((required, wanted) for wanted in requirement.extras)]
    return frozenset(name for name, _ in found)


# -- layers of packages ------------------------------------------------------------------------------------------


def _bottom(inputs: Inputs) -> Iterator[Layer]:
    if inputs.foundation is None:
        yield _root(inputs)
        return
    blobs = inputs.foundation.blobs
    for number, blob in enumerate(blobs):
        yield Layer(name=f"rootfs {number + 1} of {len(blobs)}", inputs={"ready": blob.digest}, ready=blob)
    yield _of_files("rootfs, settled", inputs.foundation.settling)


def _root(inputs: Inputs) -> Layer:
    def make(_: ExitStack) -> Mapping[str, Entry]:
        return _tree(inputs, "base")

    return Layer(name="rootfs", inputs=_root_inputs(inputs, "base"), make=make)


def _toolchain(inputs: Inputs) -> Layer:
    def make(_: ExitStack) -> Mapping[str, Entry]:
        return difference(_tree(inputs, "dev"), _tree(inputs, "base"))

    return Layer(name="toolchain", inputs={"over": _root_inputs(inputs, "base"), **_root_inputs(inputs, "dev")}, make=make)


def _cuda_home(environment: EnvironmentInputs, inputs: Inputs) -> Iterator[Layer]:
    links = list(toolkit_links(environment.wheels, f"{PREFIX}/lib/python{inputs.python}/site-packages"))
    if links:
        yield _of_files("cuda", links)


def _root_inputs(inputs: Inputs, image: ImageName) -> dict[str, Any]:
    packages = sorted(package.locked.sha256 for package in inputs.packages_of(image))
    return {"packages": packages, "machine": inputs.machine, "user": [inputs.user.name, inputs.user.uid]}


def _tree(inputs: Inputs, image: ImageName) -> dict[str, Entry]:
    debs = _opened(tuple(package.path for package in inputs.packages_of("dev" if image == "dev" else "base")))
    return root_tree(debs, machine=inputs.machine, user=inputs.user)


@lru_cache(maxsize=2)  # the base's packages are read once for the root filesystem and once for the toolchain above it
def _opened(paths: tuple[Path, ...]) -> list[Deb]:
    return read_debs(paths)


# -- layers of wheels --------------------------------------------------------------------------------------------


def _wheel_layers(wheels: Sequence[Wheel], inputs: Inputs, *, small: str = "", last: Sequence[str] = ()) -> Iterator[Layer]:
    heavy = [wheel for wheel in wheels if wheel.path.stat().st_size >= HEAVY_BYTES]
    for wheel in sorted(heavy, key=lambda wheel: _place(wheel, last)):
        yield _wheel_layer(f"{wheel.name} {wheel.version}", [wheel], inputs)
    buckets: defaultdict[int, list[Wheel]] = defaultdict(list)
    for wheel in wheels:
        if wheel not in heavy:
            buckets[0 if small else _bucket(wheel.name)].append(wheel)
    for number, group in sorted(buckets.items()):
        yield _wheel_layer(small or f"small wheels {number + 1} of {_BUCKETS}", group, inputs)


def _place(wheel: Wheel, last: Sequence[str]) -> tuple[int, int, str]:
    first = next((index for index, start in enumerate(_FIRST) if wheel.name.startswith(start)), len(_FIRST))
    return (wheel.name in last, first, wheel.name)


def _bucket(name: str) -> int:
    """Return a distribution's share: by its name alone, so that it does not move when others come and go."""
    return hashlib.sha256(name.encode()).digest()[0] % _BUCKETS


def _wheel_layer(name: str, wheels: Sequence[Wheel], inputs: Inputs) -> Layer:
    def make(stack: ExitStack) -> Mapping[str, Entry]:
        return whole(entry for wheel in wheels for entry in wheel_entries(wheel, inputs.python, stack))

    content = sorted([wheel.sha256, *sorted(wheel.without)] for wheel in wheels)
    return Layer(name=name, inputs={"wheels": content, "prefix": PREFIX, "python": inputs.python}, make=make)


def _overlays(environment: EnvironmentInputs, inputs: Inputs) -> Layer:
    site = f"{PREFIX}/lib/python{inputs.python}/site-packages"
    return _of_files("overlays", [file(f"{site}/{path}", content) for path, content in environment.overlays.items()])


# -- our own files -----------------------------------------------------------------------------------------------


def _own(image: ImageName, wheels: Sequence[Wheel], environment: EnvironmentInputs, inputs: Inputs) -> Layer:
    return _of_files("envbuilder", [*_skeleton(inputs), *_about(image, wheels, environment, inputs)])


def _skeleton(inputs: Inputs) -> Iterator[Entry]:
    """What makes the folder a virtual environment of the root filesystem's Python (PEP 405)."""
    yield file(
        f"{PREFIX}/pyvenv.cfg",
        f"home = {inputs.interpreter.rpartition('/')[0]}\ninclude-system-site-packages = false\nversion = {inputs.python}\n",
    )
    yield symlink(f"{PREFIX}/bin/python", inputs.interpreter)
    yield symlink(f"{PREFIX}/bin/python3", "python")
    yield symlink(f"{PREFIX}/bin/python{inputs.python}", "python")
    yield symlink(f"{PREFIX}/lib64", "lib")
    yield folder(f"{PREFIX}/lib/python{inputs.python}/site-packages")


def _about(image: ImageName, wheels: Sequence[Wheel], environment: EnvironmentInputs, inputs: Inputs) -> Iterator[Entry]:
    about = describe(image, wheels, inputs)
    yield file(f"{OWN}/image.json", json.dumps(about, indent=2) + "\n")
    yield file(
        f"{OWN}/sbom.cdx.json",
        json.dumps(sbom(about["name"], wheels, inputs.packages_of(image), inputs.parts, inputs.rootfs), indent=2) + "\n",
    )
    yield file(f"{OWN}/target.json", inputs.target_file)
    for name, content in inputs.lock_files.items():
        yield file(f"{OWN}/lock/{name}", content)
    # What pip installs later must not replace what was proved together.
    yield file(f"{OWN}/constraints.txt", "".join(f"{wheel.name}=={wheel.version}\n" for wheel in wheels))
    if image in {"serve", "dev"}:
        yield file(f"{OWN}/bin/server.json", json.dumps(list(environment.arguments)) + "\n")
        text = _entry_point_text()
        yield file(f"{OWN}/bin/serve", f"#!/{PREFIX}/bin/python\n{text}", mode=0o755)


def _entry_point_text() -> str:
    import inspect  # noqa: PLC0415 - only here

    return inspect.getsource(entry_point)


def _of_files(name: str, entries: Sequence[Entry]) -> Layer:
    content = sorted([*map(str, entry.looks), entry.origin] for entry in entries)
    return Layer(name=name, inputs={"files": content}, make=partial(_whole, entries))


def _whole(entries: Sequence[Entry], _: ExitStack) -> Mapping[str, Entry]:
    return whole(entries)
