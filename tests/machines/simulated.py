"""Whole machines made of files: /proc, /sys, /etc, /dev and a driver library as owners of such machines published them.

`Builder` writes one below a folder; MACHINES names them all with what must be found out about each. Kernel versions,
DMI strings, release files and memory sizes are those of public captures; serial numbers and addresses are invented,
and put where real ones stand, so that tests see whether they leak.
"""

from __future__ import annotations

import functools
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from envbuilder.facts.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

SECRETS = ("1983625000123", "alice", "hf_abcdefghijklmnop", "48:b0:2d:11:22:33", "192.168.77.5", "GPU-0c1f2e3d-1111-2222-3333-444455556666")
SERIAL = SECRETS[0]
HOME = "/home/alice"
_HERE = Path(__file__).parent
_ELF = {"aarch64": 0xB7, "x86_64": 0x3E}

CPUINFO_GB10 = "".join(
    f"processor\t: {number}\nBogoMIPS\t: 2000.00\nFeatures\t: fp asimd evtstrm aes sha2 crc32 atomics sve sve2 bf16 i8mm\nCPU implementer\t: 0x41\n"
    f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {'0xd85' if number % 10 >= 5 else '0xd87'}\nCPU revision\t: 1\n\n"
    for number in range(20)
)
CPUINFO_X86 = "".join(
    f"processor\t: {number}\nmodel name\t: INTEL(R) XEON(R) PLATINUM 8558\nflags\t\t: fpu sse2 avx2 avx512f avx512_bf16 amx_tile\n\n"
    for number in range(8)
)


