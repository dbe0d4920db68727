"""The machine itself: its identity, kernel, hardware and system."""

from __future__ import annotations

import re

from envbuilder.doctor.checks.common import GB10_PCI, gpus, gpus_on_bus, log_lines, on_spark, target_of
from envbuilder.doctor.model import Severity, fail, info, ok, skip, unknown, warn
from envbuilder.doctor.registry import check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envbuilder.doctor.model import Verdict
    from envbuilder.facts.model import Host, Snapshot

_KERNEL_SOURCE = "/proc/sys/kernel/osrelease"
_CMA_LIMIT_KB = 256 << 10
_WEDGE_CLOCK_MHZ, _WEDGE_POWER_W, _WEDGE_UTILIZATION = 1400, 40.0, 90


def _host(s: Snapshot) -> Host:
    assert s.host is not None  # noqa: S101 - every check that calls this needs "host"
    return s.host


@check("EB-MACH-001", "machine-look-alike", Severity.INFO)
def machine_look_alike(s: Snapshot) -> Verdict:
    seen = [("detection", line) for line in s.detected[:3]]
    if s.machine in {"rtx-spark", "jetson", "grace", "unknown, unified memory"}:
        return info(*seen, expected="a GB10 (PCI 10de:2e12) for the target dgx-spark", note=f"Taken for: {s.machine}.")
    return ok(*seen)


@check("EB-MACH-002", "kernel-6.17.0-1008", Severity.BLOCKS, needs=("host",))
def kernel_1008(s: Snapshot) -> Verdict:
    if not on_spark(s):
        return skip("not a GB10 machine")
    kernel = _host(s).kernel
    if kernel.startswith("6.17.0-1008-"):
        return fail((_KERNEL_SOURCE, kernel), *log_lines(s, "DOE", pattern=r"\bDOE\b"), expected="6.17.0-1014 or newer, or 6.14")
    return ok((_KERNEL_SOURCE, kernel))


@check("EB-MACH-003", "kernel-7.0.0-1019-roce", Severity.BLOCKS, needs=("host", "network"))
def kernel_7_1019(s: Snapshot) -> Verdict:
    if not on_spark(s):
        return skip("not a GB10 machine")
    kernel = _host(s).kernel
    if not kernel.startswith("7.0.0-1019-"):
        return ok((_KERNEL_SOURCE, kernel))
    linked = [name for name in (s.network.interfaces if s.network else ()) if re.fullmatch(r"en[pP]\w+np\d", name)]
    seen = ((_KERNEL_SOURCE, kernel), ("/sys/class/net", ", ".join(linked) or "no ConnectX port is up"))
    note = "" if linked else "Only joined machines are hit; no ConnectX port is up here."
    return (warn if linked else info)(*seen, expected="6.17.0-1032-nvidia", note=note)


@check("EB-MACH-004", "kernel-connectx-lost", Severity.BLOCKS, needs=("host", "network"))
def kernel_connectx(s: Snapshot) -> Verdict:
    if not on_spark(s) or _host(s).container:
        return skip("not a GB10 machine's own system")
    kernel, count = _host(s).kernel, s.network.connectx if s.network else 0
    seen = ((_KERNEL_SOURCE, kernel), ("/sys/bus/pci", f"{count} ConnectX-7 functions"))
    if re.match(r"6\.17\.0-(1021|1029)-", kernel) and not count:
        return fail(*seen, expected="4 functions of 15b3:1021")
    return ok(*seen)


@check("EB-MACH-005", "kernel-not-nvidia", Severity.BLOCKS, needs=("host",))
def kernel_not_nvidia(s: Snapshot) -> Verdict:
    if not on_spark(s) or _host(s).wsl:
        return skip("not a GB10 machine's own system")
    kernel = _host(s).kernel
    if re.fullmatch(r"\d+\.\d+\.\d+-\d+-nvidia(-64k|-lowlatency)?", kernel):
        return ok((_KERNEL_SOURCE, kernel))
    dead = s.driver is not None and not s.driver.loaded
    seen = [(_KERNEL_SOURCE, kernel), *([("/proc/modules", "no nvidia")] if dead else [])]
    return (fail if dead else warn)(*seen, expected="a kernel named …-nvidia, for example 6.17.0-1032-nvidia")


