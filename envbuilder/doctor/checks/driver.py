"""The NVIDIA driver: whether it is there, whole, of the right kind, and what it reports of its GPUs."""

from __future__ import annotations

import re

from envbuilder.doctor.checks.common import driver_in_use, gpus, gpus_on_bus, log_lines, numbers, on_spark, wants_gpu
from envbuilder.doctor.commands import a_toolkit
from envbuilder.doctor.model import Severity, fail, info, ok, skip, warn
from envbuilder.doctor.registry import check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envbuilder.doctor.model import Verdict
    from envbuilder.facts.model import Driver, Snapshot

_GSP = r"GSP RM|GSP firmware|RPC response from GPU\d+ GSP|_kgspBootGspRm|GSP_INIT"
_NVSWITCH = {"0x1ac2", "0x1af1", "0x22a3", "0x2901"}  # Volta's to Blackwell's
_DRIVER_PACKAGE = r"nvidia-(?:driver|dkms|kernel-(?:source|open)|headless)(?:-no-dkms)?-\d+|libnvidia-compute-\d+"
_NEEDED = ("driver",)
# Why a driver that is installed is not loaded.
_NOT_LOADED = ("EB-DRV-012", "EB-DRV-009", "EB-DRV-003", "EB-DRV-004", "EB-DRV-005")
_INSTALL = ("sudo apt update && sudo apt install nvidia-driver-580-open", "sudo reboot")  # on a GB10


def _driver(s: Snapshot) -> Driver:
    assert s.driver is not None  # noqa: S101 - every check that calls this needs "driver"
    return s.driver


def _own_system(s: Snapshot) -> str:
    """Return why this is not a system with a driver of its own to judge, "" if it is one."""
    if s.host and s.host.wsl:
        return "WSL: the driver is Windows's"
    if s.host and s.host.container:
        return "in a container: the driver is the host's"
    return "" if gpus_on_bus(s) else "no NVIDIA GPU on the PCI bus"


def _has_packages(s: Snapshot) -> bool:
    return any(re.match(_DRIVER_PACKAGE, name) for name in s.packages or {} if "nvidia-" in name)


@check("EB-DRV-001", "driver-missing", Severity.BLOCKS, needs=("driver", "pci"))
def driver_missing(s: Snapshot) -> Verdict:
    if reason := _own_system(s):
        return skip(reason)
    driver = _driver(s)
    if driver.loaded or driver.libraries or _has_packages(s):
        return ok(("driver", driver.loaded or "installed"))
    seen = ("/sys/bus/pci", f"{gpus_on_bus(s)[0].address} is 10de:{gpus_on_bus(s)[0].device[2:]}"), ("/proc/driver/nvidia", "not there")
    return fail(*seen, expected="the kernel module nvidia, and libcuda.so.1", commands=_INSTALL if on_spark(s) else None)


@check("EB-DRV-003", "driver-not-built-for-kernel", Severity.BLOCKS, needs=("driver", "pci", "host"), after=("EB-MACH-005",))
def not_built_for_kernel(s: Snapshot) -> Verdict:
    if reason := _own_system(s):
        return skip(reason)
    driver = _driver(s)
    kernel = s.host.kernel if s.host else ""
    if driver.loaded or driver.module_for_kernel is not False or not (driver.libraries or _has_packages(s)):
        return ok(("kernel module", driver.loaded or "there"))
    return fail(
        (f"/lib/modules/{kernel}/modules.dep", "no nvidia.ko"), expected="a module built for this kernel", commands=_module_commands(s)
    )


def _module_commands(s: Snapshot) -> tuple[str, ...] | None:
    """Return how the installed driver's module for the running kernel comes: built by DKMS, or as Ubuntu's package of the same flavour."""
    names = tuple(s.packages or {})
    if any(name.startswith("nvidia-dkms-") for name in names):
        return ('sudo apt install "linux-headers-$(uname -r)"', "sudo dkms autoinstall && sudo reboot")
    flavours = [match[1] for name in names if (match := re.fullmatch(r"nvidia-driver-(\d+(?:-server)?(?:-open)?)", name))]
    return (f'sudo apt install "linux-modules-nvidia-{flavours[0]}-$(uname -r)"', "sudo reboot") if flavours else None


