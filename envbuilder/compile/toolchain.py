"""The compilers: the machine's own g++ for the target's machine, and a CUDA home made of locked wheels.

nvcc and its parts run here, so they are of the machine that builds; headers and libraries are of the machine that is
built for. Of the libraries only cudart is linked; the others must be found by torch's CMake files and no more, so
stand-ins with their sonames take their place and two gigabytes need not be unpacked.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from envbuilder.compile.wheels import unpack
from envbuilder.errors import ProgramError, VerificationError
from envbuilder.files import storage_errors
from envbuilder.process import run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SYSTEM_PATH = "/usr/bin:/bin"  # not the user's: conda's compilers are not seen from an isolated place, and ccache's links are no compilers
_ROOT = "nvidia/cu13/"
_TARGET_FOLDERS = {"aarch64": "sbsa-linux", "x86_64": "x86_64-linux"}
_REAL_LIBRARIES = ("libcudart", "libcudadevrt")
_HOST_PROGRAMS = ("nvcc", "cudafe++", "ptxas", "fatbinary", "nvlink", "bin2c")
_DRIVER_FUNCTION = re.compile(r"\b(cu[A-Z]\w+)\b")
_DRIVER = "libcuda.so.1"  # comes with the driver, which is not on the machine that builds
_DEBIAN = {"aarch64": "arm64", "x86_64": "amd64"}


@dataclass(frozen=True, kw_only=True)
class Compilers:
    """The host compiler for a machine and the Python headers for it. `cross`: what it makes does not run here."""

    machine: str
    cross: bool
    cc: Path
    cxx: Path
    version: str
    python_include: Path
    python_version: str

    @property
    def identity(self) -> dict[str, str]:
        """What of them the compiled bytes depend on."""
        return {"machine": self.machine, "cxx": self.cxx.name, "version": self.version, "python-headers": self.python_version}


def find_compilers(machine: str, *, here: str) -> Compilers:
    """Find g++ and Python.h for a machine. Raises ProgramError that names the Debian package which is missing."""
    cross = machine != here
    prefix = f"{machine}-linux-gnu-" if cross else ""
    cc, cxx = (_require_program(f"{prefix}{name}", package=f"{name}-{machine}-linux-gnu" if cross else name) for name in ("gcc", "g++"))
    headers = _python_headers(machine, cross=cross)
    version = run([cxx, "--version"], what="asking the compiler for its version", capture=True).stdout.splitlines()[0]
    return Compilers(
        machine=machine,
        cross=cross,
        cc=cc,
        cxx=cxx,
        version=version,
        python_include=headers,
        python_version=headers.name.removeprefix("python"),
    )


def _require_program(name: str, *, package: str) -> Path:
    found = shutil.which(name, path=SYSTEM_PATH)
    if found is None:
        other = shutil.which(name)
        unseen = f" {other} is not taken: where vLLM is compiled, only the system's own folders are seen." if other else ""
        raise ProgramError(
            f"{name} is not installed",
            why=f"vLLM's C++ and CUDA sources need it.{unseen}",
            next=f"Install it (Debian, Ubuntu: apt install {package}).",
        )
    return Path(found)


def _python_headers(machine: str, *, cross: bool) -> Path:
    """Return the newest include folder of Debian's Python that has the machine's pyconfig.h as well.

    vLLM's extensions keep to the stable ABI, so the minor version need not be the environment's.
    """
    found = [path for path in Path("/usr/include").glob("python3.*") if (path / "Python.h").exists()]
    fitting = [path for path in found if Path(f"/usr/include/{machine}-linux-gnu", path.name, "pyconfig.h").exists()]
    if not fitting:
        package = f"libpython3-dev:{_DEBIAN[machine]}" if cross else "python3-dev"
        first = f"dpkg --add-architecture {_DEBIAN[machine]} && apt update && " if cross else ""
        raise ProgramError(
            f"Python.h for {machine} is not installed",
            why=f"Looked for /usr/include/{machine}-linux-gnu/python3.*/pyconfig.h.",
            next=f"Install it (Debian, Ubuntu: {first}apt install {package}).",
        )
    return max(fitting, key=lambda path: int(path.name.partition(".")[2]))


# -- the CUDA home -----------------------------------------------------------------------------------------------


def make_cuda_home(home: Path, *, tools: Mapping[str, Path], libraries: Mapping[str, Path], compilers: Compilers) -> None:
    """Make a CUDA home of wheels: `tools` (nvcc, nvvm) run here, `libraries` are for the machine that is built for.

    nvcc looks for everything else from the folder above its own, so `bin` is a real folder.
    """
    target = home / "targets" / _TARGET_FOLDERS[compilers.machine]
    for wheel in tools.values():
        unpack(wheel, home, _tool)
    sonames = {_DRIVER}
    for wheel in libraries.values():
        unpack(wheel, target, _library)
        unpack(wheel, target, lambda name: sonames.add(PurePosixPath(name).name) if _is_stand_in(name) else None)
    with storage_errors(home):
        _require_parts(home, target)
        # The driver's functions must be there to be linked: a library without any is dropped by --as-needed.
        driver = sorted(set(_DRIVER_FUNCTION.findall((target / "include/cuda.h").read_text(encoding="utf-8", errors="replace"))))
        for soname in sorted(sonames):
            _stand_in(target / "lib" / soname, compilers, driver if soname == _DRIVER else [])
        for library in list((target / "lib").glob("lib*.so.*")):
            unversioned = library.with_name(library.name.partition(".so")[0] + ".so")
            if not unversioned.exists():
                unversioned.symlink_to(library.name)
        links = {"include": f"targets/{target.name}/include", "lib": f"targets/{target.name}/lib", "lib64": "lib"}
        if compilers.machine == "aarch64":
            links["targets/aarch64-linux"] = target.name
        for name, goal in links.items():
            (home / name).symlink_to(goal)


def _tool(name: str) -> str | None:
    """bin/ and nvvm/: what runs, and the device library that it reads."""
    below = name.removeprefix(_ROOT)
    return below if name.startswith(_ROOT) and below.startswith(("bin/", "nvvm/")) else None


def _library(name: str) -> str | None:
    below = name.removeprefix(_ROOT)
    if not name.startswith(_ROOT) or below == name:
        return None
    real = below.startswith("lib/") and PurePosixPath(below).name.startswith(_REAL_LIBRARIES)
    return below if below.startswith("include/") or real else None


def _is_stand_in(name: str) -> bool:
    path = PurePosixPath(name)
    return str(path.parent) == f"{_ROOT}lib" and ".so" in path.name and not path.name.startswith(_REAL_LIBRARIES)


def _stand_in(path: Path, compilers: Compilers, functions: Sequence[str]) -> None:
    """Link a library that defines these functions, each doing nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.with_suffix(".c")
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in functions), encoding="utf-8")
    command: list[str | Path] = [compilers.cc, "-shared", "-nostdlib", "-fPIC", source, f"-Wl,-soname,{path.name}", "-o", path]
    run(command, what=f"making a stand-in for {path.name}")
    source.unlink()


