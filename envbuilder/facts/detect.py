"""Which machine this is, in a few milliseconds: from files alone, no NVML, no program, no library but the standard one.

The order of trust: the GPU's PCI id (also when the driver is dead), what the driver says of it, the DMI tables,
the DGX release file. Sources of the ids and names: NVIDIA's driver tables, and captures that owners published.
"""

from __future__ import annotations

import enum
import re
from pathlib import Path

from envbuilder import reading
from envbuilder.values import value

_NVIDIA = "0x10de"
_GB10 = "0x2e12"
_RTX_SPARK = frozenset({"0x2e03", "0x2e06"})  # N1X: the same silicon family in Windows PCs, other firmware and drivers
_GRACE_HOPPER = frozenset({"0x2342", "0x2343", "0x2345", "0x2348"})  # GH200 96 GB, 480 GB, 144 GB HBM3e
_GRACE_BLACKWELL = frozenset({"0x2941", "0x31c0", "0x31c2"})  # GB200, GB300

# DMI product names (or families) of the units built around GB10. NVIDIA's own, then the OEMs'.
_SPARK_DMI = (
    ("NVIDIA DGX Spark", r"(?i)DGX[ _]Spark"),
    ("ASUS Ascent GX10", r"\bGX10\b"),
    ("Dell Pro Max with GB10", r"Pro Max with GB10|\bFCM1253\b"),
    ("HP ZGX Nano", r"\bZGX Nano\b"),
    ("Lenovo ThinkStation PGX", r"ThinkStation PGX|\b30KL"),
    ("MSI EdgeXpert", r"(?i)EdgeXpert"),
    ("Acer Veriton GN100", r"\bGN100\b"),
    ("GIGABYTE AI TOP ATOM", r"(?i)AI TOP ATOM"),
)
_SPARK_NAMED = r'^DGX_(?:PRETTY_)?NAME="?([^"\n]*)'
_READ_LIMIT = 1 << 16


class Machine(enum.StrEnum):
    """The kinds of machine that are told apart."""

    SPARK = "spark"
    RTX_SPARK = "rtx-spark"
    JETSON = "jetson"
    GRACE = "grace"
    UNIFIED_UNKNOWN = "unknown, unified memory"
    CUDA = "cuda"
    CPU = "cpu"


@value
class Identity:
    """What the machine is: `product` is a trade name ("" if unknown), `evidence` one line per sign, raw values included."""

    machine: Machine
    product: str
    evidence: tuple[str, ...]

    @property
    def target(self) -> str:
        """The target that fits."""
        return fitting(self.machine)


def fitting(machine: str) -> str:
    """Return the target that fits a kind of machine: only a GB10 is a dgx-spark."""
    return {Machine.SPARK.value: "dgx-spark", Machine.CPU.value: "cpu"}.get(machine, "cuda")


def detect_target(root: Path | str = "/") -> tuple[str, tuple[str, ...]]:
    """Return the name of the target that fits the machine, and the evidence for it."""
    identity = identify(root)
    return identity.target, identity.evidence


def identify(root: Path | str = "/") -> Identity:
    """Tell which machine this is, from the files below `root`. Never raises: what cannot be read is no evidence."""
    base = Path(root)
    devices = _nvidia_devices(base)
    models = _driver_models(base)
    product, spark_evidence = _spark_signs(base)
    evidence: tuple[str, ...] = (
        *(f"PCI {address}: 10de:{device.removeprefix('0x')}" for address, device in devices),
        *(f"driver: {model}" for model in models),
        *spark_evidence,
    )
    ids = {device for _, device in devices}
    jetson = _jetson_sign(base)
    machine = Machine.CPU
    if _GB10 in ids or any(re.search(r"\bGB10\b", model) for model in models):
        machine, product = Machine.SPARK, product or "GB10"
    elif jetson:
        machine, product, evidence = Machine.JETSON, jetson, (f"Jetson: {jetson}", *evidence)
    elif ids & _RTX_SPARK:
        machine, product = Machine.RTX_SPARK, "RTX Spark (N1X)"
    elif product:
        # A unit whose GPU has fallen off the bus, or a container that hides /sys/bus/pci, is a Spark still.
        machine = Machine.SPARK if not ids else Machine.CUDA
    elif ids & (_GRACE_HOPPER | _GRACE_BLACKWELL) or any(re.search(r"\bG[HB][23]00\b", model) for model in models):
        machine = Machine.GRACE
    elif ids or models:
        machine = Machine.CUDA
    else:
        nodes = _bare_nodes(base)
        machine, evidence = (Machine.CUDA, nodes) if nodes else (Machine.CPU, ("no NVIDIA GPU on the PCI bus, in DMI or in /dev",))
    return Identity(machine=machine, product=product, evidence=evidence)


