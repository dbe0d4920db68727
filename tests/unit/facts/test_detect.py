"""The machine's own target: each look-alike of a GB10 is told apart, from files alone."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from envbuilder.facts.detect import Identity, Machine, detect_target, identify, refine

if TYPE_CHECKING:
    from pathlib import Path


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def pci(address: str, device: str, *, kind: str = "0x030000") -> dict[str, str]:
    folder = f"sys/bus/pci/devices/{address}"
    return {f"{folder}/vendor": "0x10de\n", f"{folder}/device": f"{device}\n", f"{folder}/class": f"{kind}\n"}


def dmi(vendor: str, product: str) -> dict[str, str]:
    return {"sys/class/dmi/id/sys_vendor": f"{vendor}\n", "sys/class/dmi/id/product_name": f"{product}\n"}


SPARKS = {
    "a dead driver, by PCI": pci("000f:01:00.0", "0x2e12"),
    "NVIDIA's unit, by DMI": dmi("NVIDIA", "NVIDIA_DGX_Spark"),
    "ASUS": dmi("ASUSTeK COMPUTER INC.", "GX10"),
    "Dell": dmi("Dell Inc.", "Dell Pro Max with GB10 FCM1253"),
    "HP": dmi("HP", "HP ZGX Nano G1n AI Station"),
    "Lenovo": dmi("LENOVO", "30KL0001US"),
    "MSI": dmi("Micro-Star International Co., Ltd.", "EdgeXpert"),
    "the release file": {"etc/dgx-release": 'DGX_NAME="DGX Spark"\nDGX_SERIAL_NUMBER=1234567\n'},
    "FastOS": {"etc/fastos-release": 'NAME="DGX SPARK FASTOS"\n'},
    "a container, by the driver": {"proc/driver/nvidia/gpus/000f:01:00.0/information": "Model: \t\t NVIDIA GB10\nGPU UUID: GPU-x\n"},
}
OTHERS = {
    "H100": ("cuda", Machine.CUDA, pci("0000:18:00.0", "0x2330", kind="0x030200")),
    "RTX Spark": ("cuda", Machine.RTX_SPARK, pci("0000:01:00.0", "0x2e06")),
    "GH200": ("cuda", Machine.GRACE, pci("0009:01:00.0", "0x2342", kind="0x030200")),
    "GB200": ("cuda", Machine.GRACE, pci("0008:01:00.0", "0x2941", kind="0x030200")),
    "Jetson Thor": (
        "cuda",
        Machine.JETSON,
        {"proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0", **pci("0000:01:00.0", "0x2b00")},
    ),
    "WSL": ("cuda", Machine.CUDA, {"dev/dxg": "", "usr/lib/wsl/lib/libnvidia-ml.so.1": ""}),
    "a container that hides PCI": ("cuda", Machine.CUDA, {"dev/nvidia0": "", "dev/nvidiactl": ""}),
    "no GPU": ("cpu", Machine.CPU, pci("0000:00:01.0", "0x22ce", kind="0x060400")),
    "a DGX Station": ("cpu", Machine.CPU, {"etc/dgx-release": 'DGX_NAME="DGX Station"\n'}),
}


@pytest.mark.parametrize("name", SPARKS)
def test_each_unit_built_around_gb10_is_a_dgx_spark(name: str, tmp_path: Path) -> None:
    target, evidence = detect_target(write(tmp_path, SPARKS[name]))
    assert target == "dgx-spark"
    assert evidence


@pytest.mark.parametrize("name", OTHERS)
def test_what_looks_alike_is_not_confused(name: str, tmp_path: Path) -> None:
    target, machine, files = OTHERS[name]
    identity = identify(write(tmp_path, files))
    assert (identity.target, identity.machine) == (target, machine)


def test_the_evidence_never_holds_a_serial_number(tmp_path: Path) -> None:
    files = {"etc/dgx-release": 'DGX_SERIAL_NUMBER="1983625000123"\nDGX_NAME="DGX Spark"\n', **dmi("NVIDIA", "NVIDIA_DGX_Spark")}
    files["sys/class/dmi/id/product_serial"] = "1983625000123"
    assert "1983625000123" not in repr(identify(write(tmp_path, files)))


@pytest.mark.parametrize(
    ("name", "capability", "memory_known", "machine"),
    [
        ("NVIDIA GB10", "12.1", False, Machine.SPARK),
        ("NVIDIA Graphics Device", "12.1", False, Machine.UNIFIED_UNKNOWN),
        ("NVIDIA Graphics Device", "12.1", True, Machine.CUDA),
        ("NVIDIA Thor", "11.0", False, Machine.JETSON),
        ("NVIDIA GH200 480GB", "9.0", True, Machine.GRACE),
    ],
)
def test_nvml_settles_what_a_container_hides(name: str, capability: str, memory_known: bool, machine: Machine) -> None:  # noqa: FBT001
    nothing = Identity(machine=Machine.CPU, product="", evidence=())
    assert refine(nothing, name=name, compute_capability=capability, memory_known=memory_known).machine is machine


def test_detection_imports_neither_pydantic_nor_rich() -> None:
    """`build` asks on every start: the import of one heavy library would cost more than all the reading."""
    code = "import sys; from envbuilder.facts.detect import detect_target; detect_target(); print({'pydantic', 'rich', 'pynvml'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "set()"
