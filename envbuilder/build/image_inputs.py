"""From a lock to what images are made from: every file in the store, every proof at hand.

An image has Debian's Python, whatever Python this machine has: its wheels are chosen from the lock anew, so that the
same lock gives the same image everywhere. What was proved of an environment is proved of the image's own files.
"""

from __future__ import annotations

import dataclasses
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from envbuilder.binaries.abi import check_environment
from envbuilder.binaries.gpu_summary import summary
from envbuilder.binaries.known import ExpectedFault
from envbuilder.binaries.system import DEBIAN_12, read_system
from envbuilder.binaries.verdicts import Verdict
from envbuilder.build import gates, overlays
from envbuilder.errors import AbiError, ConfigurationError, FetchError
from envbuilder.files import canonical_json, remove_tree, sha256_file, storage_errors
from envbuilder.images.inputs import EnvironmentInputs, Inputs, Package, images_over
from envbuilder.images.layers import Compression, LayerStore
from envbuilder.images.parts import gather
from envbuilder.images.rootfs import User
from envbuilder.images.wheels import PREFIX, Wheel, shared_paths, wheel_entries
from envbuilder.locking.model import check_images
from envbuilder.store.cache import Wanted
from envbuilder.store.rootfs_image import reference_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from envbuilder.binaries.system import System
    from envbuilder.console import Console
    from envbuilder.images.foundation import Foundation
    from envbuilder.images.inputs import ImageName
    from envbuilder.images.registry import Registry
    from envbuilder.images.tree import Entry
    from envbuilder.locking.model import Lock
    from envbuilder.store.cache import Store
    from envbuilder.store.rootfs_image import RootfsImage
    from envbuilder.store.settings import Settings
    from envbuilder.targets.model import Environment, EnvironmentName, Images, Machine, Release, Target

_READ_BY_GATES = ("torch/version", "vllm/model_executor/models/", "vllm/engine/arg_utils.py", "vllm/v1/attention/backends/registry.py")


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """What is needed to get at a lock's files. `own_wheels` were built here, and take the place of those in the lock.

    `near` has blobs by their sha256: an image that is verified brings the layers that it stands on.
    """

    target: Target
    release_name: str
    release: Release
    lock: Lock
    lock_files: Mapping[str, bytes]
    machine: Machine
    store: Store
    settings: Settings
    console: Console
    offline: bool = False
    own_wheels: tuple[Path, ...] = ()
    near: Path | None = None


def make_inputs(source: ImageSource, proofs: Mapping[str, Mapping[str, Any]]) -> Inputs:
    """Fetch what the store lacks and return the inputs. Raises LockError, ConfigurationError, and what a fetch raises.

    `proofs` is what `prove` returned, or what an image says of itself.
    """
    images = settings_of(source)
    check_images(source.lock, source.target, source.release_name)
    assert source.lock.images is not None  # noqa: S101 - checked just now
    packages = _packages(source)
    wheels = wheels_of(source)
    distinct = {wheel.sha256: wheel for group in wheels.values() for wheel in group}
    return Inputs(
        target=source.target.name,
        release=source.release_name,
        machine=source.machine,
        python=images.python,
        lock=source.lock.digest,
        lock_files=source.lock_files,
        target_file=target_document(source),
        user=User(name=images.user, uid=images.uid),
        compression=Compression(level=source.lock.images.level, library=source.lock.images.library),
        packages=packages,
        foundation=_foundation(source),
        environments={
            name: _environment(name, environment, wheels[name], source, proofs.get(name, {}))
            for name, environment in source.release.environments()
        },
        parts=gather(list(distinct.values()), packages, root=source.store.root),
    )


def settings_of(source: ImageSource) -> Images:
    """Return the target's `images` table. Raises ConfigurationError where there is none."""
    if source.target.images is None:
        raise ConfigurationError(
            f"target {source.target.name} says nothing of images", next="Add an `images` table to it (docs/targets.md), and lock again."
        )
    return source.target.images


def images_that_can_be(source: ImageSource) -> tuple[ImageName, ...]:
    return images_over(packages=settings_of(source).rootfs is None)


def target_document(source: ImageSource) -> bytes:
    """Return the target as it stands in an image: itself, with the one release that the image is of."""
    document = source.target.model_dump(mode="json", by_alias=True)
    document |= {"default-release": source.release_name, "releases": {source.release_name: document["releases"][source.release_name]}}
    return canonical_json(document)


