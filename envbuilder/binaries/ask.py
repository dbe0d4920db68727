"""What `envbuilder abi` asks: a path or a wheel's name, against a torch on the disk or one the atlas knows."""

from __future__ import annotations

import contextlib
import os
import re

from envbuilder.binaries.abi import check_catalog, check_environment, check_files, check_wheel, machine_of
from envbuilder.binaries.causes import causes_of
from envbuilder.binaries.environment import TorchBuild, interpreter_of, locate_torch, shared_objects, torch_at
from envbuilder.binaries.known import EVERYWHERE, accepted_by
from envbuilder.binaries.loader import Catalog
from envbuilder.binaries.place import editables_of, place_of
from envbuilder.binaries.symbols import owned_by_torch
from envbuilder.binaries.verdicts import Skipped, merged
from envbuilder.errors import ConfigurationError, UsageError
from envbuilder.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
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
        from envbuilder.binaries.wheel import unpacked  # noqa: PLC0415 - and with it zipfile, for who names a wheel only

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
    if torch.on_disk is None and (wheel := _recognised(path)) and (torch.release or wheel.torch):
        return _check_known(_atlas(), wheel, torch)
    if torch.release is None:
        return _not_empty(_check_files(path, torch.on_disk, None), path)
    known = _atlas()
    release = known.torch_release(torch.release, _machine_of(path))
    report = _not_empty(_check_files(path, known.torch_build(release), known.catalog_with(release)), path)
    return _answered(report, known, path)


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
        return _check_folder(place_of(path), torch, catalog)
    if path.suffix == ".whl":
        return check_wheel(path, torch=torch, catalog=catalog, system=None)
    return check_files([path], torch=torch, catalog=catalog, system=None)


def _check_folder(site: Path, torch: TorchBuild | None, catalog: Catalog | None) -> AbiReport:
    """Check a folder, and what is installed into it as editable, which lies elsewhere."""
    torch = torch or _torch_around(site)
    report = check_environment(site, torch=torch, catalog=catalog, system=None)
    editables = editables_of(site)
    paths = [os.path.normpath(path) for package in editables.packages for path in _objects_of(package)]
    if paths:
        torch = torch or locate_torch(site)
        python = interpreter_of(site.absolute(), paths, torch)
        expected = (*accepted_by(site), *EVERYWHERE)
        others = check_catalog(
            catalog or Catalog(), site.absolute(), sorted(paths), torch=torch, python=python, system=None, expected=expected
        )
        report = merged([report, others])
    unseen = (Skipped(path=name, reason="installed as editable, and its files were not found") for name in editables.unseen)
    return replace(report, skipped=(*report.skipped, *unseen))


def _objects_of(package: Path) -> Iterable[str]:
    return shared_objects(package) if package.is_dir() else [str(package)]


def _torch_around(folder: Path) -> TorchBuild | None:
    """Return the torch of the environment that a package's folder lies in, as for a file there; None for an environment."""
    if folder.name in {"site-packages", "dist-packages"} or locate_torch(folder):
        return None
    homes = (parent for parent in folder.absolute().parents if (parent / "torch" / "lib").is_dir())
    home = next(homes, None)
    return locate_torch(home) if home else None


def _not_empty(report: AbiReport, path: Path) -> AbiReport:
    """Refuse to call nothing a success: a folder with no extension module in it was named by mistake. Raises ConfigurationError."""
    if report.extensions:
        return report
    reasons = sorted({f"{it.path}: {it.reason}" for it in report.skipped})
    why = "; ".join(reasons[:3]) or "There is no extension module in it."
    raise ConfigurationError(f"nothing to check in {path}", why=why, next=_KNOWN_PLACES)


def _recognised(path: Path) -> AtlasWheel | None:
    """Return what the atlas knows of a wheel that is here: by its name, and by the checksum of each file of interest."""
    if path.suffix != ".whl" or not path.is_file():
        return None
    candidates = [wheel for wheel in _atlas().vllm if wheel.filename == path.name]
    if not candidates:
        return None
    import zipfile  # noqa: PLC0415 - only for a wheel of vLLM

    from envbuilder.binaries.wheel import check_directory  # noqa: PLC0415 - see above

    check_directory(path)
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
    files = sorted(shared_objects(place_of(path))) if path.is_dir() else [str(path.absolute())]
    machine = machine_of(Catalog(), files, None)
    if machine is None:
        raise ConfigurationError(f"{path} holds nothing that could be checked", why="There is no ELF file in it.", next=_KNOWN_PLACES)
    return machine


def _answered(report: AbiReport, known: Atlas, path: Path) -> AbiReport:
    """Set aside what the atlas cannot answer for: it has never heard of a symbol.

    Raises ConfigurationError where nothing is left, or a file of vLLM's own would be set aside.
    """
    names = known.all_names
    strange = {
        it.path: unknown
        for it in report.extensions
        if (unknown := {each.symbol for each in it.missing if owned_by_torch(each.symbol) and each.symbol not in names})
    }
    if not strange:
        return report
    if len(strange) == len(report.extensions) or any("/vllm/" in f"/{it}" for it in strange):
        symbols = sorted({symbol for unknown in strange.values() for symbol in unknown})
        raise ConfigurationError(
            f"the atlas cannot answer for {path.name}",
            why=f"It keeps the symbols that vLLM's releases need, and not {', '.join(symbols[:3])} (of {len(symbols)}).",
            next="Name a torch on the disk: an environment or a wheel.",
        )
    aside = (Skipped(path=it, reason="needs symbols that the atlas does not keep: name a torch on the disk") for it in strange)
    left = replace(
        report,
        extensions=tuple(it for it in report.extensions if it.path not in strange),
        skipped=(*report.skipped, *aside),
    )
    present = [it.rpartition("/")[2] for it in shared_objects(place_of(path))] if path.is_dir() else []
    return replace(left, causes=causes_of(left, present=present))