@dataclass
class Builder:
    """Writes a machine below `root`. The order of calls is the order of writing: what comes later wins."""

    root: Path
    arch: str = "aarch64"
    variables: dict[str, str] = field(
        default_factory=lambda: {
            "HOME": HOME,
            "PATH": "/usr/local/cuda/bin:/usr/bin",
            "SSH_CONNECTION": "192.168.77.5 50000 192.168.77.6 22",
        }
    )
    environment: Path | None = None

    def file(self, path: str, text: str | bytes = "", *, mode: int | None = None) -> Builder:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text.encode() if isinstance(text, str) else text)
        if mode is not None:
            place.chmod(mode)
        return self

    def link(self, path: str, goal: str) -> Builder:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(goal)
        return self

    def folder(self, path: str, *, mode: int = 0o777) -> Builder:
        place = self.root / path.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(mode)
        return self

    def remove(self, path: str) -> Builder:
        place = self.root / path.lstrip("/")
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        return self

    def world(self) -> World:
        return World(root=self.root, variables=self.variables, directory=Path(HOME), uid=1000, gids=(1000,))

    # The parts of a machine.

    def linux(
        self,
        kernel: str,
        *,
        total: int,
        free: int | None = None,
        available: int | None = None,
        swap: tuple[int, int] = (16_777_212, 16_777_212),
    ) -> Builder:
        free = free if free is not None else int(total * 0.9)
        available = available if available is not None else int(total * 0.95)
        self.file("/proc/sys/kernel/osrelease", f"{kernel}\n").file("/proc/sys/kernel/arch", f"{self.arch}\n")
        self.file(
            "/proc/meminfo",
            f"MemTotal:       {total} kB\nMemFree:        {free} kB\nMemAvailable:   {available} kB\nSwapTotal:      {swap[0]} kB\nSwapFree:       {swap[1]} kB\nHugePages_Total:       0\nHugePages_Free:        0\nHugepagesize:       2048 kB\n",
        )
        self.file(
            "/proc/pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
        )
        self.file("/proc/sys/vm/min_free_kbytes", "67584\n").file("/proc/1/comm", "systemd\n").file("/proc/1/cgroup", "0::/init.scope\n")
        self.file("/proc/self/mounts", "/dev/nvme0n1p2 / ext4 rw,relatime 0 0\ntmpfs /tmp tmpfs rw,nosuid,nodev 0 0\n")
        self.file("/proc/cpuinfo", CPUINFO_GB10 if self.arch == "aarch64" else CPUINFO_X86)
        self.file("/etc/os-release", 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\nNAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\n')
        self.folder(HOME).folder("/tmp")  # noqa: S108 - below the machine's own root
        self.file("/usr/bin/gcc", "", mode=0o755).file("/usr/bin/g++", "", mode=0o755).file("/usr/bin/git", "", mode=0o755)
        return self

    def packages(self, **versions: str) -> Builder:
        wanted = {"libc6": "2.39-0ubuntu8.6", **{name.replace("_", "-"): version for name, version in versions.items()}}
        stanzas = (
            f"Package: {name}\nStatus: install ok installed\nArchitecture: arm64\nVersion: {version}\n" for name, version in wanted.items()
        )
        return self.file("/var/lib/dpkg/status", "\n".join(stanzas))

    def dmi(self, vendor: str, product: str, version: str = "") -> Builder:
        base = "/sys/class/dmi/id"
        return (
            self.file(f"{base}/sys_vendor", f"{vendor}\n")
            .file(f"{base}/product_name", f"{product}\n")
            .file(f"{base}/product_version", f"{version}\n")
            .file(f"{base}/product_serial", f"{SERIAL}\n", mode=0o400)
        )

    def pci(self, address: str, vendor: str, device: str, kind: str, driver: str = "") -> Builder:
        base = f"/sys/bus/pci/devices/{address}"
        self.file(f"{base}/vendor", f"{vendor}\n").file(f"{base}/device", f"{device}\n").file(f"{base}/class", f"{kind}\n")
        return self.link(f"{base}/driver", f"../../../../bus/pci/drivers/{driver}") if driver else self

    def dgx_release(self, platform: str, base: str, *otas: str) -> Builder:
        lines = [
            'DGX_NAME="DGX Spark"',
            'DGX_PRETTY_NAME="NVIDIA DGX Spark"',
            'DGX_SWBUILD_DATE="2025-09-10-13-50-03"',
            f'DGX_SWBUILD_VERSION="{base}"',
            'DGX_COMMIT_ID="833b4a7"',
            f'DGX_PLATFORM="{platform}"',
            f'DGX_SERIAL_NUMBER="{SERIAL}"',
        ]
        for ota in otas:
            lines += ["", f'DGX_OTA_VERSION="{ota}"', 'DGX_OTA_DATE="Mi 12. Nov 10:21:33 CET 2025"']
        return self.file("/etc/dgx-release", "\n".join(lines) + "\n").file("/etc/fastos-release", 'NAME="DGX SPARK FASTOS"\n')

    def driver(
        self, version: str, *, library: str = "", firmware: str = "", gpus: tuple[tuple[str, str], ...] = (("000f:01:00.0", "NVIDIA GB10"),)
    ) -> Builder:
        library, firmware = library or version, firmware or version
        folder = f"/usr/lib/{self.arch}-linux-gnu"
        flavour = "Open Kernel Module for aarch64" if self.arch == "aarch64" else "Open Kernel Module for x86_64"
        self.file(
            "/proc/driver/nvidia/version",
            f"NVRM version: NVIDIA UNIX {flavour}  {version}  Release Build  (dvs-builder@U22)\nGCC version:  gcc version 13.3.0\n",
        )
        self.file("/sys/module/nvidia/version", f"{version}\n")
        self.file(
            "/proc/modules",
            "nvidia_uvm 4096 0 - Live 0x0\nnvidia_modeset 4096 0 - Live 0x0\nnvidia 4096 2 nvidia_uvm,nvidia_modeset, Live 0x0\n",
        )
        for address, name in gpus:
            self.file(
                f"/proc/driver/nvidia/gpus/{address}/information",
                f"Model: \t\t {name}\nIRQ:   \t\t 286\nGPU UUID: \t {SECRETS[5]}\nBus Location: \t {address}\nGPU Firmware: \t {firmware}\n",
            )
        for name in ("libcuda.so", "libnvidia-ml.so"):
            self.file(f"{folder}/{name}.{library}").link(f"{folder}/{name}.1", f"{name}.{library}")
        self.file(f"/lib/firmware/nvidia/{version}/gsp_ga10x.bin").file(
            f"/lib/modules/{self.kernel()}/modules.dep", "kernel/nvidia-580-open/nvidia.ko.zst:\n"
        )
        for node in ("nvidia0", "nvidiactl", "nvidia-uvm"):
            self.file(f"/dev/{node}", mode=0o666)
        return self

    def kernel(self) -> str:
        return (self.root / "proc/sys/kernel/osrelease").read_text().strip()

    def nvml(self, **answers: object) -> Builder:
        """Put a compiled libnvidia-ml.so.1 in the place of the driver's empty one."""
        folder = self.root / f"usr/lib/{self.arch}-linux-gnu"
        folder.mkdir(parents=True, exist_ok=True)
        goal = next(iter(folder.glob("libnvidia-ml.so.[0-9][0-9]*")), folder / "libnvidia-ml.so.1")
        defines = [
            f'-D{name}="{value}"'
            if isinstance(value, str)
            else f"-D{name}={value}{'ULL' if name in {'MEMORY', 'THROTTLE', 'PROCESS_BYTES'} else ''}"
            for name, value in answers.items()
        ]
        goal.write_bytes(_compiled(tuple(defines)))
        return self

    def toolkit(self, release: str, *, default: bool = False) -> Builder:
        home = f"/usr/local/cuda-{release}"
        self.file(f"{home}/version.json", f'{{"cuda": {{"name": "CUDA SDK", "version": "{release}.0"}}}}').file(
            f"{home}/bin/nvcc", f"Cuda compilation tools, release {release}, V{release}.88", mode=0o755
        )
        return self.link("/usr/local/cuda", f"/usr/local/cuda-{release}") if default else self

    def docker(self, driver: str) -> Builder:
        self.file("/usr/bin/docker", mode=0o755).file("/var/run/docker.sock", mode=0o660)
        self.file("/etc/docker/daemon.json", '{"runtimes": {"nvidia": {"args": [], "path": "nvidia-container-runtime"}}}')
        return self.file(
            "/var/run/cdi/nvidia.yaml",
            f"cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ncontainerEdits:\n  mounts:\n  - hostPath: /usr/lib/aarch64-linux-gnu/libcuda.so.{driver}\n",
        )

    def connectx(self) -> Builder:
        for number, address in enumerate(("0000:01:00.0", "0000:01:00.1", "0002:01:00.0", "0002:01:00.1")):
            self.pci(address, "0x15b3", "0x1021", "0x020000", "mlx5_core").file(f"/sys/class/net/enp{number}s0f0np0/operstate", "down\n")
        return self.file("/sys/class/net/enP7s7/operstate", "up\n").file("/sys/class/net/enP7s7/address", f"{SECRETS[3]}\n")

    def venv(self, torch: str = "2.11.0+cu130", cuda: str = "13.0", **dists: str) -> Builder:
        """Write a serve environment: metadata and the few files that are read, no libraries."""
        base = f"{HOME}/.venv"
        self.environment = Path(base)
        site = f"{base}/lib/python3.12/site-packages"
        self.file("/usr/bin/python3.12", b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, _ELF[self.arch]) + bytes(40), mode=0o755)
        self.file("/usr/include/python3.12/Python.h").file(
            f"{base}/pyvenv.cfg", "home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.12.3\n"
        )
        self.link(f"{base}/bin/python", "/usr/bin/python3.12").file(f"{base}/bin/activate", f"VIRTUAL_ENV={base}\n")
        usual = {
            "vllm": "0.23.0",
            "transformers": "5.14.1",
            "torch": torch.partition("+")[0],
            "triton": "3.6.0",
            "compressed-tensors": "0.17.0",
        }
        for name, version in {**usual, **{name.replace("_", "-"): version for name, version in dists.items()}}.items():
            requires = "Requires-Dist: torch==2.11.0\n" if name == "vllm" else ""
            info = f"{site}/{name.replace('-', '_')}-{version}.dist-info"
            self.file(
                f"{info}/METADATA",
                f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{requires}\nA description: Requires-Dist: nothing\n",
            ).file(f"{info}/RECORD")
        value = f"'{cuda}'" if cuda else "None"
        self.file(
            f"{site}/torch/version.py",
            f"from typing import Optional\n__version__ = '{torch}'\ndebug = False\ncuda: Optional[str] = {value}\nhip: Optional[str] = None\n",
        )
        if cuda:
            self.file(f"{site}/torch/lib/libtorch_cuda.so")
        self.file(f"{site}/transformers/models/gemma4_unified/__init__.py").file(
            f"{site}/vllm/model_executor/models/gemma4_unified.py"
        ).file(f"{site}/vllm/_rust_tool_parser.abi3.so.txt")
        return self.file(
            f"{site}/triton/backends/nvidia/bin/ptxas", b"\0" * 5000 + b"Cuda compilation tools, release 12.9, V12.9.86\0"
        ).file(f"{site}/triton/backends/nvidia/bin/ptxas-blackwell", b"\0" * 99 + b"Cuda compilation tools, release 13.0, V13.0.88\0")