def lock_files(folder: Path) -> dict[str, bytes]:
    """Return the files of a lock, as they go into an image."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in {".txt", ".toml"}}


# -- files of the store --------------------------------------------------------------------------------------------


def _packages(source: ImageSource) -> tuple[Package, ...]:
    from envbuilder.store.mirrors import fetch_packages  # noqa: PLC0415 - it loads a client

    assert source.lock.images is not None  # noqa: S101 - checked by the caller
    locked = source.lock.images.packages.get(source.machine, ())
    fetch_packages(locked, store=source.store, settings=source.settings, console=source.console, offline=source.offline)
    return tuple(Package(locked=it, path=source.store.path(it.sha256, it.filename)) for it in locked)


def _foundation(source: ImageSource) -> Foundation | None:
    """Return the image that these stand on, its layers in the store, if they stand on one."""
    from envbuilder.images import foundation  # noqa: PLC0415 - most targets have Debian packages

    images = settings_of(source)
    locked, paths = _rootfs(source)
    user = User(name=images.user, uid=images.uid)
    return foundation.found(locked, paths, python=images.python, user=user) if locked else None


def _rootfs(source: ImageSource) -> tuple[RootfsImage | None, tuple[Path, ...]]:
    """Return what the lock says of the image that these stand on, and its layers' files."""
    assert source.lock.images is not None  # noqa: S101 - checked by the caller
    locked = source.lock.images.rootfs.get(source.machine)
    if locked is None:
        return None, ()
    from envbuilder.images import foundation  # noqa: PLC0415 - see above

    layers = LayerStore(source.store.root)
    paths = tuple(layers.path(layer.digest) for layer in locked.layers)
    foundation.fetch(locked, paths, lambda: _registry(locked, source), near=source.near)
    return locked, paths


def _registry(locked: RootfsImage, source: ImageSource) -> Registry:
    """Return the registry that the user named. Raises FetchError: nothing may be fetched, or nobody named one."""
    from envbuilder.images.registry import Reference, Registry  # noqa: PLC0415 - it loads a client

    if source.offline:
        raise FetchError(f"layers of {locked.image} are not here", why="--offline was given.", next="Run the same command without it.")
    reference = Reference.parse(reference_of(locked.image, locked.digest))
    return Registry(reference=reference, settings=source.settings, state=source.store.root / "uploads")


def wheels_of(source: ImageSource) -> dict[str, tuple[Wheel, ...]]:
    """Return the wheels of both environments for the image's Python, all of them in the store."""
    from envbuilder.store.fetch import fetch  # noqa: PLC0415 - it loads a client

    python = f"{settings_of(source).python}.0"
    own = {_project(path): path for path in source.own_wheels}
    chosen = {
        name: [it for it in source.lock.wheels(name, python, source.machine) if it.name not in own]
        for name, _ in source.release.environments()
    }
    locked = {it.file.sha256: it for group in chosen.values() for it in group}
    wanted = [Wanted(project=it.name, filename=it.file.filename, sha256=it.file.sha256, size=it.file.size) for it in locked.values()]
    fetch(
        wanted,
        store=source.store,
        settings=source.settings,
        console=source.console,
        offline=source.offline,
        torch_backend=source.release.torch_backend,
    )
    found: dict[str, tuple[Wheel, ...]] = {}
    for name, environment in source.release.environments():
        wheels = [
            Wheel(name=it.name, version=it.version, sha256=it.file.sha256, path=source.store.path(it.file.sha256, it.file.filename))
            for it in chosen[name]
        ]
        locked_names = {it.name for it in source.lock.wheels(name, python, source.machine)}
        wheels += [_own_wheel(project, path) for project, path in own.items() if project in locked_names]
        found[name] = tuple(_settled(sorted(wheels, key=lambda wheel: wheel.name), environment))
    return found


def hashes_of(source: ImageSource) -> set[str]:
    """Return the sha256 of every wheel that goes into these images; none of them need be here."""
    python = f"{settings_of(source).python}.0"
    own = {_project(path): sha256_file(path) for path in source.own_wheels}
    wheels = [it for name, _ in source.release.environments() for it in source.lock.wheels(name, python, source.machine)]
    return {own.get(it.name, it.file.sha256) for it in wheels}


def _own_wheel(project: str, path: Path) -> Wheel:
    return Wheel(name=project, version=path.name.split("-")[1], sha256=sha256_file(path), path=path)


def _project(path: Path) -> str:
    return str(canonicalize_name(path.name.partition("-")[0]))


def _settled(wheels: Sequence[Wheel], environment: Environment) -> Iterable[Wheel]:
    by_name = {wheel.name: wheel for wheel in wheels}
    for wheel in wheels:
        owners = [by_name[rule.owner] for rule in environment.shared_paths if rule.over == wheel.name and rule.owner in by_name]
        without = frozenset[str]().union(*(shared_paths(owner, wheel) for owner in owners))
        yield dataclasses.replace(wheel, without=without)


def _environment(
    name: EnvironmentName, environment: Environment, wheels: tuple[Wheel, ...], source: ImageSource, proofs: Mapping[str, Any]
) -> EnvironmentInputs:
    with tempfile.TemporaryDirectory(prefix="envbuilder-overlays-") as folder:
        site = Path(folder)
        written = [path for overlay in environment.overlays for path in overlays.install(overlay, site, machine=source.machine)]
        contents = {path: (site / path).read_bytes() for path in written}
    return EnvironmentInputs(
        name=name,
        wheels=wheels,
        asked=tuple(str(canonicalize_name(Requirement(text).name)) for text in environment.requires),
        overlays=contents,
        # In one order, whether the target was read from TOML or from the JSON that an image carries.
        variables=dict(sorted(environment.variables.items())),
        arguments=environment.arguments,
        left_out={exclusion.name: exclusion.reason for exclusion in sorted(environment.excludes, key=lambda it: it.name)},
        compiled={wheel.name: compiled_of(source) for wheel in wheels if wheel.path in source.own_wheels},
        proofs=proofs,
    )