@check("EB-DRV-004", "driver-refused-by-secure-boot", Severity.BLOCKS, needs=("driver", "pci", "host"))
def refused_by_secure_boot(s: Snapshot) -> Verdict:
    if reason := _own_system(s):
        return skip(reason)
    seen = log_lines(
        s,
        *("unsigned module", "Lockdown:", "Required key not available", "verification failed"),
        pattern=r"unsigned module|Lockdown:.*nvidia|nvidia.*(Required key not available|verification failed)",
    )
    if _driver(s).loaded or not seen or (s.host and s.host.secure_boot is False):
        return ok(("kernel module", _driver(s).loaded or "not refused"))
    return fail(*seen, expected="a signed module, or its key enrolled")


@check(
    "EB-DRV-005",
    "nouveau-in-the-way",
    Severity.BLOCKS,
    needs=("driver", "pci"),
    after=("EB-DRV-001", "EB-DRV-003", "EB-DRV-004"),  # nouveau takes a GPU that nobody else took
)
def nouveau(s: Snapshot) -> Verdict:
    if reason := _own_system(s):
        return skip(reason)
    driver = _driver(s)
    if driver.nouveau and not driver.loaded:
        return fail(("/proc/modules", "nouveau"), expected="the module nvidia")
    return ok(("/proc/modules", ", ".join(driver.modules) or "no GPU module"))


@check(
    "EB-DRV-002",
    "driver-module-not-loaded",
    Severity.BLOCKS,
    needs=("driver", "pci"),
    after=("EB-MACH-005", *_NOT_LOADED, "EB-MACH-002", "EB-MACH-007"),
)
def module_not_loaded(s: Snapshot) -> Verdict:
    if reason := _own_system(s):
        return skip(reason)
    driver = _driver(s)
    if driver.loaded:
        return ok(("/sys/module/nvidia/version", driver.loaded))
    if not (driver.libraries or _has_packages(s)):
        return skip("no driver is installed")
    return fail(("/proc/modules", "no nvidia"), *log_lines(s, "NVRM", "nvidia"), expected="the module nvidia")


@check("EB-DRV-006", "nvml-driver-mismatch", Severity.BLOCKS, needs=_NEEDED)
def driver_library_mismatch(s: Snapshot) -> Verdict:
    driver = _driver(s)
    if not driver.loaded or (s.host and s.host.wsl):
        return skip("no driver is loaded here")
    found = [library for library in driver.libraries if "libnvidia-ml" in library.path and library.version]
    if not found:
        return skip("no library of the driver to compare with")
    loaded = ("/sys/module/nvidia/version", driver.loaded)
    if any(library.version == driver.loaded for library in found):
        return ok(loaded)
    # In a container the library is the one mounted in; a stray one in the image shows here just as well.
    return fail(loaded, (found[0].path, found[0].version), expected="one version")


@check("EB-DRV-007", "gsp-driver-torn", Severity.BLOCKS, needs=_NEEDED, after=("EB-DRV-006", "EB-MACH-002"))
def gsp_driver_torn(s: Snapshot) -> Verdict:
    driver = _driver(s)
    if not driver.loaded or (s.host and s.host.container):
        return skip("no driver of this system's own is loaded")
    seen = [*log_lines(s, "GSP", "_kgspBootGspRm", pattern=_GSP)]
    other = [version for version in driver.gpu_firmware if re.match(r"\d{3}\.\d", version) and version != driver.loaded]
    if other:
        seen.append(("/proc/driver/nvidia/gpus", f"GPU firmware {other[0]}, module {driver.loaded}"))
    if driver.firmware_dirs and driver.loaded not in driver.firmware_dirs:
        seen.append(("/lib/firmware/nvidia", f"{', '.join(driver.firmware_dirs)}; the module is {driver.loaded}"))
    if other or (seen and not gpus(s)):
        elsewhere = None if on_spark(s) else ("sudo apt update && sudo apt full-upgrade", "sudo reboot")
        return fail(*seen, expected=f"GSP firmware {driver.loaded}, and a GPU that answers", commands=elsewhere)
    return ok(("GPU firmware", ", ".join(driver.gpu_firmware) or "not told"))