@functools.cache
def _compiled(defines: tuple[str, ...]) -> bytes:
    """Compile the library once for each set of answers."""
    with tempfile.TemporaryDirectory() as folder:
        goal = Path(folder) / "libnvidia-ml.so.1"
        subprocess.run(["gcc", "-Wall", "-Werror", "-shared", "-fPIC", "-O1", *defines, "-o", goal, _HERE / "nvml.c"], check=True)
        return goal.read_bytes()


def spark(
    root: Path,
    *,
    kernel: str = "6.17.0-1032-nvidia",
    driver: str = "580.173.02",
    total: int = 127_535_084,
    otas: tuple[str, ...] = ("7.3.1", "7.4.0", "7.6.0"),
    **memory: int,
) -> Builder:
    """NVIDIA's own unit, as of late 2026, with a working environment."""
    build = Builder(root).linux(kernel, total=total, **memory)  # type: ignore[arg-type]
    build.packages(nvidia_driver_580_open=f"{driver}-0ubuntu1", nvidia_container_toolkit="1.19.0-1", docker_ce="5:29.1.0-1")
    build.dmi("NVIDIA", "NVIDIA_DGX_Spark", "A.7").dgx_release("DGX Server for KVM", "7.2.3", *otas)
    build.pci("000f:00:00.0", "0x10de", "0x22ce", "0x060400", "pcieport").pci("000f:01:00.0", "0x10de", "0x2e12", "0x030000", "nvidia")
    build.connectx().driver(driver).nvml(DRIVER=driver).toolkit("13.0", default=True).docker(driver).venv()
    return build.file(
        "/var/log/kern.log",
        f"2026-11-20T10:00:00 spark-{SERIAL} kernel: [    0.000000] Linux version {kernel}\n2026-11-20T10:00:05 spark kernel: [    5.1] NVRM: loading NVIDIA UNIX Open Kernel Module for aarch64  {driver}\n2026-11-20T10:00:06 spark kernel: [    6.2] mlx5_core 0000:01:00.0: address {SECRETS[4]}:4791 up\n",
    )


