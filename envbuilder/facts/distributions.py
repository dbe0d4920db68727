"""What is installed in an environment: distributions as their own metadata says, and whether their libraries are whole."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from envbuilder.facts import reading
from envbuilder.facts.model import Distribution

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LIMIT = 8 << 20
_NORMAL = re.compile(r"[-_.]+")
# RECORD lines of shared libraries (and of what says a version): the end of the path, hash, size. Each begins with plain
# text, which is looked for ten times faster than alternatives, or the start of 60,000 lines; the path is read backwards.
_RECORDED = tuple(re.compile(end + rb"\"?,[^,\n]*,(\d+)(?=\r?$)", re.MULTILINE) for end in (rb"\.so(?:\.[\d.]+)?", rb"version\.py"))
# Header collections: large RECORDs without a library in them.
_NO_LIBRARIES = frozenset({"nvidia-cuda-cccl", "nvidia-cuda-crt", "nvidia-cutlass", "pip", "setuptools", "sympy", "networkx"})
_MOST_NAMED = 8


def normalized(name: str) -> str:
    return _NORMAL.sub("-", name).lower()


def read_distributions(site_packages: Path) -> Iterator[Distribution]:
    """Yield each distribution of one site-packages folder, in the order of its names."""
    site = str(site_packages)
    try:
        names = sorted(name for name in os.listdir(site) if name.endswith(".dist-info"))  # noqa: PTH208 - names, 150 of them
    except OSError:
        return
    for entry in names:
        name, _, version = entry.removesuffix(".dist-info").rpartition("-")
        if name:
            yield _distribution(site, f"{site}/{entry}", normalized(name), version)


def _distribution(site: str, folder: str, name: str, version: str) -> Distribution:
    # The headers end at the first empty line; what follows is the readme, which may be long and say anything.
    headers = reading.data(f"{folder}/METADATA").partition(b"\n\n")[0].decode(errors="replace")
    wheel = reading.text(f"{folder}/WHEEL")
    stated = re.search(r"^Version:\s*(\S+)", headers, re.MULTILINE)
    python = re.search(r"^Requires-Python:\s*(.+)$", headers, re.MULTILINE)
    build = re.search(r"^Build:\s*(\S+)", wheel, re.MULTILINE)
    # NVIDIA's wheels call themselves pure and hold libraries.
    without = name in _NO_LIBRARIES or ("Root-Is-Purelib: true" in wheel and not name.startswith("nvidia"))
    missing, short, escapes = ((), (), 0) if without else _damage(site, reading.data(f"{folder}/RECORD", limit=_LIMIT))
    return Distribution(
        name=name,
        version=stated[1] if stated else version,
        requires=tuple(line.strip() for line in re.findall(r"^Requires-Dist:(.+)$", headers, re.MULTILINE) if "extra" not in line),
        requires_python=python[1].strip() if python else "",
        tags=tuple(re.findall(r"^Tag:\s*(\S+)", wheel, re.MULTILINE)) if "Root-Is-Purelib: false" in wheel else (),
        build=build[1] if build else "",
        missing_files=missing,
        short_files=short,
        record_escapes=escapes,
    )


def _damage(site: str, record: bytes) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Return (libraries that RECORD names and are not there, those cut short, paths that lead out of the environment)."""
    missing, short, escapes = [], [], 0
    # lib/pythonX.Y/site-packages: wheels with data files reach up to the environment's own folder, and no further.
    prefix = f"{site.rsplit('/', 3)[0] if site.endswith('-packages') else site}/"
    for match in (match for pattern in _RECORDED for match in pattern.finditer(record)):
        start = record.rfind(b"\n", 0, match.start()) + 1
        path = record[start : record.index(b",", match.start())].decode(errors="replace").strip('"')
        if path.endswith("version.py") and not path.endswith(("/version.py", "/_version.py")):
            continue
        # A RECORD is data from a wheel: it may name anything. Only what lies in the environment is looked at.
        if "\0" in path or (
            (path.startswith("/") or ".." in path)
            and not os.path.normpath(f"{site}/{path}" if path[:1] != "/" else path).startswith(prefix)
        ):
            escapes += 1
            continue
        try:
            size = os.stat(f"{site}/{path}").st_size  # noqa: PTH116 - thousands of them
        except OSError:
            missing.append(path)
            continue
        recorded = int(match[1][:18])
        if size < recorded:
            short.append(f"{path} ({size} of {recorded} bytes)")
    return tuple(missing[:_MOST_NAMED]), tuple(short[:_MOST_NAMED]), escapes