@check(
    "EB-DRV-008",
    "nvml-no-devices",
    Severity.BLOCKS,
    needs=("nvml", "pci"),
    after=(
        "EB-DRV-009",
        "EB-DRV-014",
        "EB-DRV-007",
        "EB-DRV-006",
        "EB-DRV-002",
        "EB-DRV-001",
        "EB-MACH-002",
        "EB-CTR-009",
        "EB-MACH-010",
        "EB-DRV-018",
    ),
)
def nvml_no_devices(s: Snapshot) -> Verdict:
    if s.nvml is None or not gpus_on_bus(s):
        return skip("no NVIDIA GPU on the PCI bus")
    if s.nvml.status == "ok" and not s.nvml.gpus:
        return fail(("NVML", "0 devices"), ("/sys/bus/pci", f"{len(gpus_on_bus(s))} NVIDIA GPU"), expected="as many devices as the bus has")
    return ok(("NVML", f"{len(gpus(s))} devices")) if s.nvml.status == "ok" else skip(f"NVML: {s.nvml.status}")


@check("EB-DRV-009", "driver-too-old-for-gb10", Severity.BLOCKS, after=("EB-DRV-012",))
def driver_too_old(s: Snapshot) -> Verdict:
    # A module that does not know the GPU may not be loaded at all: then its libraries tell.
    own = () if s.driver is None or _own_system(s) else s.driver.libraries
    installed = [library for library in own if library.version and "/compat" not in library.path]
    seen = ("driver", driver_in_use(s)) if driver_in_use(s) or not installed else (installed[0].path, installed[0].version)
    if not on_spark(s) or not seen[1]:
        return skip("not a GB10 machine with a driver")
    return ok(seen) if numbers(seen[1]) >= (580,) else fail(seen, expected="580.95.05 or a later 580", commands=_INSTALL)


@check("EB-DRV-010", "driver-branch-unsupported", Severity.BLOCKS)
def driver_branch(s: Snapshot) -> Verdict:
    version = driver_in_use(s)
    if not on_spark(s) or not version:
        return skip("not a GB10 machine with a driver")
    seen = ("driver", version)
    return ok(seen) if numbers(version) < (590,) else warn(seen, expected="the branch 580, which DGX OS pairs with the GPU's firmware")


@check("EB-DRV-011", "driver-580.159.03", Severity.BLOCKS)
def driver_159(s: Snapshot) -> Verdict:
    version = driver_in_use(s)
    if not on_spark(s) or not version:
        return skip("not a GB10 machine with a driver")
    return warn(("driver", version), expected="580.173.02 or newer") if version == "580.159.03" else ok(("driver", version))


@check("EB-DRV-012", "driver-wrong-packages", Severity.BLOCKS, needs=("packages",))
def wrong_packages(s: Snapshot) -> Verdict:
    if not on_spark(s) or (s.host and s.host.container):
        return skip("not a GB10 machine's own system")
    wrong = [
        (name, version)
        for name, version in (s.packages or {}).items()
        if re.match(
            r"nvidia-(driver|dkms|kernel|headless)[a-z-]*-\d+-server|nvidia-fabricmanager|libnvidia-nscq|nvidia-imex|nvswitch", name
        )
        or re.fullmatch(r"nvidia-driver-\d+", name)
    ]
    if not wrong:
        return ok("only packages that fit")
    # In one step, for between two the machine would have no driver: a name with a minus after it is removed.
    away = " ".join(f"{name}-" for name, _ in wrong)
    commands = (f"sudo apt update && sudo apt install nvidia-driver-580-open {away}", "sudo reboot")
    dead = s.driver is not None and not s.driver.loaded
    seen = ("dpkg", ", ".join(f"{name} {version}" for name, version in wrong[:4]))
    return (fail if dead else warn)(seen, expected="nvidia-driver-580-open alone", commands=commands)


@check("EB-DRV-013", "driver-run-installer", Severity.BLOCKS, needs=("driver", "packages"))
def run_installer(s: Snapshot) -> Verdict:
    driver = _driver(s)
    if not driver.run_installer:
        return ok("not installed with a .run file")
    if on_spark(s) or _has_packages(s):
        names = sorted(name for name in s.packages or {} if re.fullmatch(r"nvidia-driver-\d+(-server)?(-open)?", name))
        again = names[0] if names else "nvidia-driver-580-open"
        return warn(
            ("/var/log/nvidia-installer.log", "there"),
            expected="the distribution's packages alone",
            commands=("sudo nvidia-uninstall", f"sudo apt install --reinstall {again}"),
        )
    return skip("the .run file's driver is the only one")