def _require_parts(home: Path, target: Path) -> None:
    wanted = [home / "bin" / name for name in _HOST_PROGRAMS] + [home / "nvvm/bin/cicc", home / "nvvm/libdevice/libdevice.10.bc"]
    wanted += [
        target / "include" / name for name in ("cuda.h", "cuda_runtime.h", "crt/host_runtime.h", "fatbinary_section.h", "cccl/cuda/atomic")
    ]
    wanted += [target / "lib/libcudart.so.13"]
    missing = [str(path.relative_to(home)) for path in wanted if not path.exists()]
    if missing:
        raise VerificationError(
            "the locked wheels make no CUDA toolkit",
            why=f"Missing: {', '.join(missing)}.",
            next="Name the wheels that hold them in the target's `compile` table.",
        )


def toolchain_file(compilers: Compilers, *, cuda: Path) -> str:
    """Return a CMake toolchain file: which compilers, for which system, and that nothing of this machine's own is to be linked."""
    lines = []
    if compilers.cross:  # saying it natively as well would make CMake believe that it crosses
        lines += ["set(CMAKE_SYSTEM_NAME Linux)", f"set(CMAKE_SYSTEM_PROCESSOR {compilers.machine})"]
        lines += [f'set(CMAKE_CUDA_FLAGS_INIT "-target-dir {_TARGET_FOLDERS[compilers.machine]}")']
    lines += [
        f"set(CMAKE_C_COMPILER {compilers.cc})",
        f"set(CMAKE_CXX_COMPILER {compilers.cxx})",
        f"set(CMAKE_CUDA_COMPILER {cuda / 'bin/nvcc'})",
        f"set(CMAKE_CUDA_HOST_COMPILER {compilers.cxx})",
        # Debian's linker keeps every library that is named, Ubuntu's only those that are used: say which.
        'set(CMAKE_MODULE_LINKER_FLAGS_INIT "-Wl,--as-needed -Wl,-s")',
    ]
    return "\n".join(lines) + "\n"
