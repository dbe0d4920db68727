"""What is installed in an environment: distributions as their own metadata says, and whether their libraries are whole."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from envbuilder.facts.model import Distribution

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LIMIT = 8 << 20
_NORMAL = re.compile(r"[-_.]+")
# RECORD lines of shared libraries: path, hash, size. Other files are not looked at: an environment has 60,000.
_RECORDED_LIBRARY = re.compile(rb"^([^,\n]*\.so(?:\.[\d.]+)?),[^,\n]*,(\d+)\r?$", re.MULTILINE)
_MODULE_OF_INTEREST = re.compile(rb"^((?:vllm|torch)/(?:version|_version|envs|__init__)\.py),[^,\n]*,(\d*)\r?$", re.MULTILINE)
# Header collections: large RECORDs without a library in them.
_NO_LIBRARIES = frozenset({"nvidia-cuda-cccl", "nvidia-cuda-crt", "nvidia-cutlass", "pip", "setuptools", "sympy", "networkx"})
_MOST_NAMED = 8


def normalized(name: str) -> str:
    return _NORMAL.sub("-", name).lower()


def read_distributions(site_packages: Path) -> Iterator[Distribution]:
    """Yield each distribution of one site-packages folder, in the order of its names."""
    for folder in sorted(site_packages.glob("*.dist-info")):
        stem = folder.name.removesuffix(".dist-info")
        name, _, version = stem.rpartition("-")
        if not name:
            continue
        yield _distribution(site_packages, folder, normalized(name), version)


def _distribution(site_packages: Path, folder: Path, name: str, version: str) -> Distribution:
    # The headers end at the first empty line; what follows is the readme, which may be long and say anything.
    headers = _text(folder / "METADATA").partition("\n\n")[0]
    wheel = _text(folder / "WHEEL")
    stated = re.search(r"^Version:\s*(\S+)", headers, re.MULTILINE)
    python = re.search(r"^Requires-Python:\s*(.+)$", headers, re.MULTILINE)
    build = re.search(r"^Build:\s*(\S+)", wheel, re.MULTILINE)
    missing, short, escapes = ((), (), 0) if name in _NO_LIBRARIES else _damage(site_packages, folder)
    return Distribution(
        name=name,
        version=stated[1] if stated else version,
        requires=tuple(line.strip() for line in re.findall(r"^Requires-Dist:(.+)$", headers, re.MULTILINE) if "extra" not in line),
        requires_python=python[1].strip() if python else "",
        tags=tuple(re.findall(r"^Tag:\s*(\S+)", wheel, re.MULTILINE)) if "Root-Is-Purelib: false" in wheel else (),
        build=build[1] if build else "",
        installer=_text(folder / "INSTALLER").strip(),
        missing_files=missing,
        short_files=short,
        record_escapes=escapes,
    )


def _damage(site_packages: Path, folder: Path) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Return (libraries that RECORD names and are not there, those of another size, paths that lead out of the environment)."""
    record = _bytes(folder / "RECORD")
    missing, short, escapes = [], [], 0
    # lib/pythonX.Y/site-packages: wheels with data files reach up to the environment's own folder, and no further.
    prefix = f"{site_packages.parents[2] if site_packages.name.endswith('-packages') else site_packages}/"
    for raw_path, raw_size in (*_RECORDED_LIBRARY.findall(record), *_MODULE_OF_INTEREST.findall(record)):
        path = raw_path.decode(errors="replace").strip('"')
        # A RECORD is data from a wheel: it may name anything. Only what lies in the environment is looked at.
        if "\0" in path or not os.path.normpath(site_packages / path).startswith(prefix):
            escapes += 1
            continue
        try:
            size = (site_packages / path).stat().st_size
        except OSError:
            missing.append(path)
            continue
        if raw_size and size < int(raw_size[:18]):
            short.append(f"{path} ({size} of {int(raw_size[:18])} bytes)")
    return tuple(missing[:_MOST_NAMED]), tuple(short[:_MOST_NAMED]), escapes


def _text(path: Path) -> str:
    return _bytes(path).decode(errors="replace")


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file():  # a FIFO would block
            return b""
        with path.open("rb") as file:
            return file.read(_LIMIT)
    except OSError:
        return b""