@check("EB-DRV-014", "driver-not-open", Severity.BLOCKS, needs=_NEEDED, after=("EB-DRV-012", "EB-DRV-009"))
def driver_not_open(s: Snapshot) -> Verdict:
    driver = _driver(s)
    if not on_spark(s) or not driver.flavour:
        return skip("not a GB10 machine with a loaded driver")
    seen = ("/proc/driver/nvidia/version", f"{driver.flavour} kernel module {driver.loaded}")
    return ok(seen) if driver.flavour == "open" else fail(seen, expected="the open kernel module", commands=_INSTALL)


@check("EB-DRV-015", "nvidia-uvm-missing", Severity.BLOCKS, needs=_NEEDED, after=("EB-CTR-009",))
def uvm_missing(s: Snapshot) -> Verdict:
    driver, inside = _driver(s), bool(s.host and s.host.container)
    if "/dev/nvidiactl" not in driver.nodes:
        return skip("no device nodes of the driver")
    seen = ("/dev", ", ".join(node.removeprefix("/dev/") for node in driver.nodes))
    if "/dev/nvidia-uvm" in driver.nodes:
        return ok(seen)
    # On a host, nvidia-modprobe makes the node at the first use of CUDA; inside a container nobody can.
    return (
        fail(seen, expected="/dev/nvidia-uvm")
        if inside
        else info(seen, expected="/dev/nvidia-uvm", note="It is made at the first use of CUDA.")
    )


@check("EB-DRV-016", "device-nodes-denied", Severity.BLOCKS, needs=_NEEDED)
def nodes_denied(s: Snapshot) -> Verdict:
    driver = _driver(s)
    if not driver.nodes:
        return skip("no device nodes of the driver")
    if driver.unusable_nodes:
        return fail(("/dev", f"not writable: {', '.join(driver.unusable_nodes)}"), expected="mode 0666, or a group that you are in")
    return ok(("/dev", f"{len(driver.nodes)} nodes, writable"))


@check("EB-DRV-017", "libcuda-missing", Severity.BLOCKS, needs=_NEEDED, after=("EB-DRV-001", "EB-CTR-009", "EB-CTR-015"))
def libcuda_missing(s: Snapshot) -> Verdict:
    driver = _driver(s)
    if not (driver.loaded or "/dev/nvidiactl" in driver.nodes) or s.machine == "jetson":
        return skip("no driver is loaded, or a Jetson's, which keeps its libraries elsewhere")
    if s.host and s.host.container and not wants_gpu(s):
        return skip("in a container for the CPU: it was given nothing of the driver, and needs nothing")
    found = [library.path for library in driver.libraries if "/libcuda.so" in library.path]
    if found:
        return ok((found[0], "there"))
    branch = numbers(driver.loaded)[:1]
    on_host = not (s.host and s.host.container) and _has_packages(s) and branch
    return fail(
        ("library folders", "no libcuda.so.1"),
        expected="libcuda.so.1 beside libnvidia-ml.so.1",
        commands=(f"sudo apt install --reinstall libnvidia-compute-{branch[0]}",) if on_host else None,
    )


@check("EB-DRV-018", "xid-errors", Severity.BLOCKS, needs=("kernel_log",), after=("EB-MACH-007", "EB-DRV-007", "EB-MACH-010"))
def xid_errors(s: Snapshot) -> Verdict:
    lines = log_lines(s, "Xid", pattern=r"\bXid\b.*: \d+", most=200)
    # 79: fallen off the bus; 48, 94, 95: memory errors; 62, 119, 120, 154: the GPU's own processors and its recovery.
    grave = [line for line in lines if re.search(r"Xid[^:]*(?:\([^)]*\))?: (?:48|62|74|79|94|95|120|154)\b", line[1])]
    if grave:
        return fail(*grave[:3], expected="no such Xid")
    harmless = tuple(line for line in lines if not re.search(r": 119\b", line[1]))[:3]
    return info(*harmless, note="Programs were ended for faults of their own.") if harmless else ok("no Xid in this boot")


@check("EB-DRV-019", "nvrm-no-memory-wedge", Severity.BLOCKS, needs=("kernel_log",))
def nvrm_no_memory(s: Snapshot) -> Verdict:
    seen = log_lines(s, "NV_ERR_NO_MEMORY", "_memdescAllocInternal")
    return warn(*seen, expected="no such line") if seen else ok("no failed allocation of the driver")


