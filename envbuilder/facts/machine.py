"""The host: system, CPU, memory, places to write to, PCI, processes, network."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import struct
import time
from pathlib import Path

from envbuilder import reading
from envbuilder.facts import redact
from envbuilder.facts.model import Cpu, DgxRelease, Host, Memory, Network, PciDevice, Place, Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envbuilder.facts.world import World

_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16")
_UTMP = struct.Struct("hi32s4s32s256shhiii16s20s")  # utmp(5), as glibc on 64-bit Linux lays it out: 384 bytes
_BOOT_TIME, _RUN_LEVEL = 2, 1
_CONNECTX_7 = "0x1021"
_MELLANOX = "0x15b3"
# Arguments of serving processes that checks look at; no others are kept (they may hold secrets).
_FLAG = r"--(?:attention-backend|kv-cache-memory-bytes|gpu-memory-utilization|load-format|tensor-parallel-size|moe-backend|speculative[\w-]*)(?:=\S*)?"
# The kernel keeps 15 characters of a process's title in comm: VLLM::EngineCore is VLLM::EngineCor there.
_TITLES = ("VLLM::", "EngineCor", "sglang", "trtllm")
_PROGRAMS = frozenset({"vllm", "raylet"})
_MODULES = frozenset({"vllm", "sglang", "tensorrt_llm"})
_COLLECTORS = frozenset({"systemd", "init", "tini", "docker-init", "dumb-init", "catatonit"})  # also `systemd --user`


def read_host(world: World) -> Host:
    release = _assignments(world.text("/etc/os-release"))
    clean, boots = _boots(world)
    return Host(
        arch=world.line("/proc/sys/kernel/arch") or (os.uname().machine if world.live else ""),
        kernel=world.line("/proc/sys/kernel/osrelease"),
        os_id=release.get("ID", ""),
        os_version=release.get("VERSION_ID", ""),
        os_name=release.get("PRETTY_NAME", ""),
        libc=_libc(world),
        container=container_of(world),
        wsl="microsoft" in world.line("/proc/sys/kernel/osrelease").lower(),
        remote_shell="SSH_CONNECTION" in world.variables,
        root_user=world.uid == 0,
        year=time.gmtime().tm_year,
        restricted_user_namespaces=world.number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == 1,
        secure_boot=_secure_boot(world),
        unclean_boots=boots - clean,
        boots=boots,
        pstore_entries=len(world.names("/sys/fs/pstore")),
    )


def _assignments(text: str) -> dict[str, str]:
    """Return KEY=value lines (quotes taken off); the last one of a key wins."""
    lines = (line.strip().partition("=") for line in text.splitlines())
    return {name: value.strip().strip("\"'") for name, sign, value in lines if sign and name.isupper() and name.isidentifier()}


def _libc(world: World) -> str:
    if world.live:
        with contextlib.suppress(OSError, ValueError):
            return os.confstr("CS_GNU_LIBC_VERSION") or "musl"
        return "musl"
    match = re.match(r"\d+\.\d+", world.debian_version("libc6"))
    return f"glibc {match[0]}" if match else ""


def container_of(world: World) -> str:
    """Return what kind of container this is the inside of, "" if none."""
    if world.exists("/.dockerenv"):
        return "docker"
    if world.exists("/run/.containerenv"):
        return "podman"
    if "KUBERNETES_SERVICE_HOST" in world.variables:
        return "kubernetes"
    groups = world.text("/proc/1/cgroup") + world.line("/run/systemd/container")
    match = re.search(r"kubepods|docker|libpod|lxc|containerd", groups)
    names = {"kubepods": "kubernetes", "libpod": "podman"}
    return names.get(match[0], match[0]) if match else ""


def _secure_boot(world: World) -> bool | None:
    for name in world.matching("/sys/firmware/efi/efivars", ".*", start="SecureBoot-"):
        value = world.data(name)
        return value[4:5] == b"\x01" if len(value) >= 5 else None
    return None


def _boots(world: World) -> tuple[int, int]:
    """Return (boots after a shutdown, boots) among the last ten in wtmp; an unclean boot follows no shutdown record."""
    try:
        with reading.opened(world.at("/var/log/wtmp")) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - size % _UTMP.size - 2000 * _UTMP.size))
            data = file.read(2000 * _UTMP.size)
    except OSError:
        return 0, 0
    marks = []
    for offset in range(0, len(data) - _UTMP.size + 1, _UTMP.size):
        kind, _, _, _, user, *_ = _UTMP.unpack_from(data, offset)
        if kind == _BOOT_TIME and user.startswith(b"reboot"):
            marks.append("boot")
        elif kind == _RUN_LEVEL and user.startswith(b"shutdown"):
            marks.append("down")
    # The first boot of the record has nothing before it to judge by.
    starts = [index for index, mark in enumerate(marks) if mark == "boot" and index > 0][-10:]
    return sum(marks[index - 1] == "down" for index in starts), len(starts)


def read_dgx(world: World) -> DgxRelease | None:
    """Read /etc/dgx-release: pairs of OTA version and date follow one another, the last one runs. No serial number is kept."""
    text = world.text("/etc/dgx-release")
    if not text.strip():
        return None
    values = _assignments(text)
    base = values.get("DGX_SWBUILD_VERSION", "")
    return DgxRelease(
        name=values.get("DGX_PRETTY_NAME") or values.get("DGX_NAME", ""),
        platform=values.get("DGX_PLATFORM", ""),
        base=base,
        running=values.get("DGX_OTA_VERSION") or base,
    )


def read_cpu(world: World) -> Cpu:
    text = world.text("/proc/cpuinfo", limit=4 << 20)
    if not text:  # else a processor without any of the features that are looked for
        raise OSError("/proc/cpuinfo cannot be read")
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.rstrip(), []).append(value.strip())
    present = set(fields.get("flags", fields.get("Features", [""]))[0].split())
    return Cpu(
        count=len(fields.get("processor", [])),
        model=fields.get("model name", [""])[0],
        parts=tuple(sorted(set(fields.get("CPU part", [])))),
        flags=tuple(name for name in _CPU_FLAGS if name in present),
    )


def read_memory(world: World) -> Memory:
    text = world.text("/proc/meminfo")
    if not text:
        raise OSError("/proc/meminfo cannot be read")
    lines = (line.replace(":", " ").split() for line in text.splitlines())
    full = next((line.split() for line in world.text("/proc/pressure/memory").splitlines() if line.startswith("full avg10=")), None)
    limit = world.number("/sys/fs/cgroup/memory.max")
    return Memory(
        meminfo={line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal() and len(line[1]) <= 20},
        pressure_full_avg10=float(full[1].removeprefix("avg10=")) if full else None,
        min_free_kb=world.number("/proc/sys/vm/min_free_kbytes"),
        cgroup_limit_bytes=limit,
    )


def read_places(world: World, environment: Path | None) -> tuple[Place, ...]:
    """Look at the folders that building and serving write to. Free space is only known on a live machine."""
    variables = world.variables
    cache = Path(variables.get("XDG_CACHE_HOME") or world.home / ".cache")
    wanted: list[tuple[str, Path]] = [
        ("temporary files", Path(variables.get("TMPDIR") or "/tmp")),  # noqa: S108 - it is looked at, not written to
        ("Triton's cache", Path(variables.get("TRITON_CACHE_DIR") or world.home / ".triton")),
        ("vLLM's cache", Path(variables.get("VLLM_CACHE_ROOT") or cache / "vllm")),
        ("FlashInfer's cache", Path(variables.get("FLASHINFER_WORKSPACE_BASE") or world.home) / ".cache/flashinfer"),
        ("Hugging Face's cache", Path(variables.get("HF_HOME") or cache / "huggingface")),
    ]
    if environment is not None:
        wanted.append(("the environment", environment))
    mounts = [line.split(" ") for line in world.text("/proc/self/mounts").splitlines() if line.count(" ") >= 3]
    return tuple(_place(world, purpose, path, mounts) for purpose, path in wanted)


def _place(world: World, purpose: str, path: Path, mounts: list[list[str]]) -> Place:
    there = next((folder for folder in (path, *path.parents) if world.exists(folder)), Path("/"))
    mount = max(
        (entry for entry in mounts if f"{there}/".startswith(f"{entry[1].rstrip('/')}/")),
        key=lambda entry: len(entry[1]),
        default=["", "/", "", ""],
    )
    free = free_inodes = inodes = 0
    if world.live:
        with contextlib.suppress(OSError):
            state = os.statvfs(there)
            free, free_inodes, inodes = state.f_bavail * state.f_frsize, state.f_favail, state.f_files
    return Place(
        purpose=purpose,
        path=str(path),
        exists=there == path,
        writable=world.may_write(there),
        noexec="noexec" in mount[3].split(","),
        filesystem=mount[2],
        free_bytes=free,
        free_inodes=free_inodes,
        inodes=inodes,
    )


def read_pci(world: World) -> tuple[PciDevice, ...]:
    """Return the PCI functions of NVIDIA and Mellanox (of others, nothing is wanted)."""
    base = "/sys/bus/pci/devices"
    found = []
    for address in world.names(base):
        vendor = world.line(f"{base}/{address}/vendor")
        if vendor not in {"0x10de", _MELLANOX}:
            continue
        driver = world.root / f"sys/bus/pci/devices/{address}/driver"
        found.append(
            PciDevice(
                address=address,
                vendor=vendor,
                device=world.line(f"{base}/{address}/device").lower(),
                kind=world.line(f"{base}/{address}/class"),
                driver=driver.readlink().name if driver.is_symlink() else "",
            )
        )
    return tuple(found)


def read_processes(world: World) -> tuple[Process, ...]:
    """Return the processes of serving stacks. One that was left behind has a parent that only collects orphans."""
    found = []
    for name in world.names("/proc"):
        if not name.isdecimal():
            continue
        comm = world.line(f"/proc/{name}/comm")
        # The arguments cost another system call, so the name decides first.
        if not (_is_title(comm) or comm.startswith("python")):
            continue
        arguments = [part for part in world.text(f"/proc/{name}/cmdline", limit=1 << 16).split("\0") if part]
        if title := _title(comm, arguments):
            parent = re.search(r"^PPid:\s*(\d+)", world.text(f"/proc/{name}/status"), re.MULTILINE)
            orphan = "EngineCor" in title and parent is not None and world.line(f"/proc/{parent[1]}/comm") in _COLLECTORS
            found.append(Process(pid=int(name), name=title[:40], orphan=orphan, flags=_flags(arguments)))
    return tuple(found)


def _is_title(comm: str) -> bool:
    return comm.startswith(_TITLES) or comm in _PROGRAMS


def _title(comm: str, arguments: list[str]) -> str:
    """Return what a serving process calls itself, or the server that a Python runs; "" for any other, wherever it lies."""
    if _is_title(comm):
        return arguments[0] if arguments and arguments[0].startswith(comm) else comm
    for before, argument in itertools.pairwise(arguments):
        if before == "-m":
            return argument if argument.partition(".")[0] in _MODULES else ""
        if not argument.startswith("-"):  # the script; what follows is its own
            program = argument.rpartition("/")[2]
            served = program in _PROGRAMS or (program.startswith(("sglang", "trtllm-")) and program.replace("-", "_").isidentifier())
            return program if served or "vllm/entrypoints/" in argument else ""
    return ""


def _flags(arguments: list[str]) -> tuple[str, ...]:
    flags = []
    for index, given in enumerate(arguments):
        name, equals, value = given.partition("=")
        argument = name.replace("_", "-") + equals + value  # vLLM takes --gpu_memory_utilization as well
        if re.fullmatch(_FLAG, argument):
            following = arguments[index + 1] if index + 1 < len(arguments) else ""
            joined = argument if "=" in argument or following.startswith("-") or not following else f"{argument}={following}"
            flags.append(joined[:120])
    model = next((part for part in arguments if re.search(r"gemma[-_]?4", part, re.IGNORECASE)), "")
    return (*flags, "model=gemma") if model else tuple(flags)


def read_network(world: World) -> Network:
    base = "/sys/class/net"
    up = [name for name in world.names(base) if name != "lo" and world.line(f"{base}/{name}/operstate") in {"up", "unknown"}]
    functions = sum(device.vendor == _MELLANOX and device.device == _CONNECTX_7 for device in read_pci(world))
    # As the variables that name them: what is compared must have lost the same.
    return Network(interfaces=tuple(map(redact.text, up)), connectx=functions)