def spark_2025(root: Path) -> Builder:
    return spark(root, kernel="6.11.0-1016-nvidia", driver="580.95.05", total=125_513_944, otas=())


def asus(root: Path) -> Builder:
    return spark(root).dmi("ASUSTeK COMPUTER INC.", "GX10").dgx_release("GX10", "7.2.3", "7.5.0")


def hp(root: Path) -> Builder:
    return (
        spark(root, kernel="7.0.0-1021-nvidia")
        .dmi("HP", "HP ZGX Nano G1n AI Station")
        .dgx_release("HP ZGX Nano G1n AI Station", "7.2.3", "7.6.0")
    )


def gsp_torn(root: Path) -> Builder:
    build = spark(root).driver("580.173.02", firmware="580.142").nvml(COUNT=0)
    return build.file(
        "/var/log/kern.log",
        "[    5.1] NVRM: Xid (PCI:000f:01:00): 119, Timeout after 6s of waiting for RPC response from GPU0 GSP! Expected function 4097\n[    5.2] NVRM: GPU0 Cannot initialize GSP firmware RM\n",
    )


def no_driver(root: Path) -> Builder:
    build = spark(root).packages(docker_ce="5:29.1.0-1")
    for path in ("/proc/driver", "/sys/module", "/proc/modules", "/usr/lib/aarch64-linux-gnu", "/dev", "/lib/firmware", "/var/run/cdi"):
        build.remove(path)
    return build.remove("/sys/bus/pci/devices/000f:01:00.0/driver")


def mismatch(root: Path) -> Builder:
    return (
        spark(root)
        .driver("580.142", library="580.173.02")
        .nvml(INIT=18)
        .docker("580.142")
        .file("/lib/firmware/nvidia/580.142/gsp_ga10x.bin")
    )


def two_toolkits(root: Path) -> Builder:
    return spark(root).toolkit("12.6", default=True)


def cpu_torch(root: Path) -> Builder:
    build = spark(root)
    shutil.rmtree(build.root / HOME.lstrip("/") / ".venv")
    return build.venv(torch="2.11.0+cpu", cuda="")


def page_cache(root: Path) -> Builder:
    return spark(root, free=2_400_000, available=118_000_000)


def container(root: Path) -> Builder:
    build = spark(root).file("/.dockerenv").file("/proc/1/comm", "bash\n")
    for path in (
        "/proc/driver/nvidia/gpus",
        "/dev",
        "/usr/lib/aarch64-linux-gnu",
        "/etc/dgx-release",
        "/etc/fastos-release",
        "/var/run",
        "/usr/bin/docker",
    ):
        build.remove(path)
    return build


