"""The part of a lock that images need beside the wheels: Debian's packages by name, version and sha256, and the compressor.

apt resolves, in folders of its own: it knows Debian's dependencies and checks the signatures of Debian's lists. Which
mirror it asks is the configuration of this machine; no name of a host gets into the lock.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envbuilder.errors import LockError, ProgramError
from envbuilder.files import digest_of
from envbuilder.process import run
from envbuilder.store.debian import DebianPackage, apt_sources, paragraphs
from envbuilder.store.rootfs_image import RootfsImage, RootfsLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from envbuilder.console import Console
    from envbuilder.store.debian import PackageLayer
    from envbuilder.targets.model import Images, Rootfs

DEBIAN_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_CHOSEN = re.compile(r"^Inst (\S+?)(?::\w+)? \((\S+) ", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class ImageLock:
    """`library` is the version of the compressor's own library: another one writes other bytes. `intent` is a sha256 in hex."""

    intent: str
    compression: str
    level: int
    library: str
    packages: Mapping[str, tuple[DebianPackage, ...]]  # by machine: "x86_64", "aarch64"
    rootfs: Mapping[str, RootfsImage] = field(default_factory=dict)  # in place of packages

    def hashes(self) -> set[str]:
        """Return the sha256, in hex, of every package, and of every layer that the images stand on."""
        packages = {package.sha256 for packages in self.packages.values() for package in packages}
        return packages | {layer.digest.removeprefix("sha256:") for rootfs in self.rootfs.values() for layer in rootfs.layers}


def image_intent(images: Images, machines: Sequence[str]) -> str:
    """Return the digest of what a target asks for in its images; who runs in them has no part in the lock."""
    asked: dict[str, Any] = {"machines": sorted(machines), "compression": images.compression, "level": images.level}
    if images.rootfs:
        return digest_of({**asked, "rootfs": images.rootfs.model_dump()})
    return digest_of({**asked, "suite": images.suite, "packages": sorted(images.packages), "dev-packages": sorted(images.dev_packages)})


# -- text --------------------------------------------------------------------------------------------------------


def image_text(lock: ImageLock) -> list[str]:
    """Return the lines of inputs.toml that speak of images."""
    head = [f'intent = "sha256:{lock.intent}"', f'compression = "{lock.compression}"', f"level = {lock.level}"]
    lines = ["[images]", *head, f'library = "{lock.library}"', ""]
    for machine, packages in sorted(lock.packages.items()):
        rows = (
            f'{json.dumps(it.name)} = {{ version = "{it.version}", architecture = "{it.architecture}", path = {json.dumps(it.path)}, '
            f'sha256 = "{it.sha256}", size = {it.size}, layer = "{it.layer}" }}'
            for it in sorted(packages, key=lambda it: it.name)
        )
        lines += [f"[images.packages.{machine}]", *rows, ""]
    for machine, rootfs in sorted(lock.rootfs.items()):
        rows = (
            f'  {{ digest = "{it.digest}", size = {it.size}, media_type = "{it.media_type}", diff_id = "{it.diff_id}" }},'
            for it in rootfs.layers
        )
        head = [f"[images.rootfs.{machine}]", f"image = {json.dumps(rootfs.image)}", f'digest = "{rootfs.digest}"']
        lines += [*head, "layers = [", *rows, "]", ""]
    return lines


def parse_image_lock(data: Mapping[str, Any]) -> ImageLock:
    """Read what `image_text` wrote. Raises KeyError or TypeError where it did not."""
    return ImageLock(
        intent=data["intent"].removeprefix("sha256:"),
        compression=data["compression"],
        level=data["level"],
        library=data["library"],
        packages={
            machine: tuple(DebianPackage(name=name, **row) for name, row in sorted(rows.items()))
            for machine, rows in data.get("packages", {}).items()
        },
        rootfs={
            machine: RootfsImage(image=it["image"], digest=it["digest"], layers=tuple(RootfsLayer(**row) for row in it["layers"]))
            for machine, it in data.get("rootfs", {}).items()
        },
    )


# -- resolving ---------------------------------------------------------------------------------------------------


