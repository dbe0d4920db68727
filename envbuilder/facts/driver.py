"""The NVIDIA driver as its own files show it, alive or dead, and what NVML answers (asked in a child process)."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from envbuilder.errors import ProgramError
from envbuilder.facts.model import Driver, DriverLibrary, Gpu, GpuProcess, Nvml

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from envbuilder.facts.world import World

NVML_LIMIT_S = 4.0
_VERSION = r"\d{3}\.\d+(?:\.\d+)?"
_LIBRARY_DIRS = (
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",  # Arch
    "/run/opengl-driver/lib",  # NixOS
    "/usr/lib/wsl/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
    "/usr/local/cuda/compat",
    "/usr/local/cuda/compat/lib",
)
_NODES = r"nvidia\d+|nvidiactl|nvidia-uvm|nvidia-modeset|dxg"
_LIBRARIES = ("libnvidia-ml.so.", "libcuda.so.")


def library_dirs(world: World) -> Iterator[str]:
    """Yield the folders where a driver's libraries can be, those of LD_LIBRARY_PATH first."""
    seen = set()
    for folder in (*world.variables.get("LD_LIBRARY_PATH", "").split(":"), *_LIBRARY_DIRS):
        if folder.startswith("/") and folder not in seen:
            seen.add(folder)
            yield folder


def read_driver(world: World) -> Driver:
    proc = world.text("/proc/driver/nvidia/version")
    kernel = world.line("/proc/sys/kernel/osrelease")
    names = (line.partition(" ")[0] for line in world.text("/proc/modules").splitlines())
    modules = {name for name in names if name.startswith("nvidia") or name == "nouveau"}
    loaded = world.line("/sys/module/nvidia/version")
    if not loaded and proc and (match := re.search(rf"\s({_VERSION})\s", proc.partition("\n")[0])):
        loaded = match[1]
    nodes = tuple(world.matching("/dev", _NODES, start=("nvidia", "dxg")))
    return Driver(
        loaded=loaded,
        flavour="open" if "Open Kernel Module" in proc else "proprietary" if proc else "",
        modules=tuple(sorted(modules)),
        libraries=tuple(_libraries(world)),
        gpu_firmware=tuple(_firmware(world)),
        firmware_dirs=tuple(name for name in world.names("/lib/firmware/nvidia") if re.fullmatch(_VERSION, name)),
        module_for_kernel=_module_for(world, kernel),
        nodes=nodes,
        unusable_nodes=tuple(node for node in nodes if not world.may_write(Path(node))),
        run_installer=world.exists("/usr/bin/nvidia-uninstall") and world.exists("/var/log/nvidia-installer.log"),
        nouveau="nouveau" in modules,
        fabric_manager_running=_fabric_manager(world),
    )


def _libraries(world: World) -> Iterator[DriverLibrary]:
    for folder in library_dirs(world):
        for path in world.matching(folder, rf".*\.so\.(?:1|{_VERSION})", start=_LIBRARIES):
            name = path.rsplit("/", 1)[-1]
            real = world.at(path).name if name.endswith(".so.1") else name
            version = re.search(rf"\.so\.({_VERSION})$", os.path.realpath(world.at(path)) if world.live else real)
            yield DriverLibrary(path=path, version=version[1] if version else "")


def _firmware(world: World) -> Iterator[str]:
    base = "/proc/driver/nvidia/gpus"
    for name in world.names(base):
        match = re.search(r"^GPU Firmware:\s*(\S+)", world.text(f"{base}/{name}/information"), re.MULTILINE)
        if match:
            yield match[1]


def _module_for(world: World, kernel: str) -> bool | None:
    listing = world.text(f"/lib/modules/{kernel}/modules.dep", limit=8 << 20)
    return re.search(r"/nvidia\.ko", listing) is not None if listing else None


def _fabric_manager(world: World) -> bool | None:
    if not world.exists("/usr/bin/nv-fabricmanager"):
        return None
    return world.exists("/run/nvidia-fabricmanager/nv-fabricmanager.pid") or world.exists(
        "/var/run/nvidia-fabricmanager/nv-fabricmanager.pid"
    )


def read_nvml(world: World) -> Nvml:
    """Ask NVML in a child process: a wedged driver may hang or kill whoever asks, and that must not be the doctor."""
    folder = next((folder for folder in library_dirs(world) if world.exists(f"{folder}/libnvidia-ml.so.1")), "")
    if not folder:
        return Nvml(status="absent", error="libnvidia-ml.so.1 is not on this machine")
    return parse_nvml(_probe(world, str(world.at(folder))))


def _probe(world: World, folder: str) -> dict[str, Any]:
    import json  # noqa: PLC0415

    from envbuilder.process import clean_environment, run  # noqa: PLC0415 - only where there is a driver to ask

    script = Path(__file__).with_name("nvml_probe.py")
    path = ":".join(part for part in (folder, world.variables.get("LD_LIBRARY_PATH", "") if world.live else "") if part)
    try:
        done = run(
            [sys.executable, "-I", "-S", script, _nvml_module()],
            env=clean_environment({"LD_LIBRARY_PATH": path}),
            timeout_s=NVML_LIMIT_S,
            capture=True,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
    except ProgramError as error:
        kind = "timeout" if "was stopped after" in error.what else "error"
        return {"status": kind, "error": f"{error.what}: {error.why}".strip(": ")[:300]}
    except ValueError:
        return {"status": "error", "error": "NVML's probe did not answer in JSON"}
    return answer


def _nvml_module() -> str:
    """Return the folder of nvidia-ml-py's module: the child is started without site, which saves a third of its time."""
    import importlib.util  # noqa: PLC0415

    spec = importlib.util.find_spec("pynvml")
    if spec is None or spec.origin is None:
        raise OSError("nvidia-ml-py is not installed beside envbuilder")
    return str(Path(spec.origin).parent)


def parse_nvml(answer: dict[str, Any]) -> Nvml:
    """Return the probe's answer as facts."""
    gpus = tuple(
        Gpu(**{**gpu, "processes": tuple(GpuProcess(**process) for process in gpu.get("processes", []))}) for gpu in answer.get("gpus", [])
    )
    return Nvml(
        status=str(answer.get("status", "error")),
        error=str(answer.get("error", "")),
        driver=str(answer.get("driver", "")),
        cuda=str(answer.get("cuda", "")),
        gpus=gpus,
    )