@check("EB-DRV-020", "torch-uma-alloc-hang", Severity.BLOCKS, needs=("kernel_log",), after=("EB-DRV-007",))
def uma_alloc_hang(s: Snapshot) -> Verdict:
    seen = log_lines(s, "Xid", "Timeout after", pattern=r"Xid[^:]*(?:\([^)]*\))?: 119\b|Timeout after \d+s of waiting for RPC")
    return warn(*seen, expected="no Xid 119") if seen else ok("no Xid 119 in this boot")


@check("EB-DRV-021", "fabric-manager-missing", Severity.BLOCKS, needs=("driver", "pci"))
def fabric_manager(s: Snapshot) -> Verdict:
    switches = [
        device for device in s.pci or () if device.vendor == "0x10de" and device.kind.startswith("0x0680") and device.device in _NVSWITCH
    ]
    if not switches or _own_system(s):
        return skip("no NVSwitch, or not this system's own driver")
    running = _driver(s).fabric_manager_running
    seen = ("/sys/bus/pci", f"{len(switches)} NVSwitches"), ("fabric manager", "running" if running else "not running")
    return ok(*seen) if running else fail(*seen, expected="nvidia-fabricmanager of the driver's version, running")


@check("EB-DRV-022", "fabric-manager-version", Severity.BLOCKS, needs=("driver", "packages"))
def fabric_manager_version(s: Snapshot) -> Verdict:
    found = {name: version for name, version in (s.packages or {}).items() if name.startswith("nvidia-fabricmanager")}
    loaded = _driver(s).loaded
    if not found or not loaded or on_spark(s):
        return skip("no fabric manager beside a loaded driver")
    name, version = next(iter(found.items()))
    seen = (("dpkg", f"{name} {version}"), ("/sys/module/nvidia/version", loaded))
    return ok(*seen) if version.startswith(loaded) else fail(*seen, expected="one version")


@check("EB-DRV-023", "gpu-memory-errors", Severity.WRONG_RESULT, needs=("nvml",))
def memory_errors(s: Snapshot) -> Verdict:
    counted = [(index, gpu.ecc_uncorrected) for index, gpu in enumerate(gpus(s)) if gpu.ecc_uncorrected]
    if counted:
        return fail(*(("NVML", f"GPU {index}: {errors} uncorrected ECC errors") for index, errors in counted[:3]), expected="0")
    return ok(("NVML", "no uncorrected ECC errors")) if gpus(s) else skip("no GPU answers")


@check("EB-DRV-024", "gpu-compute-prohibited", Severity.BLOCKS, needs=("nvml",))
def compute_prohibited(s: Snapshot) -> Verdict:
    modes = [gpu.compute_mode for gpu in gpus(s) if gpu.compute_mode is not None]
    if not modes:
        return skip("NVML tells no compute mode")
    if 2 in modes:
        return fail(("NVML", "compute mode: prohibited"), expected="default")
    return info(("NVML", "compute mode: exclusive process")) if 3 in modes else ok(("NVML", "compute mode: default"))


@check("EB-DRV-025", "gpu-throttled", Severity.SLOW, needs=("nvml",))
def throttled(s: Snapshot) -> Verdict:
    # nvml.h: 0x8 hardware slowdown, 0x40 hardware thermal slowdown, 0x80 hardware power brake.
    seen = [
        ("NVML", f"{gpu.name}: throttle reasons {gpu.throttle_reasons:#x}, {gpu.temperature_c} °C")
        for gpu in gpus(s)
        if (gpu.throttle_reasons or 0) & 0xC8
    ]
    if seen:
        return warn(*seen[:3], expected="no hardware slowdown")
    return ok(("NVML", "no hardware slowdown")) if gpus(s) else skip("no GPU answers")


@check("EB-DRV-026", "gpu-mig-on", Severity.INFO, needs=("nvml",))
def mig_on(s: Snapshot) -> Verdict:
    count = sum(gpu.mig == 1 for gpu in gpus(s))
    if count:
        return info(("NVML", f"MIG is on for {count} of {len(gpus(s))} GPUs"))
    return ok(("NVML", "MIG is off")) if gpus(s) else skip("no GPU answers")


@check("EB-DRV-027", "nvml-memory-na", Severity.INFO, needs=("nvml",))
def memory_na(s: Snapshot) -> Verdict:
    unknown_memory = [gpu.name for gpu in gpus(s) if gpu.memory_total is None]
    if unknown_memory:
        return info(("NVML", f"{unknown_memory[0]}: memory not supported"), note="Normal where CPU and GPU share their memory.")
    return ok(("NVML", "every GPU tells its memory")) if gpus(s) else skip("no GPU answers")


