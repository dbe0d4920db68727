"""What the system under an environment brings: glibc, the C++ runtime, zlib; what only the driver brings; the interpreter.

An environment for aarch64 is looked at on x86_64, where no aarch64 glibc lies, so the system is a model: which
sonames there are, and up to which symbol version. The model can also be read from a real root folder.
"""

from __future__ import annotations

import functools
import glob
import os
import re
from pathlib import Path

from envbuilder.binaries.elf import read_elf_path
from envbuilder.binaries.layout import MalformedElfError
from envbuilder.values import made, replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

# The driver's own libraries: absent from every environment, they come with the GPU.
DRIVER_SONAMES = frozenset({"libcuda.so.1", "libnvidia-ml.so.1", "libnvcuvid.so.1", "libnvidia-encode.so.1", "libnvoptix.so.1"})
_DRIVER_SYMBOL = r"(?:cu|nvml|cuvid)[A-Z]"
PYTHON_SYMBOL = re.compile(r"_*Py[A-Z_]")
_GOMP = ("GOMP_", "omp_", "GOACC_", "acc_")
_VERSION = re.compile(r"([A-Z]+)_(\d+(?:\.\d+)*)")

_GLIBC = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1", "libresolv.so.2", "libanl.so.1")
_LOADERS = ("ld-linux-aarch64.so.1", "ld-linux-x86-64.so.2")
_RUNTIMES = ("libgcc_s.so.1", "libstdc++.so.6", "libgomp.so.1", "libgomp.so.1.0.0", "libatomic.so.1", "libz.so.1")
_MOST_INCLUDES = 4
_DATA = Path(__file__).parent / "data"
BASE_SONAMES = frozenset({*_GLIBC, *_LOADERS, *_RUNTIMES})


@value
class System:
    """A base system: its libraries by soname, and the highest version of each family of symbol versions.

    `folders` are those of a real machine, where the loader finds what is installed beside the base libraries, and
    `variable` those of its LD_LIBRARY_PATH, which come before a file's RUNPATH (and after its RPATH).
    """

    name: str
    sonames: frozenset[str] = BASE_SONAMES
    ceilings: Mapping[str, tuple[int, ...]] = made(default_factory=dict)
    folders: tuple[str, ...] = ()
    variable: tuple[str, ...] = ()

    def defines(self, version: str) -> bool:
        """Tell whether a version such as GLIBC_2.34 exists here; a family without a ceiling is taken to."""
        match = _VERSION.fullmatch(version)
        if match is None or match[1] not in self.ceilings:
            return True
        return _numbers(match[2]) <= self.ceilings[match[1]]


# Debian 12: glibc 2.36, GCC 12.2. An image stands on it; DGX OS (Ubuntu 24.04) has newer ones.
DEBIAN_12 = System(name="Debian 12", ceilings={"GLIBC": (2, 36), "GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13), "GCC": (12, 0, 0)})


def driver_symbol(name: str) -> bool:
    return re.match(_DRIVER_SYMBOL, name) is not None


def python_symbol(name: str) -> bool:
    """Tell whether the interpreter brings a symbol: it is in the global scope before any extension is loaded."""
    return PYTHON_SYMBOL.match(name) is not None


def named_by_system(name: str, sonames: Collection[str]) -> bool:
    """Tell whether the base system defines a name that is asked for without a version, `sonames` being loaded of it.

    Such references are in files that were linked without `-ldl` or `-lm` (cffi, PIL and zmq in their wheels), and to
    libraries that give no versions to their oldest names (zlib).
    """
    return (
        name in _names("glibc")
        or ("libz.so.1" in sonames and name in _names("zlib"))
        or ("libgomp.so.1" in sonames and name.startswith(_GOMP))
    )


@functools.cache
def _names(library: str) -> frozenset[str]:
    """Names that Debian 12's glibc and libgcc (or zlib) define on both architectures, read from their .dynsym."""
    return frozenset((_DATA / f"{library}-names.txt").read_text(encoding="utf-8").split())


def read_system(root: Path, *, machine: str) -> System:
    """Read the base libraries of a root folder: `/`, or that of a container's file system."""
    triplet = f"{machine}-linux-gnu"
    folders = (f"lib/{triplet}", f"usr/lib/{triplet}", "lib64", "usr/lib64", "lib", "usr/lib")
    found: set[str] = set()
    ceilings: dict[str, tuple[int, ...]] = {}
    for folder in (os.path.join(root, folder) for folder in folders):  # noqa: PTH118 - a hundred names, looked for by text
        for soname in sorted(BASE_SONAMES - found):
            try:
                if not os.path.isfile(path := f"{folder}/{soname}") or (elf := read_elf_path(path)).machine != machine:  # noqa: PTH113
                    continue
            except (MalformedElfError, OSError):
                continue
            found.add(soname)
            for match in filter(None, map(_VERSION.fullmatch, elf.provides)):
                ceilings[match[1]] = max(ceilings.get(match[1], ()), _numbers(match[2]))
    return System(name=str(root), sonames=frozenset(found), ceilings=ceilings)


def this_system(machine: str) -> System:
    """Return the system of this machine for environments of its own kind, and Debian 12's model for others.

    Beside the base libraries it has what the loader would find here: LD_LIBRARY_PATH, the folders that ld.so.conf
    names, and the default ones (ld.so(8)).
    """
    try:
        if read_elf_path("/proc/self/exe").machine != machine:
            return DEBIAN_12
    except (MalformedElfError, OSError):
        return DEBIAN_12
    default = [Path(root) / part for root in ("/lib", "/usr/lib", "/usr/local/lib") for part in (f"{machine}-linux-gnu", "")]
    variable = [Path(entry).absolute() for entry in re.split("[:;]", os.environ.get("LD_LIBRARY_PATH", "")) if entry]
    configured = (*_configured_folders(Path("/etc/ld.so.conf")), *default)
    return replace(read_system(Path("/"), machine=machine), name="this machine", folders=_present(configured), variable=_present(variable))


def _present(folders: Iterable[Path]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(folder) for folder in folders if folder.is_dir()))


def _configured_folders(path: Path, depth: int = 0) -> Iterator[Path]:
    """Yield the folders that a file in ldconfig's format names, following its includes a few levels deep."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in (line.partition("#")[0].strip() for line in lines):
        if line.startswith("include ") and depth < _MOST_INCLUDES:
            pattern = line.removeprefix("include ").strip()
            for included in sorted(glob.glob(pattern if pattern.startswith("/") else str(path.parent / pattern))):  # noqa: PTH207 - absolute patterns
                yield from _configured_folders(Path(included), depth + 1)
        elif line.startswith("/"):
            yield Path(line)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))