@check("EB-MACH-006", "kernel-memory-reserved", Severity.SLOW, needs=("memory",))
def memory_reserved(s: Snapshot) -> Verdict:
    if not on_spark(s) or s.memory is None:
        return skip("not a GB10 machine")
    total, free = s.memory.kb("CmaTotal"), s.memory.kb("CmaFree")
    seen = ("/proc/meminfo", f"CmaTotal {total} kB, CmaFree {free} kB")
    if total == 0 and free > _CMA_LIMIT_KB:
        return warn(seen, expected="CmaFree not above CmaTotal")
    return ok(seen)


@check("EB-MACH-007", "gpu-off-the-bus", Severity.BLOCKS, needs=("pci", "host"))
def gpu_off_the_bus(s: Snapshot) -> Verdict:
    if not on_spark(s):
        return skip("not a GB10 machine")
    if any(device.device == GB10_PCI for device in gpus_on_bus(s)):
        return ok(("/sys/bus/pci", "10de:2e12 is there"))
    bridges = [device for device in s.pci or () if device.vendor == "0x10de"]
    if not bridges:
        return unknown("the PCI bus is not to be seen from here")
    return fail(("/sys/bus/pci", f"{len(bridges)} NVIDIA bridges, no 10de:2e12"), expected="10de:2e12 at 000f:01:00.0")


@check("EB-MACH-008", "gpu-low-power-state", Severity.SLOW, needs=("nvml",))
def low_power_state(s: Snapshot) -> Verdict:
    if not on_spark(s) or not gpus(s):
        return skip("no GB10 answers")
    gpu = gpus(s)[0]
    seen = (
        "NVML",
        f"SM clock {gpu.sm_clock_mhz} MHz, {gpu.power_w} W, utilization {gpu.utilization}%, throttle reasons {gpu.throttle_reasons}",
    )
    if gpu.utilization is None or gpu.sm_clock_mhz is None or gpu.power_w is None:
        return unknown("NVML does not tell clock, power and utilization")
    if gpu.utilization < _WEDGE_UTILIZATION:
        return skip("only to be told under load")
    # Bit 1 is "idle", bit 2 "applications clocks": neither explains a slow busy GPU; any other reason would.
    explained = (gpu.throttle_reasons or 0) & ~0x3
    if gpu.sm_clock_mhz < _WEDGE_CLOCK_MHZ and gpu.power_w < _WEDGE_POWER_W and not explained:
        return fail(seen, expected="above 2000 MHz at this load")
    return ok(seen)


@check("EB-MACH-009", "hard-power-off", Severity.BLOCKS, needs=("host",))
def hard_power_off(s: Snapshot) -> Verdict:
    host = _host(s)
    if not on_spark(s) or not host.boots:
        return skip("not a GB10 machine, or no record of boots")
    seen = (
        ("/var/log/wtmp", f"{host.unclean_boots} of the last {host.boots} starts followed no shutdown"),
        ("/sys/fs/pstore", f"{host.pstore_entries} records"),
    )
    if host.unclean_boots >= 3 and not host.pstore_entries:
        return warn(*seen, expected="starts after shutdowns")
    return info(*seen) if host.unclean_boots else ok(*seen)


@check("EB-MACH-010", "suspend-resume", Severity.BLOCKS, needs=("kernel_log",))
def suspend_resume(s: Snapshot) -> Verdict:
    if not on_spark(s):
        return skip("not a GB10 machine")
    seen = log_lines(s, "PM: suspend exit", "PM: suspend entry")
    if not seen:
        return ok("no suspend in this boot")
    gone = s.nvml is not None and s.nvml.status != "absent" and not gpus(s)
    return (fail if gone else warn)(
        *seen, *([("NVML", s.nvml.error or "0 devices")] if s.nvml and gone else []), expected="no suspend on a machine that computes"
    )


