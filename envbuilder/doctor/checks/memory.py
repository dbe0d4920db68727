"""Memory: one pool for CPU and GPU on a GB10, where MemAvailable is the only figure that counts."""

from __future__ import annotations

import re

from envbuilder.doctor.checks.common import dist, gpu_processes, log_lines, on_spark, serving, variable
from envbuilder.doctor.model import Severity, fail, info, ok, skip, warn
from envbuilder.doctor.registry import check, only_in_logs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envbuilder.doctor.model import Verdict
    from envbuilder.facts.model import Memory, Snapshot

_SOURCE = "/proc/meminfo"
_DEFAULT_UTILIZATION = 0.9


def _memory(s: Snapshot) -> Memory:
    assert s.memory is not None  # noqa: S101 - every check that calls this needs "memory"
    return s.memory


def _flags(s: Snapshot, pattern: str) -> tuple[tuple[str, str], ...]:
    """Return (process, its flags) of the serving processes that have a flag of that kind."""
    found = [(process, [flag for flag in process.flags if re.match(pattern, flag)]) for process in s.processes or ()]
    return tuple((f"process {process.pid} ({process.name})", " ".join(flags)) for process, flags in found if flags)


@check("EB-MEM-001", "memory-pressure", Severity.BLOCKS, needs=("memory",), after=("EB-MEM-007",))
def memory_pressure(s: Snapshot) -> Verdict:
    if not on_spark(s):
        return skip("not a GB10 machine")
    memory = _memory(s)
    seen = (_SOURCE, f"MemAvailable {memory.available_gib:.1f} GiB of {memory.total_gib:.1f} GiB")
    if not serving(s) or memory.available_gib >= 8:
        return ok(seen)
    return (fail if memory.available_gib < 4 else warn)(seen, expected="8 GiB left while a model runs")


@check("EB-MEM-002", "memory-thrash", Severity.SLOW, needs=("memory",), after=("EB-MEM-001",))
def memory_thrash(s: Snapshot) -> Verdict:
    memory = _memory(s)
    if not on_spark(s) or memory.pressure_full_avg10 is None:
        return skip("not a GB10 machine, or no pressure file")
    seen = ("/proc/pressure/memory", f"full avg10={memory.pressure_full_avg10}")
    # Short stalls while files are read are normal: they count only where memory is short as well.
    short = memory.available_gib < 16 or memory.swap_used_gib > 1
    return warn(seen, expected="full avg10 below 0.1") if memory.pressure_full_avg10 > 0.1 and short else ok(seen)


@check("EB-MEM-003", "swap-while-serving", Severity.SLOW, needs=("memory",))
def swap_while_serving(s: Snapshot) -> Verdict:
    if not on_spark(s) or not serving(s):
        return skip("no model is served on a GB10 here")
    used = _memory(s).swap_used_gib
    return (
        warn((_SOURCE, f"{used:.1f} GiB of swap in use"), expected="none while a model runs")
        if used > 2
        else ok((_SOURCE, f"{used:.1f} GiB of swap in use"))
    )


@check("EB-MEM-004", "uma-memfree-pagecache", Severity.INFO, needs=("memory",))
def page_cache(s: Snapshot) -> Verdict:
    memory = _memory(s)
    held = (memory.kb("MemAvailable") - memory.kb("MemFree")) / 2**20
    seen = (_SOURCE, f"MemFree {memory.kb('MemFree') / 2**20:.1f} GiB, MemAvailable {memory.available_gib:.1f} GiB")
    if on_spark(s) and held > 10:
        return info(seen, note="Files are kept in memory until someone needs it: normal after loading a model.")
    return ok(seen)


@check("EB-MEM-005", "vllm-free-less-desired", Severity.BLOCKS, needs=("memory",), after=("EB-MEM-001", "EB-MEM-007", "EB-MEM-013"))
def less_than_desired(s: Snapshot) -> Verdict:
    if not on_spark(s):
        return skip("not a GB10 machine")
    memory = _memory(s)
    share = memory.kb("MemAvailable") / max(1, memory.kb("MemTotal"))
    seen = (_SOURCE, f"MemAvailable is {share:.0%} of MemTotal")
    if share >= _DEFAULT_UTILIZATION:
        return ok(seen)
    limit = max(0.05, share - 0.03)
    flag = f"vllm serve MODEL --gpu-memory-utilization {limit:.2f}"
    # A container sees neither the host's processes nor other containers': who holds the memory is not to be told from here.
    if share < 0.5 and not serving(s) and not (s.host and s.host.container):
        return warn(seen, expected="most of it, when nothing runs", commands=("ps aux --sort=-rss | head", flag))
    return info(seen, note=f"A server started now gets at most --gpu-memory-utilization {limit:.2f}.", commands=(flag,))


