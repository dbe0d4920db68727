"""Variables that steer CUDA, Python and NCCL from behind."""

from __future__ import annotations

import re

from envbuilder.doctor.checks.common import gpus, on_spark, variable, wants_gpu
from envbuilder.doctor.commands import quoted
from envbuilder.doctor.model import Severity, fail, info, ok, skip, warn
from envbuilder.doctor.registry import check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envbuilder.doctor.model import Verdict
    from envbuilder.facts.model import Snapshot

_NEEDED = ("variables",)


@check("EB-VAR-001", "cuda-visible-devices-none", Severity.BLOCKS, needs=_NEEDED)
def visible_devices(s: Snapshot) -> Verdict:
    if "CUDA_VISIBLE_DEVICES" not in (s.variables or {}) or not wants_gpu(s):
        return ok(("CUDA_VISIBLE_DEVICES", "not set, or no GPU is wanted"))
    value = variable(s, "CUDA_VISIBLE_DEVICES")
    seen = ("CUDA_VISIBLE_DEVICES", value or "empty")
    if not value.strip() or value.strip() in {"-1", "none", "NoDevFiles"}:
        return fail(seen, expected="unset, or a GPU's number")
    first = value.split(",")[0].strip()
    if first.isdecimal() and gpus(s) and int(first) >= len(gpus(s)):
        return fail(seen, ("NVML", f"{len(gpus(s))} GPUs, counted from 0"), expected=f"0 to {len(gpus(s)) - 1}")
    return ok(seen)


@check("EB-VAR-002", "stub-libraries-in-path", Severity.BLOCKS, needs=_NEEDED)
def stubs(s: Snapshot) -> Verdict:
    found = {name: parts for name in ("LD_LIBRARY_PATH", "LD_PRELOAD") if (parts := [part for part in _parts(s, name) if "/stubs" in part])}
    if not found:
        return ok("no stubs where programs look")
    seen = [(name, ":".join(parts)) for name, parts in found.items()]
    return fail(*seen, expected="no folder of stubs", commands=tuple(_without(s, name, parts) for name, parts in found.items()))


def _parts(s: Snapshot, name: str) -> list[str]:
    """Return what a variable names: the loader takes colons and spaces for the same."""
    return variable(s, name).replace(":", " ").split()


def _without(s: Snapshot, name: str, parts: list[str]) -> str:
    """Return the command that takes parts out of a variable and leaves the others."""
    kept = [part for part in _parts(s, name) if part not in parts]
    return f"export {name}={':'.join(map(quoted, kept))}" if kept else f"unset {name}"


@check("EB-VAR-003", "cuda-compat-in-the-way", Severity.BLOCKS, needs=_NEEDED)
def compat(s: Snapshot) -> Verdict:
    found = [folder for folder in variable(s, "LD_LIBRARY_PATH").split(":") if "/compat/" in f"{folder}/"]
    if not found:
        return ok("no cuda-compat where programs look")
    seen = ("LD_LIBRARY_PATH", ":".join(found))
    # NVIDIA's images name the folder always, and fill it only where the driver needs it.
    if on_spark(s) and not (s.host and s.host.container):
        return warn(seen, expected="not set", commands=(_without(s, "LD_LIBRARY_PATH", found),))
    return info(seen, note="Right only where the driver is a data-center one and older.")


@check("EB-VAR-004", "cuda-launch-blocking", Severity.SLOW, needs=_NEEDED)
def launch_blocking(s: Snapshot) -> Verdict:
    value = variable(s, "CUDA_LAUNCH_BLOCKING")
    return warn(("CUDA_LAUNCH_BLOCKING", value), expected="not set") if value == "1" else ok(("CUDA_LAUNCH_BLOCKING", value or "not set"))


@check("EB-VAR-005", "ptx-jit-switched", Severity.BLOCKS, needs=_NEEDED)
def ptx_jit(s: Snapshot) -> Verdict:
    found = [
        (name, "1")
        for name in ("CUDA_FORCE_PTX_JIT", "CUDA_DISABLE_PTX_JIT", "CUDA_FORCE_JIT", "CUDA_DISABLE_JIT")
        if variable(s, name) == "1"
    ]
    return warn(*found, expected="not set") if found else ok("run-time compilation is not switched")


