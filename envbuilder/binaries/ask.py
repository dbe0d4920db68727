"""What `envbuilder abi` asks: a path or a wheel's name, against a torch on the disk or one the atlas knows."""

from __future__ import annotations

import contextlib
import re
import zipfile
from typing import TYPE_CHECKING

from envbuilder.binaries.abi import check_environment, check_files, check_wheel, machine_of
from envbuilder.binaries.environment import TorchBuild, shared_objects, site_packages_of, torch_at
from envbuilder.binaries.loader import Catalog
from envbuilder.binaries.symbols import owned_by_torch
from envbuilder.binaries.wheel import unpacked
from envbuilder.errors import ConfigurationError, UsageError
from envbuilder.values import value

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envbuilder.binaries.atlas import Atlas, AtlasWheel
    from envbuilder.binaries.verdicts import AbiReport

_KNOWN_PLACES = "Name an environment, a wheel, or a .so file."
_KNOWN_TORCHES = "Name an environment, a torch wheel, a torch/lib folder, or a release that the atlas knows (2.11.0)."


_VERSION = re.compile(r"\d+(\.\d+)+([a-z0-9.]*)(\+[a-z0-9.]+)?")  # 2.10.0, 2.11.0+cu130


@value
class Torch:
    """The torch asked about: on the disk, or a release of the atlas; neither means that of the environment."""

    on_disk: TorchBuild | None = None
    release: str | None = None


@contextlib.contextmanager
def torch_named(text: str | None, path: Path | None) -> Iterator[Torch]:
    """Give the torch meant by `--torch`. Raises UsageError, ConfigurationError, WheelError."""
    if text is None or path is None:
        yield Torch()
    elif path.suffix == ".whl" and path.is_file():
        with unpacked(path) as root:
            yield Torch(on_disk=torch_at(root, source=str(path)))
    elif path.exists():
        yield Torch(on_disk=torch_at(path))
    elif _VERSION.fullmatch(text):
        yield Torch(release=text)
    else:
        raise UsageError(f"no torch at {text}", next=_KNOWN_TORCHES)


def check_path(path: Path, torch: Torch) -> AbiReport:
    """Check what a path means. Raises UsageError, ConfigurationError, UnknownNameError, WheelError."""
    if not path.exists():
        if path.suffix != ".whl" or torch.on_disk:
            raise UsageError(f"{path} does not exist", next=_KNOWN_PLACES)
        known = _atlas()
        return _check_known(known, known.wheel(path.name), torch)
    if torch.release is None:
        return _check_files(path, torch.on_disk, None)
    known = _atlas()
    if wheel := _recognised(known, path):
        return _check_known(known, wheel, torch)
    release = known.torch_release(torch.release, _machine_of(path))
    return _complete(_check_files(path, known.torch_build(release), known.catalog_with(release)), known, path)


def _atlas() -> Atlas:
    from envbuilder.binaries import atlas  # noqa: PLC0415 - a tenth of the time of a check that does not ask it

    return atlas.load()


def _check_known(known: Atlas, wheel: AtlasWheel, torch: Torch) -> AbiReport:
    release = torch.release or wheel.torch
    if release is None:
        raise UsageError(f"{wheel.filename} names no torch", next="Name one with --torch.")
    return known.check(wheel, known.torch_release(release, wheel.machine))


def _check_files(path: Path, torch: TorchBuild | None, catalog: Catalog | None) -> AbiReport:
    if path.is_dir():
        return check_environment(site_packages_of(path), torch=torch, catalog=catalog, system=None)
    if path.suffix == ".whl":
        return check_wheel(path, torch=torch, catalog=catalog, system=None)
    return check_files([path], torch=torch, catalog=catalog, system=None)


def _recognised(known: Atlas, path: Path) -> AtlasWheel | None:
    """Return what the atlas knows of a wheel that is here: by its name, and by the checksum of each file of interest."""
    candidates = [wheel for wheel in known.vllm if wheel.filename == path.name]
    if not candidates or not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            here = {entry.filename: (entry.CRC, entry.file_size) for entry in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # read in earnest, with its limits, and told as what it is
    return next((wheel for wheel in candidates if all(here.get(it.path) == (it.crc, it.size) for it in wheel.files)), None)


def _machine_of(path: Path) -> str:
    """Return the machine that a path's binaries are for. Raises ConfigurationError."""
    if path.is_file() and path.suffix == ".whl":
        return "aarch64" if path.stem.endswith("aarch64") else "x86_64"
    files = sorted(shared_objects(site_packages_of(path))) if path.is_dir() else [str(path.absolute())]
    machine = machine_of(Catalog(), files, None)
    if machine is None:
        raise ConfigurationError(f"{path} holds nothing that could be checked", why="There is no ELF file in it.", next=_KNOWN_PLACES)
    return machine


def _complete(report: AbiReport, known: Atlas, path: Path) -> AbiReport:
    """Refuse to answer from an atlas that has never heard of a symbol. Raises ConfigurationError."""
    names = known.all_names
    strange = {
        it.symbol for extension in report.extensions for it in extension.missing if owned_by_torch(it.symbol) and it.symbol not in names
    }
    if strange:
        raise ConfigurationError(
            f"the atlas cannot answer for {path.name}",
            why=f"It keeps the symbols that vLLM's releases need, and not {', '.join(sorted(strange)[:3])} (of {len(strange)}).",
            next="Name a torch on the disk: an environment or a wheel.",
        )
    return report
