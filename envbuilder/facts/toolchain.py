"""CUDA toolkits, compilers, installed packages, container engines, and the variables that steer them all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from pathlib import Path

from envbuilder import reading
from envbuilder.facts import redact
from envbuilder.facts.model import Compilers, Containers, DevicePlugin, Toolkit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envbuilder.facts.world import World

_CHUNK = 4 << 20
_PROGRAM_LIMIT = 256 << 20  # an nvcc or ptxas has 20 to 40 MB; one with a hole of gigabytes would cost its whole section
_PLUGIN_TAIL = 64 << 10
# Packages and variables that matter, by how their names begin, and by the whole of them.
_PACKAGES = (
    *("nvidia-", "libnvidia-", "cuda-", "libcuda", "libnccl", "datacenter-gpu", "dgx-", "linux-modules-nvidia"),
    *("docker", "containerd", "podman", "earlyoom"),
    *(f"linux-image-{digit}" for digit in range(10)),
)
_PACKAGES_WHOLE = frozenset({"gcc", "g++", "libc6", "cargo", "rustc"})
_VARIABLES = (
    *("CUDA_", "NVIDIA_", "NVCC_", "NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "TRITON_", "FLASHINFER_", "XLA_", "OMP_"),
    *("VLLM_", "TRTLLM_", "TRT_LLM_", "TENSORRT_", "RAY_", "HF_", "TRANSFORMERS_"),
    *("CMAKE_", "CCACHE_", "SETUPTOOLS_SCM_", "UV_", "PIP_"),
)
_VARIABLES_WHOLE = frozenset(
    {
        *("MAX_JOBS", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONWARNINGS"),
        *("VIRTUAL_ENV", "CONDA_PREFIX", "CC", "CXX", "CUDACXX", "DOCKER_HOST", "WSL_DISTRO_NAME"),
    }
)
_PTXAS = ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH")


def cuda_release_of(path: Path) -> str:
    """Return the release ("13.0") that an nvcc or ptxas carries in its own bytes, "" if none. Nothing is run."""
    tail = b""
    # Read in pieces, not mapped: a mapped file that someone truncates kills its reader with SIGBUS.
    with contextlib.suppress(OSError), reading.opened(path) as file:
        while file.tell() < _PROGRAM_LIMIT and (chunk := file.read(_CHUNK)):
            data = tail + chunk
            place = data.find(b"uda compilation tools, release ")
            if place > 0 and (match := re.match(rb"[Cc]uda compilation tools, release (\d+\.\d+)", data[place - 1 : place + 80])):
                return match[1].decode()
            tail = data[-100:]
    return ""


def read_toolkits(world: World) -> tuple[Toolkit, ...]:
    """Return every CUDA toolkit: those of /usr/local, of CUDA_HOME, and the one whose nvcc is first on PATH."""
    found: dict[str, list[str]] = {}
    for path in world.matching("/usr/local", r"cuda(?:-\d+(?:\.\d+)*)?", start="cuda"):
        if world.at(path).is_dir():
            found.setdefault(_own(world, path), []).append(path)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if home := world.variables.get(name, ""):
            found.setdefault(_own(world, home), []).append(name)
    if nvcc := world.which("nvcc"):
        found.setdefault(str(Path(_own(world, nvcc)).parent.parent), []).append("PATH")
    return tuple(
        Toolkit(path=path, release=_toolkit_release(world, path), nvcc=world.exists(f"{path}/bin/nvcc"), found_by=tuple(ways))
        for path, ways in sorted(found.items())
    )


def _own(world: World, path: str) -> str:
    """Return a path of this world without links in it."""
    place = world.at(path)
    if world.live:
        return os.path.realpath(place)
    return "/" + str(place.relative_to(world.root)) if place.is_relative_to(world.root) else str(place)


def _toolkit_release(world: World, path: str) -> str:
    if text := world.text(f"{path}/version.json"):
        with contextlib.suppress(ValueError, AttributeError, KeyError, TypeError, RecursionError):
            version = json.loads(text)["cuda"]["version"]
            return ".".join(version.split(".")[:2])
    if stated := world.line(f"{path}/version.txt").partition("CUDA Version ")[2].split():
        return ".".join(stated[0].split(".")[:2])
    defined = world.text(f"{path}/include/cuda.h", limit=1 << 16).partition("\n#define CUDA_VERSION ")[2].partition("\n")[0].strip()
    if defined.isdecimal():
        return f"{int(defined) // 1000}.{int(defined) % 1000 // 10}"
    return cuda_release_of(world.at(f"{path}/bin/nvcc"))


def read_compilers(world: World) -> Compilers:
    dangling = [
        path
        for path in ("/usr/local/cuda", world.variables.get("CUDA_HOME", ""), world.variables.get("CUDA_PATH", ""))
        if path and not world.exists(path) and (path != "/usr/local/cuda" or (world.root / "usr/local/cuda").is_symlink())
    ]
    # What these name: a path, and for a compiler options after it.
    named = {
        name: path.partition(" ")[0]
        for name in (*_PTXAS, "CUDACXX", "CC", "CXX")
        if (path := world.variables.get(name, "")).startswith("/")
    }
    closed = tuple(name for name, path in named.items() if world.exists(path) and not world.executable(path))
    return Compilers(
        c=next((found for name in (world.variables.get("CC", ""), "gcc", "cc", "clang") if name and (found := _program(world, name))), ""),
        cxx=next((found for name in (world.variables.get("CXX", ""), "g++", "c++") if name and (found := _program(world, name))), ""),
        nvcc=world.which("nvcc"),
        cargo=world.which("cargo"),
        cmake=world.which("cmake"),
        ninja=world.which("ninja"),
        git=world.which("git"),
        dangling_cuda=tuple(dict.fromkeys(dangling)),
        lost_programs=tuple(f"{name}={world.variables[name]}" for name, path in named.items() if not world.exists(path)),
        not_executable=closed,
        ptxas_releases={name: cuda_release_of(world.at(named[name])) for name in _PTXAS if name in named and world.executable(named[name])},
    )


def _program(world: World, name: str) -> str:
    program = name.partition(" ")[0]
    return (program if world.exists(program) else "") if program.startswith("/") else world.which(program)


def read_packages(world: World) -> dict[str, str]:
    """Return name → version of the installed Debian packages that matter here."""
    return {name: version for name in world.debian_packages if _matters(name) and (version := world.debian_version(name))}


def _matters(name: str) -> bool:
    headers = name.startswith("python3") and name.endswith("-dev") and name.count("-") == 1  # python3.12-dev
    return name.startswith(_PACKAGES) or name in _PACKAGES_WHOLE or headers


def read_containers(world: World) -> Containers:
    runtimes, error = _daemon(world)
    # /var/run is a link to /run, where it is not missing.
    folders = dict.fromkeys(_own(world, folder) for folder in ("/etc/cdi", "/var/run/cdi", "/run/cdi"))
    specs = [path for folder in folders for path in world.matching(folder, r".*\.(?:ya?ml|json)")]
    nvidia = [path for path in specs if "nvidia.com/gpu" in world.text(path, limit=1 << 16)]
    versions = {match for path in nvidia for match in re.findall(r"libcuda\.so\.(\d{3}\.\d+(?:\.\d+)?)", world.text(path))}
    return Containers(
        socket=_docker_socket(world),
        snap=world.exists("/snap/docker") or world.exists("/var/snap/docker"),
        runtimes=runtimes,
        daemon_json_error=error,
        cdi_specs=tuple(dict.fromkeys(nvidia)),
        cdi_driver_versions=tuple(sorted(versions)),
        toolkit=world.debian_version("nvidia-container-toolkit").partition("-")[0],
        docker=bool(world.which("docker")) or world.exists("/usr/bin/docker"),
        podman=bool(world.which("podman")) or world.exists("/usr/bin/podman"),
        swarm=world.exists("/var/lib/docker/swarm"),
        shm_bytes=_shared_memory(world),
        device_plugin=_device_plugin(world),
    )


def _device_plugin(world: World) -> DevicePlugin | None:
    """Look at what the kubelet keeps of the plugin: /var/log/pods/NAMESPACE_POD_UID/CONTAINER/RESTART.log."""
    logs = [
        log
        for pod in world.matching("/var/log/pods", r".*nvidia-device-plugin.*")
        for container in world.matching(pod, r"nvidia-device-plugin.*")
        for log in world.matching(container, r"\d+\.log")
    ]
    if not logs:
        return None
    newest = max(logs, key=lambda log: (world.modified(log), log))
    try:
        reading.opened(world.at(newest)).close()
    except OSError:
        return DevicePlugin(log=newest, readable=False)
    lines = world.tail(newest, _PLUGIN_TAIL).splitlines()
    said = [line for line in lines if "device memory" in line or "Registered device plugin" in line]
    return DevicePlugin(log=newest, readable=True, line=redact.said(said[-1])[:200] if said else "")


def _daemon(world: World) -> tuple[tuple[str, ...], str]:
    text = world.text("/etc/docker/daemon.json")
    if not text.strip():
        return (), ""
    try:
        runtimes = json.loads(text).get("runtimes", {})
        return tuple(sorted(runtimes)), ""
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        return (), str(error)[:120]


def _docker_socket(world: World) -> str:
    given = world.variables.get("DOCKER_HOST", "")
    if given and not given.startswith("unix://"):
        return "remote"
    path = given.removeprefix("unix://") or "/var/run/docker.sock"
    try:
        mode = world.at(path).stat().st_mode
    except OSError as error:
        return "denied" if isinstance(error, PermissionError) else "absent"
    if not world.may_write(Path(path)):
        return "denied"
    return "refused" if world.live and stat.S_ISSOCK(mode) and not _answers(path) else "ok"


def _answers(path: str) -> bool:
    import socket  # noqa: PLC0415 - 8 ms that only a machine with Docker costs

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(0.5)
        try:
            client.connect(path)
        except OSError:
            return False
    return True


def _shared_memory(world: World) -> int | None:
    if not world.live:
        return None
    with contextlib.suppress(OSError):
        state = os.statvfs("/dev/shm")  # noqa: S108 - measured, not written
        return state.f_blocks * state.f_frsize
    return None


def read_variables(world: World) -> dict[str, str]:
    """Return the variables that steer CUDA, torch, vLLM and builds; of a secret only that it is set."""
    kept = {
        name: redact.variable(name, value)[:2000]
        for name, value in world.variables.items()
        if name.startswith(_VARIABLES) or name in _VARIABLES_WHOLE
    }
    token = Path(world.variables.get("HF_HOME") or world.home / ".cache/huggingface") / "token"
    if "HF_TOKEN" not in kept and world.exists(token):
        kept["HF_TOKEN"] = "<file>"  # noqa: S105 - it says where, not what
    return dict(sorted(kept.items()))