@check("EB-VAR-006", "pythonhome-set", Severity.BLOCKS, needs=_NEEDED)
def python_home(s: Snapshot) -> Verdict:
    value = variable(s, "PYTHONHOME")
    return fail(("PYTHONHOME", value), expected="not set") if value else ok(("PYTHONHOME", "not set"))


@check("EB-VAR-007", "preloaded-library", Severity.INFO, needs=_NEEDED)
def preload(s: Snapshot) -> Verdict:
    value = variable(s, "LD_PRELOAD")
    return (
        info(("LD_PRELOAD", value), note="It is loaded into every program, before its own libraries.")
        if value
        else ok(("LD_PRELOAD", "not set"))
    )


@check("EB-VAR-008", "nccl-interface-missing", Severity.BLOCKS, needs=("variables", "network"))
def nccl_interface(s: Snapshot) -> Verdict:
    up = s.network.interfaces if s.network else ()
    lost = []
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        value = variable(s, name)
        # NCCL: "=" means exactly, "^" means all but these; else a prefix.
        wanted = [part.lstrip("=") for part in value.split(",") if part]
        if value and not value.startswith("^") and not any(interface.startswith(part) for part in wanted for interface in (*up, "lo")):
            lost.append((name, value))
    return (
        fail(*lost, ("/sys/class/net", ", ".join(up) or "none is up"), expected="an interface that is up")
        if lost
        else ok("NCCL's interfaces are up, or not named")
    )


@check("EB-VAR-009", "allocator-setting-unknown", Severity.INFO, needs=_NEEDED)
def allocator(s: Snapshot) -> Verdict:
    value = variable(s, "PYTORCH_CUDA_ALLOC_CONF") or variable(s, "PYTORCH_ALLOC_CONF")
    known = {
        "expandable_segments",
        "max_split_size_mb",
        "garbage_collection_threshold",
        "roundup_power2_divisions",
        "backend",
        "pinned_use_cuda_host_register",
        "pinned_num_register_threads",
        "pinned_use_background_threads",
        "graph_capture_record_stream_reuse",
        "per_process_memory_fraction",
        "max_non_split_rounding_mb",
        "release_lock_on_cudamalloc",
        "throw_on_cudamalloc_oom",
    }
    strange = [
        key
        for part in (re.sub(r"\[[^\]]*\]", "", value) if "[" in value else value).split(",")
        if (key := part.partition(":")[0].strip()) and key not in known
    ]
    return (
        info(("PYTORCH_CUDA_ALLOC_CONF", value), note=f"torch may refuse: {', '.join(strange[:3])}.")
        if strange
        else ok(("PYTORCH_CUDA_ALLOC_CONF", value or "not set"))
    )


@check("EB-VAR-010", "old-cache-variable", Severity.INFO, needs=_NEEDED)
def old_cache(s: Snapshot) -> Verdict:
    found = [(name, variable(s, name)) for name in ("TRANSFORMERS_CACHE", "PYTORCH_TRANSFORMERS_CACHE") if variable(s, name)]
    return (
        info(*found, expected="HF_HOME", note="transformers 5 does not read it: models may be downloaded twice.")
        if found
        else ok("no outdated name for the cache")
    )


@check("EB-VAR-011", "visible-devices-void", Severity.BLOCKS, needs=("variables", "host"), after=("EB-CTR-009",))
def nvidia_visible(s: Snapshot) -> Verdict:
    value = variable(s, "NVIDIA_VISIBLE_DEVICES")
    if not (s.host and s.host.container) or not wants_gpu(s):
        return skip("not in a container that wants a GPU")
    if value not in {"void", "none"} or gpus(s):
        return ok(("NVIDIA_VISIBLE_DEVICES", value or "not set"))
    return info(("NVIDIA_VISIBLE_DEVICES", value), expected="all", note="With CDI, void is normal, and the GPU comes another way.")


@check("EB-VAR-012", "too-many-threads", Severity.SLOW, needs=("variables", "cpu"))
def too_many_threads(s: Snapshot) -> Verdict:
    value = variable(s, "OMP_NUM_THREADS")
    count = s.cpu.count if s.cpu else 0
    if value.isdecimal() and count and int(value) > 2 * count:
        return warn(("OMP_NUM_THREADS", value), ("/proc/cpuinfo", f"{count} CPUs"), expected=f"{count} at most")
    return ok(("OMP_NUM_THREADS", value or "not set"))
