"""Small modules laid over a built environment, each loaded by a `.pth` file of its own (see Python's `site`)."""

from __future__ import annotations

from pathlib import Path

from envbuilder.errors import UnknownNameError
from envbuilder.files import sha256_file, write_atomic

_HERE = Path(__file__).parent


def names() -> list[str]:
    return sorted(path.stem for path in _HERE.glob("[!_]*.py"))


def digest(name: str) -> str:
    """Return the sha256 of an overlay's source, which is all that it depends on."""
    if name not in names():
        raise UnknownNameError("overlay", name, names())
    return sha256_file(_HERE / f"{name}.py")


def install(name: str, site_packages: Path) -> list[str]:
    """Write the overlay into `site_packages`; return the paths written, relative to it. The same bytes every time."""
    if name not in names():
        raise UnknownNameError("overlay", name, names())
    module = f"_envbuilder_{name}"
    written = {
        f"{module}.py": (_HERE / f"{name}.py").read_bytes(),
        f"{module}.pth": f"import {module}\n".encode(),
    }
    for path, payload in written.items():
        write_atomic(site_packages / path, payload)
    return sorted(written)