@check("EB-MEM-006", "vm-min-free-kbytes", Severity.BLOCKS, needs=("memory",))
def min_free(s: Snapshot) -> Verdict:
    kept = _memory(s).min_free_kb
    if not on_spark(s) or kept is None:
        return skip("not a GB10 machine")
    seen = ("/proc/sys/vm/min_free_kbytes", kept)
    return warn(seen, expected="below 2,097,152 kB (2 GiB)") if kept > 2 << 20 else ok(seen)


@check("EB-MEM-007", "orphan-enginecore", Severity.BLOCKS, needs=("processes",))
def orphans(s: Snapshot) -> Verdict:
    left = [process for process in s.processes or () if process.orphan]
    if not left:
        return ok("no engine was left behind")
    seen = [(f"process {process.pid}", f"{process.name}, its parent is gone") for process in left[:3]]
    return warn(*seen, expected="a server as its parent", commands=tuple(f"kill {process.pid}" for process in left))


@check("EB-MEM-008", "kv-bytes-bypass", Severity.BLOCKS, needs=("processes",))
def kv_bytes(s: Snapshot) -> Verdict:
    seen = _flags(s, r"--kv-cache-memory-bytes")
    if not on_spark(s):
        return skip("not a GB10 machine")
    return warn(*seen, expected="--gpu-memory-utilization instead") if seen else ok("no server bypasses the profile run")


@check("EB-MEM-009", "ray-oom-kill", Severity.BLOCKS, needs=("processes", "variables"))
def ray_monitor(s: Snapshot) -> Verdict:
    if not on_spark(s):
        return skip("not a GB10 machine")
    value = variable(s, "RAY_memory_monitor_refresh_ms")
    running = [process for process in s.processes or () if "raylet" in process.name]
    if running and value != "0":
        return warn((f"process {running[0].pid}", "raylet"), ("RAY_memory_monitor_refresh_ms", value or "not set"), expected="0")
    if dist(s, "ray") and value != "0":
        return info(
            ("environment", "ray is installed"), ("RAY_memory_monitor_refresh_ms", value or "not set"), note="It matters once Ray is used."
        )
    return ok("Ray is not used, or its monitor is off")


@check("EB-MEM-010", "container-memory-limit", Severity.BLOCKS, needs=("memory", "host"))
def cgroup_limit(s: Snapshot) -> Verdict:
    memory = _memory(s)
    if not on_spark(s) or memory.cgroup_limit_bytes is None:
        return skip("no memory limit on this group")
    seen = ("/sys/fs/cgroup/memory.max", f"{memory.cgroup_limit_bytes / 2**30:.1f} GiB")
    if memory.cgroup_limit_bytes < memory.kb("MemTotal") * 1024 // 2:
        return info(
            seen, expected="more than the model needs", note="On unified memory a limit of the container is a limit for the model too."
        )
    return ok(seen)


@check("EB-MEM-011", "oom-killed-serving", Severity.BLOCKS, needs=("kernel_log",))
def oom_killed(s: Snapshot) -> Verdict:
    seen = log_lines(s, "Killed process", "oom-kill", pattern=r"(Killed process|oom-kill).*(python|VLLM|vllm|EngineCore|raylet)")
    return warn(*seen, expected="no such line") if seen else ok("no server was killed for memory in this boot")


@check("EB-MEM-012", "gpu-busy", Severity.INFO, needs=("nvml",))
def gpu_busy(s: Snapshot) -> Verdict:
    if not gpu_processes(s):
        return ok(("NVML", "no program uses the GPU"))
    names = [
        f"{process.name or 'pid ' + str(process.pid)} ({(process.memory_bytes or 0) / 2**30:.1f} GiB)"
        for gpu in (s.nvml.gpus if s.nvml else ())
        for process in gpu.processes
    ]
    return info(("NVML", ", ".join(names[:4])), note="What they hold is not free for another model.")


@check("EB-MEM-013", "hugepages-reserved", Severity.BLOCKS, needs=("memory",))
def hugepages(s: Snapshot) -> Verdict:
    if not on_spark(s):
        return skip("not a GB10 machine")
    memory = _memory(s)
    reserved = memory.kb("HugePages_Free") * memory.kb("Hugepagesize") / 2**20
    seen = (_SOURCE, f"{memory.kb('HugePages_Free')} free huge pages, {reserved:.1f} GiB")
    return warn(seen, expected="none reserved") if reserved > 8 else ok(seen)


@check("EB-MEM-014", "fst-balloon-gemma4", Severity.BLOCKS, needs=("processes",))
def fastsafetensors_balloon(s: Snapshot) -> Verdict:
    seen = [
        flag
        for flag in _flags(s, r"--load-format=fastsafetensors|model=gemma")
        if "fastsafetensors" in flag[1] and "model=gemma" in flag[1]
    ]
    if not on_spark(s):
        return skip("not a GB10 machine")
    return warn(*seen, expected="--load-format safetensors") if seen else ok("not used for a Gemma 4 model")


only_in_logs("EB-MEM-015", "vllm-profile-overrun", Severity.BLOCKS)
only_in_logs("EB-MEM-016", "rpc-sample-timeout", Severity.BLOCKS)