@check("EB-MACH-011", "clock-wrong", Severity.BLOCKS, needs=("host",))
def clock_wrong(s: Snapshot) -> Verdict:
    year = _host(s).year
    return ok(f"the year is {year}") if year >= 2025 else fail(("clock", f"the year is {year}"), expected="2025 or later")


@check("EB-MACH-012", "libc-musl", Severity.BLOCKS, needs=("host",))
def libc_musl(s: Snapshot) -> Verdict:
    libc = _host(s).libc
    if not libc:
        return unknown("the C library's version is not to be read")
    return fail(("libc", libc), expected="glibc 2.34 or newer") if libc.startswith("musl") else ok(("libc", libc))


@check("EB-MACH-013", "kernel-64k-pages", Severity.INFO, needs=("host",))
def pages_64k(s: Snapshot) -> Verdict:
    kernel = _host(s).kernel
    return info((_KERNEL_SOURCE, kernel)) if kernel.endswith("-64k") else ok((_KERNEL_SOURCE, kernel))


@check("EB-MACH-014", "mlx5-power-notice", Severity.INFO, needs=("kernel_log",))
def mlx5_power(s: Snapshot) -> Verdict:
    seen = log_lines(s, "insufficient power", pattern=r"mlx5.*insufficient power", most=1)
    return info(*seen, note="Harmless on this machine.") if seen else ok("no such line")


@check("EB-MACH-015", "user-namespaces-restricted", Severity.INFO, needs=("host",))
def user_namespaces(s: Snapshot) -> Verdict:
    host = _host(s)
    seen = ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", int(host.restricted_user_namespaces))
    return info(seen) if host.restricted_user_namespaces and not host.root_user else ok(seen)


@check("EB-MACH-016", "disk-errors", Severity.WRONG_RESULT, needs=("kernel_log",))
def disk_errors(s: Snapshot) -> Verdict:
    built_in = log_lines(s, "EXT4-fs error", "I/O error", pattern=r"(EXT4-fs error \(device |I/O error,? dev )(nvme|vd|md)")
    if built_in:
        return fail(*built_in, expected="no such line")
    # A USB disk that was unplugged while it was mounted leaves the same lines, and is named sd… like a built-in one.
    others = log_lines(s, "EXT4-fs error", "I/O error, dev sd", "I/O error dev sd")
    if others:
        return info(*others, note="Nothing, if that disk was unplugged; else as grave as it looks.")
    return ok("no disk errors in this boot")


@check("EB-MACH-017", "hung-tasks", Severity.BLOCKS, needs=("kernel_log",))
def hung_tasks(s: Snapshot) -> Verdict:
    seen = log_lines(s, "blocked for more than", "soft lockup", pattern=r"blocked for more than \d+ seconds|soft lockup")
    return warn(*seen, expected="no such line") if seen else ok("no hung tasks in this boot")


@check("EB-MACH-018", "cpu-without-avx2", Severity.BLOCKS, needs=("cpu", "host"))
def cpu_without_avx2(s: Snapshot) -> Verdict:
    if target_of(s) != "cpu" or _host(s).arch != "x86_64" or s.cpu is None:
        return skip("only the target cpu on x86_64 needs it")
    seen = ("/proc/cpuinfo", f"{s.cpu.model}: {' '.join(s.cpu.flags) or 'neither avx2 nor avx512f'}")
    return ok(seen) if {"avx2", "avx512f"} & set(s.cpu.flags) else fail(seen, expected="avx2 or avx512f")


@check("EB-MACH-019", "wsl-linux-driver", Severity.BLOCKS, needs=("host", "packages"))
def wsl_linux_driver(s: Snapshot) -> Verdict:
    if not _host(s).wsl:
        return skip("not WSL")
    found = sorted(name for name in s.packages or {} if re.match(r"nvidia-driver-\d|libnvidia-compute-\d|nvidia-dkms-\d", name))
    return fail(("dpkg", ", ".join(found)), expected="no Linux driver package inside WSL") if found else ok("no Linux driver package")