def resolve_images(images: Images, machines: Sequence[str], *, console: Console, rootfs: Callable[[Rootfs, str], RootfsImage]) -> ImageLock:
    """Ask apt for the packages of the images, or `rootfs` for the image that they stand on, for each machine.

    Raises LockError: no apt, no source of that suite, or nothing fits; and what `rootfs` raises.
    """
    import zstandard  # noqa: PLC0415 - a build that writes no image need not load it

    asked = images.rootfs
    return ImageLock(
        intent=image_intent(images, machines),
        compression=images.compression,
        level=images.level,
        library=".".join(map(str, zstandard.ZSTD_VERSION)),
        packages={} if asked else {machine: _resolve(images, machine, console) for machine in sorted(machines)},
        rootfs={machine: rootfs(asked, machine) for machine in sorted(machines)} if asked else {},
    )


def _resolve(images: Images, machine: str, console: Console) -> tuple[DebianPackage, ...]:
    with tempfile.TemporaryDirectory(prefix="envbuilder-apt-") as folder, console.step(f"resolve rootfs {machine}") as step:
        apt = _Apt(Path(folder), DEBIAN_ARCHITECTURES[machine], images.suite or "")
        apt.update()
        base = apt.choose(images.packages)
        every = apt.choose((*images.packages, *images.dev_packages))
        moved = sorted(name for name, version in base.items() if every.get(name) != version)
        if moved:
            raise LockError(
                f"dev-packages change {', '.join(moved)}",
                why="What every image has must not be other in one of them: layers could not be shared.",
                next="Name other packages in the target.",
            )
        layers: dict[str, PackageLayer] = {name: "rootfs" if name in base else "dev" for name in every}
        step.detail = f"{len(base)} packages, {len(every) - len(base)} more for dev"
        return tuple(apt.describe(every, layers))


class _Apt:
    """apt with a state of its own: no package is installed, and only one suite's sources are known."""

    def __init__(self, folder: Path, architecture: str, suite: str) -> None:
        self._folder, self._architecture = folder, architecture
        wanted = {suite, f"{suite}-updates", f"{suite}-security"}
        sources = [source for source in apt_sources() if source.suite in wanted]
        if suite not in {source.suite for source in sources}:
            raise LockError(
                f"apt on this machine has no source of {suite}",
                why="The packages of the root filesystem are chosen by apt, from the sources that it is set to.",
                next=f"Lock on a machine that runs {suite}, or add a source of it (sources.list(5)).",
            )
        for name in ("lists/partial", "cache/archives/partial", "parts"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "sources.list").write_text("".join(f"{source.line}\n" for source in sources), encoding="utf-8")

    def update(self) -> None:
        self._run("apt-get", "update", "-qq")

    def choose(self, packages: Sequence[str]) -> dict[str, str]:
        """Return {name: version} of what these packages come to, without what they merely recommend."""
        return dict(_CHOSEN.findall(self._run("apt-get", "install", "--simulate", *packages)))

    def describe(self, versions: Mapping[str, str], layers: Mapping[str, PackageLayer]) -> list[DebianPackage]:
        shown = self._run("apt-cache", "show", *(f"{name}={version}" for name, version in versions.items()))
        found = {fields["package"]: fields for fields in paragraphs(shown) if versions.get(fields["package"]) == fields["version"]}
        if missing := sorted(versions.keys() - found.keys()):
            raise LockError(f"apt does not describe {', '.join(missing)}", next="Run `envbuilder lock` again.")
        return [
            DebianPackage(
                name=name,
                version=fields["version"],
                architecture=fields["architecture"],
                path=fields["filename"],
                sha256=fields["sha256"],
                size=int(fields["size"]),
                layer=layers[name],
            )
            for name, fields in sorted(found.items())
        ]

    def _run(self, program: str, *arguments: str) -> str:
        folder = self._folder
        options = {
            "Dir::State": folder,
            "Dir::State::lists": folder / "lists",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": folder / "parts",
            "Dir::Etc::preferences": folder / "none",
            "Dir::Etc::preferencesparts": folder / "parts",
            "APT::Architecture": self._architecture,
            "APT::Architectures": self._architecture,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",  # the folder is ours alone
            "Acquire::Languages": "none",
        }
        argv = [program, *(part for name, value in options.items() for part in ("-o", f"{name}={value}")), *arguments]
        try:
            return run(argv, capture=True, timeout_s=600, what="asking apt").stdout
        except ProgramError as error:
            raise LockError(
                "apt cannot choose the packages of the root filesystem", why=error.why or error.what, next=error.next
            ) from error