@check("EB-DRV-028", "nvml-hangs", Severity.BLOCKS, needs=("nvml",), after=("EB-DRV-007", "EB-MACH-002", "EB-MACH-010", "EB-DRV-018"))
def nvml_hangs(s: Snapshot) -> Verdict:
    if s.nvml and s.nvml.status == "timeout":
        return fail(("NVML", s.nvml.error), expected="an answer in milliseconds")
    return ok(("NVML", s.nvml.status if s.nvml else ""))


@check(
    "EB-DRV-029",
    "nvml-error",
    Severity.BLOCKS,
    needs=("nvml",),
    after=(
        "EB-DRV-009",
        "EB-DRV-014",
        "EB-DRV-006",
        "EB-DRV-002",
        "EB-DRV-001",
        "EB-DRV-007",
        "EB-CTR-009",
        "EB-CTR-010",
        "EB-DRV-016",
        "EB-MACH-002",
        "EB-MACH-007",
        "EB-MACH-019",
        "EB-MACH-010",
        "EB-DRV-018",
    ),
)
def nvml_error(s: Snapshot) -> Verdict:
    if s.nvml is None or s.nvml.status != "error":
        return ok(("NVML", s.nvml.status if s.nvml else ""))
    visible = gpus_on_bus(s) or (s.driver and (s.driver.loaded or s.driver.nodes))
    if not visible:
        return info(("NVML", s.nvml.error), note="A library of the driver without a GPU: normal in some images.")
    return fail(("NVML", s.nvml.error), expected="an answer")


@check("EB-DRV-030", "cuda-driver-too-old", Severity.BLOCKS, needs=("nvml", "environment"), after=("EB-DRV-009",))
def driver_older_than_torch(s: Snapshot) -> Verdict:
    torch = s.environment.torch if s.environment else None
    if s.nvml is None or not s.nvml.cuda or torch is None or not torch.cuda:
        return skip("no CUDA torch beside a driver that answers")
    seen = (("NVML", f"the driver's CUDA is {s.nvml.cuda}"), ("torch/version.py", f"cuda {torch.cuda}"))
    if numbers(torch.cuda)[:1] > numbers(s.nvml.cuda)[:1]:
        return fail(*seen, expected="a driver of the same CUDA major, or newer")
    return ok(*seen)


def _same_major(kits: list[tuple[str, str]], cuda: str) -> bool:
    return all(numbers(release.removeprefix("CUDA "))[:1] == numbers(cuda)[:1] for _, release in kits)


@check(
    "EB-DRV-031",
    "cuda-ptx-newer-than-driver",
    Severity.BLOCKS,
    needs=("nvml", "toolkits"),
    after=("EB-DRV-009", "EB-DRV-030", "EB-CUDA-001"),
)
def ptx_newer_than_driver(s: Snapshot) -> Verdict:
    if s.nvml is None or not s.nvml.cuda:
        return skip("no driver answers")
    driver = ("NVML", f"the driver's CUDA is {s.nvml.cuda}")
    used = [kit for kit in s.toolkits or () if kit.nvcc and kit.release and set(kit.found_by) & {"PATH", "CUDA_HOME"}]
    newer = [(f"{kit.path}/bin/nvcc", f"CUDA {kit.release}") for kit in used if numbers(kit.release) > numbers(s.nvml.cuda)]
    # Within a major, what is compiled for this very GPU runs; images are made so, and off a GB10 nobody reported more.
    if newer and (not on_spark(s) or (s.host and s.host.container)) and _same_major(newer, s.nvml.cuda):
        return info(*newer, driver, note="Kernels kept as PTX alone would not start.")
    if newer:
        commands = a_toolkit(s, most=numbers(s.nvml.cuda)[:2])
        return warn(*newer, driver, expected=f"CUDA {s.nvml.cuda} or older", commands=commands)
    torch = s.environment.torch if s.environment else None
    if torch and numbers(torch.cuda) > numbers(s.nvml.cuda):
        # Within a major, machine code runs on older drivers, and torch's wheels hold machine code.
        return info(("torch/version.py", f"cuda {torch.cuda}"), driver, note="Kernels kept as PTX alone would not start.")
    return ok(driver)