def h100(root: Path) -> Builder:
    build = Builder(root, arch="x86_64").linux("6.8.0-84-generic", total=2_113_000_000)
    build.packages(
        nvidia_driver_580_server_open="580.173.02-0ubuntu1", nvidia_fabricmanager_580="580.173.02-1", nvidia_container_toolkit="1.19.0-1"
    )
    build.dmi("Supermicro", "SYS-821GE-TNHR").pci("0000:18:00.0", "0x10de", "0x2330", "0x030200", "nvidia").pci(
        "0000:05:00.0", "0x10de", "0x22a3", "0x068000", "nvidia-nvswitch"
    )
    build.driver("580.173.02", gpus=(("0000:18:00.0", "NVIDIA H100 80GB HBM3"),)).nvml(
        GPU_NAME="NVIDIA H100 80GB HBM3", MAJOR=9, MINOR=0, MEMORY=85520809984, ECC=0, SM_CLOCK=345, POWER_MW=71000
    )
    return build.file("/usr/bin/nv-fabricmanager").file("/run/nvidia-fabricmanager/nv-fabricmanager.pid", "812").docker("580.173.02").venv()


def wsl(root: Path) -> Builder:
    build = Builder(root, arch="x86_64").linux("6.6.87.2-microsoft-standard-WSL2", total=32_000_000).packages()
    build.file("/dev/dxg", mode=0o666).nvml(GPU_NAME="NVIDIA GeForce RTX 5090", MAJOR=12, MINOR=0, MEMORY=34190917632, DRIVER="581.29")
    place = build.root / "usr/lib/wsl/lib"
    place.mkdir(parents=True)
    (build.root / "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1").rename(place / "libnvidia-ml.so.1")
    return build.file("/usr/lib/wsl/lib/libcuda.so.1").venv()


def known_kernel(root: Path) -> Builder:
    build = spark(root, kernel="6.17.0-1008-nvidia").nvml(COUNT=0)
    return build.file(
        "/var/log/kern.log",
        "[   12.3] pcieport 000f:00:00.0: DOE: [188] ABORT timed out\n[   13.0] NVRM: GPU 000f:01:00.0: Failed to query NVIDIA devices\n",
    )


def two_majors(root: Path) -> Builder:
    return spark(root).venv(
        nvidia_cudnn_cu12="9.10.2.21", nvidia_cudnn_cu13="9.19.0.56", nvidia_cublas="13.1.0.3", nvidia_cublas_cu12="12.9.1.4"
    )


def broken_venv(root: Path) -> Builder:
    return (
        spark(root)
        .file(f"{HOME}/.venv/pyvenv.cfg", "home = /opt/python3.12/bin\nversion = 3.12.3\n")
        .link(f"{HOME}/.venv/bin/python", "/opt/python3.12/bin/python3.12")
    )


def hostile_record(root: Path) -> Builder:
    info = f"{HOME}/.venv/lib/python3.12/site-packages/evil-1.0.dist-info"
    record = (
        "../../../../../../../etc/passwd.so,sha256=x,1\n/etc/shadow.so,sha256=x,9\n"
        + "a" * 200_000
        + ".so,,99999999999999999999999\n\0\xff.so,,1\n"
    )
    return (
        spark(root)
        .file(f"{info}/METADATA", "Name: evil\nVersion: 1.0\nRequires-Dist: \0 (((\nRequires-Python: not a specifier\n\n")
        .file(f"{info}/RECORD", record.encode("latin-1"))
    )


def rtx_spark(root: Path) -> Builder:
    build = (
        Builder(root)
        .linux("6.17.0-5-generic", total=120_000_000)
        .packages()
        .dmi("Dell Inc.", "XPS 16")
        .pci("0000:01:00.0", "0x10de", "0x2e06", "0x030000", "nvidia")
    )
    return build.driver("590.44.01", gpus=(("0000:01:00.0", "NVIDIA RTX Spark"),)).nvml(
        GPU_NAME="NVIDIA RTX Spark", DRIVER="590.44.01", CUDA=13010
    )


def thor(root: Path) -> Builder:
    build = (
        Builder(root)
        .linux("6.8.12-tegra", total=128_000_000)
        .packages()
        .file("/proc/device-tree/model", "NVIDIA Jetson AGX Thor Developer Kit\0")
    )
    build.file("/etc/nv_tegra_release", "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic\n").file(
        "/proc/sys/kernel/arch", "aarch64\n"
    )
    return build.driver("580.00", gpus=(("0000:01:00.0", "NVIDIA Thor"),)).nvml(GPU_NAME="NVIDIA Thor", MAJOR=11, MINOR=0, DRIVER="580.00")