def refine(identity: Identity, *, name: str, compute_capability: str, memory_known: bool) -> Identity:
    """Refine what the files said with what NVML says of the first GPU (its name, "12.1", whether it reports memory)."""
    sign = f"NVML: {name}, compute capability {compute_capability}" + ("" if memory_known else ", memory not reported")
    evidence = (*identity.evidence, sign)
    machine, product = identity.machine, identity.product
    if machine in {Machine.SPARK, Machine.RTX_SPARK, Machine.JETSON}:
        return Identity(machine=machine, product=product, evidence=evidence)
    if re.search(r"\bGB10\b", name):
        machine, product = Machine.SPARK, product or "GB10"
    elif re.search(r"\bThor\b|\bOrin\b", name) or compute_capability == "11.0":
        machine = Machine.JETSON if re.search(r"\bThor\b|\bOrin\b", name) else Machine.CUDA
    elif compute_capability == "12.1" and not memory_known:
        # RTX Spark and parts to come look like this too: not proved to be a GB10.
        machine = Machine.UNIFIED_UNKNOWN
    elif re.search(r"\bG[HB][23]00\b", name):
        machine = Machine.GRACE
    elif machine is Machine.CPU:
        machine = Machine.CUDA
    return Identity(machine=machine, product=product, evidence=evidence)


def _read(path: Path) -> str:
    return reading.text(path, limit=_READ_LIMIT).strip("\0\n ")


def _nvidia_devices(base: Path) -> list[tuple[str, str]]:
    """Return (address, device id) of NVIDIA's display and 3D controllers (PCI class 03)."""
    folder = base / "sys/bus/pci/devices"
    return [
        (address, _read(folder / address / "device").lower())
        for address in reading.names(folder)
        if _read(folder / address / "vendor") == _NVIDIA and _read(folder / address / "class").startswith("0x03")
    ]


def _driver_models(base: Path) -> list[str]:
    folder = base / "proc/driver/nvidia/gpus"
    texts = [_read(folder / name / "information") for name in reading.names(folder)]
    return [match[1].strip() for text in texts if (match := re.search(r"^Model:(.*)$", text, re.MULTILINE))]


def _spark_signs(base: Path) -> tuple[str, list[str]]:
    """Return (product, evidence) from DMI and the release files, which stay when the driver and the GPU do not answer."""
    product, evidence = "", []
    dmi = base / "sys/class/dmi/id"
    for name in ("product_name", "product_family", "product_version"):
        text = _read(dmi / name)
        known = next((label for label, pattern in _SPARK_DMI if text and re.search(pattern, text)), "")
        if known:
            vendor = _read(dmi / "sys_vendor")
            product, evidence = known, [f"DMI {name}: {vendor} {text}".replace("  ", " ")]
            break
    release = _read(base / "etc/dgx-release")
    named = re.search(_SPARK_NAMED, release, re.MULTILINE) if release else None
    if named and "spark" in named[1].lower():
        product = product or "DGX Spark"
        evidence.append(f"/etc/dgx-release: {named[1]}")
    if "DGX SPARK" in _read(base / "etc/fastos-release").upper():
        product = product or "DGX Spark"
        evidence.append("/etc/fastos-release: DGX SPARK")
    return product, evidence


def _jetson_sign(base: Path) -> str:
    model = _read(base / "proc/device-tree/model").split("\0")[0]
    if any(name in model for name in ("Jetson", "Thor", "Orin", "Xavier")):
        return model
    tegra = _read(base / "etc/nv_tegra_release")
    return tegra.splitlines()[0][:80] if tegra else ""


def _bare_nodes(base: Path) -> tuple[str, ...]:
    """Return signs of a GPU where the PCI bus is hidden: a container's device nodes, or WSL's libraries."""
    if (base / "dev/dxg").exists() and (base / "usr/lib/wsl/lib/libnvidia-ml.so.1").exists():
        return ("WSL: /dev/dxg and NVIDIA's driver library in /usr/lib/wsl/lib",)
    node = next((f"/dev/{name}" for name in reading.names(base / "dev") if name.startswith("nvidia") and name[6:].isdecimal()), "")
    return (node,) if node else ()