def compiled_of(source: ImageSource) -> dict[str, Any]:
    """Return what a wheel of ours was compiled from: the target's own word, which `verify` finds in an image as well."""
    spec = source.release.compile
    assert spec is not None  # noqa: S101 - without it nothing is compiled
    sources = source.lock.source.sources if source.lock.source else ()
    return {
        "gpu": f"sm_{spec.arch.replace('.', '')}",
        "sources": [{"name": it.name, "file": it.filename, "sha256": it.sha256} for it in sources if it.filename],
        "components": [{"name": it.name, "how": it.how, "reason": it.reason} for it in spec.components],
        "edits": [{"name": it.name, "path": it.path, "reason": it.reason} for it in spec.edits],
    }


# -- proofs --------------------------------------------------------------------------------------------------------


def prove(source: ImageSource, sites: Mapping[str, Path], scratch: Path) -> dict[str, dict[str, Any]]:
    """Check gates and extension modules of what images will hold; return what is to be said of each environment.

    `sites` are site-packages folders that hold the very same wheels; for an environment that has none (its Python is
    another), the files in question are put into `scratch`. Raises GateError or AbiError.
    """
    wheels = wheels_of(source)
    found: dict[str, dict[str, Any]] = {}
    for name, environment in source.release.environments():
        try:
            site = sites.get(name) or _extracted(name, environment, wheels[name], source, scratch)
            results = gates.check_gates(name, environment.gates, site)
            gates.require(results)
            found[name] = _proofs(results, environment, site, source)
        finally:
            remove_tree(scratch / f"image-{name}")  # gigabytes: gone before the next environment's are written
    return found


def _proofs(results: Sequence[gates.GateResult], environment: Environment, site: Path, source: ImageSource) -> dict[str, Any]:
    expected = [ExpectedFault(path=it.path, verdict=Verdict(it.verdict), reason=it.reason) for it in environment.expected_abi]
    brought = frozenset[str]().union(*(overlays.sonames(overlay) for overlay in environment.overlays))
    base = _system(source)
    system = dataclasses.replace(base, sonames=base.sonames | brought)
    report = check_environment(site, machine=source.machine, system=system, expected=expected)
    if not report.ok:
        raise AbiError(
            "extension modules would not load in the image",
            why="\n".join(cause.text for cause in report.causes),
            next="`envbuilder abi` on the environment shows every symbol and library.",
        )
    return {
        "gates": [{key: value for key, value in result.as_dict().items() if key != "environment"} for result in results],
        "abi": [
            {"path": it.path, "verdict": str(it.verdict), **({"expected": it.expected} if it.expected else {})} for it in report.extensions
        ],
        **({"gpu_code": summary(site, source.target.gpu)} if source.target.device == "cuda" else {}),
    }


def _system(source: ImageSource) -> System:
    """Return what extension modules will find in the root filesystem."""
    locked, paths = _rootfs(source)
    if locked is None:
        return DEBIAN_12
    from envbuilder.images.foundation import base_libraries  # noqa: PLC0415 - see above

    with tempfile.TemporaryDirectory(prefix="envbuilder-system-") as folder:
        libraries = Path(folder) / "lib"
        libraries.mkdir()
        for soname, content in base_libraries(locked, paths, source.machine).items():
            (libraries / soname).write_bytes(content)
        return dataclasses.replace(read_system(Path(folder), machine=source.machine), name=locked.image)


def _extracted(name: str, environment: Environment, wheels: Sequence[Wheel], source: ImageSource, scratch: Path) -> Path:
    """Write what gates and the ABI check look at: libraries, metadata, and the few Python files that gates read."""
    python = settings_of(source).python
    site = scratch / f"image-{name}" / f"lib/python{python}/site-packages"
    with ExitStack() as stack:
        for wheel in wheels:
            for entry in wheel_entries(wheel, python, stack):
                relative = entry.path.removeprefix(f"{PREFIX}/lib/python{python}/site-packages/")
                if relative != entry.path and _looked_at(relative):
                    _copy(entry, site / relative)
    for overlay in environment.overlays:
        overlays.install(overlay, site, machine=source.machine)
    return site


def _looked_at(path: str) -> bool:
    name = path.rpartition("/")[2]
    return ".so" in name or ".dist-info/" in path or path.startswith(_READ_BY_GATES)


def _copy(entry: Entry, goal: Path) -> None:
    with storage_errors(goal):
        goal.parent.mkdir(parents=True, exist_ok=True)
        with entry.open() as content, goal.open("wb") as file:
            while chunk := content.read(1 << 20):
                file.write(chunk)


def python_of(site: Path) -> str:
    """Return the minor version of the Python that a site-packages folder is for, from its path."""
    return site.parent.name.removeprefix("python")