def unknown_121(root: Path) -> Builder:
    build = Builder(root).linux("6.17.0-5-generic", total=120_000_000).packages().file("/.dockerenv")
    build.driver("580.173.02", gpus=()).nvml(GPU_NAME="NVIDIA Graphics Device")
    return build


def gh200(root: Path) -> Builder:
    build = (
        Builder(root)
        .linux("6.8.0-1014-nvidia-64k", total=480_000_000)
        .packages()
        .dmi("Supermicro", "ARS-111GL-NHR")
        .pci("0009:01:00.0", "0x10de", "0x2342", "0x030200", "nvidia")
    )
    return build.driver("580.173.02", gpus=(("0009:01:00.0", "NVIDIA GH200 480GB"),)).nvml(
        GPU_NAME="NVIDIA GH200 480GB", MAJOR=9, MINOR=0, MEMORY=102625181696, ECC=0
    )


def wedged(root: Path) -> Builder:
    return spark(root).nvml(UTILIZATION=96, SM_CLOCK=851, POWER_MW=18000, THROTTLE=0, PROCESS_BYTES=60000000000)


def no_gpu(root: Path) -> Builder:
    return Builder(root, arch="x86_64").linux("6.8.0-84-generic", total=32_000_000).packages(docker_io="27.5.1")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How to build one, and what must be found out: its kind, its target, and the faults that stand at the root."""

    build: Callable[[Path], Builder]
    kind: str
    target: str
    roots: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


MACHINES = {
    "a Spark of 2025": Machine(build=spark_2025, kind="spark", target="dgx-spark", notes=("EB-DRV-027",)),
    "a Spark of 2026": Machine(build=spark, kind="spark", target="dgx-spark", notes=("EB-DRV-027",)),
    "an ASUS unit": Machine(build=asus, kind="spark", target="dgx-spark"),
    "an HP unit": Machine(build=hp, kind="spark", target="dgx-spark"),
    "driver and GSP firmware torn apart": Machine(build=gsp_torn, kind="spark", target="dgx-spark", roots=("EB-DRV-007",)),
    "no driver": Machine(build=no_driver, kind="spark", target="dgx-spark", roots=("EB-DRV-001",)),
    "driver and library of two versions": Machine(build=mismatch, kind="spark", target="dgx-spark", roots=("EB-DRV-006",)),
    "toolkit 12 beside 13": Machine(build=two_toolkits, kind="spark", target="dgx-spark", roots=("EB-CUDA-001",)),
    "a CPU torch": Machine(build=cpu_torch, kind="spark", target="dgx-spark", roots=("EB-TORCH-001",)),
    "a full page cache": Machine(build=page_cache, kind="spark", target="dgx-spark", notes=("EB-MEM-004",)),
    "a container without the GPU": Machine(build=container, kind="spark", target="dgx-spark", roots=("EB-CTR-009",)),
    "an H100 machine": Machine(build=h100, kind="cuda", target="cuda"),
    "WSL": Machine(build=wsl, kind="cuda", target="cuda"),
    "the kernel that stops the firmware": Machine(build=known_kernel, kind="spark", target="dgx-spark", roots=("EB-MACH-002",)),
    "two CUDA majors": Machine(build=two_majors, kind="spark", target="dgx-spark", roots=("EB-PKG-001",)),
    "a broken venv": Machine(build=broken_venv, kind="spark", target="dgx-spark", roots=("EB-ENV-003",)),
    "a hostile RECORD": Machine(build=hostile_record, kind="spark", target="dgx-spark", roots=("EB-ENV-008", "EB-ENV-010")),
    "RTX Spark": Machine(build=rtx_spark, kind="rtx-spark", target="cuda", notes=("EB-MACH-001",)),
    "Jetson Thor": Machine(build=thor, kind="jetson", target="cuda", notes=("EB-MACH-001",)),
    "12.1 and no other sign": Machine(build=unknown_121, kind="unknown, unified memory", target="cuda", notes=("EB-MACH-001",)),
    "GH200": Machine(build=gh200, kind="grace", target="cuda", notes=("EB-MACH-001",)),
    "the power wedge": Machine(build=wedged, kind="spark", target="dgx-spark", roots=("EB-MACH-008",)),
    "no GPU at all": Machine(build=no_gpu, kind="cpu", target="cpu"),
}
