"""What only looks like a fault gives no alarm, what looks well and is not gives one, and of two faults the cause stands first."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from cases import DEAD, INSTALLED, KIT12, NO_DRIVER, UNLOADED, env_with, in_source, memory, model, place, toolkit
from simulated import HOME, spark
from snapshots import CPU, H100, SPARK, SPARK_CONTAINER, change, dist, gpu, kernel_says, variables, with_dists, without

from envbuilder.doctor.examine import examine, run_check
from envbuilder.doctor.fixes import plan
from envbuilder.doctor.registry import all_checks
from envbuilder.facts.model import DriverLibrary, GpuProcess, PciDevice, Process
from envbuilder.facts.snapshot import take

if TYPE_CHECKING:
    from pathlib import Path

    from envbuilder.facts.model import Snapshot

pytestmark = pytest.mark.usefixtures("asked_once")
GIB = 2**20  # in kB
RTX = change(H100, nvml__gpus=(gpu("NVIDIA GeForce RTX 5090", "12.0", 34190917632),))
PTXAS = {"TRITON_PTXAS_PATH": "/opt/ptxas"}
OLD_PTXAS = change(SPARK, environment__triton_ptxas="12.8", environment__triton_ptxas_blackwell="")
USER_TORCH = "/srv/.local/lib/python3.12/site-packages/torch"
LLMC = with_dists(SPARK, dist("llmcompressor", "0.12.0.2"), dist("transformers", "5.9.0"))
NGC_PATH = "/usr/local/cuda/compat/lib:/usr/local/nvidia/lib"


def pointed(s: Snapshot, release: str) -> Snapshot:
    """Let TRITON_PTXAS_PATH name a ptxas of that release."""
    return change(variables(s, **PTXAS), compilers__ptxas_releases={"TRITON_PTXAS_PATH": release})


def apt_rust(version: str) -> Snapshot:
    s = in_source(SPARK, rust_channel="1.95")
    return change(s, packages={**(s.packages or {}), "cargo": version, "rustc": version})


# id, status, machine
JUDGED: list[tuple[str, str, Snapshot]] = [
    # No alarm.
    ("EB-VAR-003", "info", variables(SPARK_CONTAINER, LD_LIBRARY_PATH=NGC_PATH)),
    ("EB-BUILD-002", "skip", variables(RTX, TORCH_CUDA_ARCH_LIST="12.0")),
    ("EB-BUILD-002", "info", variables(SPARK_CONTAINER, TORCH_CUDA_ARCH_LIST="8.0 9.0 12.0")),
    ("EB-BUILD-003", "info", variables(SPARK_CONTAINER, TORCH_CUDA_ARCH_LIST="8.0 9.0 10.0")),
    ("EB-DISK-001", "info", place(SPARK, "temporary files", filesystem="tmpfs", free_bytes=10**9)),
    ("EB-DISK-001", "skip", place(SPARK, "Hugging Face's cache", writable=False, filesystem="squashfs", free_bytes=0, free_inodes=0)),
    ("EB-DISK-002", "skip", place(SPARK, "Hugging Face's cache", writable=False, filesystem="squashfs", free_bytes=0, free_inodes=0)),
    ("EB-DISK-003", "info", place(SPARK, "Hugging Face's cache", writable=False)),
    (
        "EB-MACH-016",
        "info",
        kernel_says(SPARK, "I/O error, dev sda, sector 2048 op 0x0:(READ)", "EXT4-fs error (device sda1): ext4_lookup"),
    ),
    ("EB-CKPT-001", "info", change(SPARK, checkpoints=model(broken=("model-2.safetensors: named, not there",), downloading=True))),
    ("EB-TORCH-004", "pass", variables(SPARK, UV_EXTRA_INDEX_URL="https://index.example/whl/cu128 https://index.example/whl/cu130")),
    ("EB-MEM-005", "info", memory(SPARK_CONTAINER, MemAvailable=40 * GIB)),
    ("EB-CTR-006", "info", change(H100, containers__toolkit="1.19.1")),
    ("EB-DRV-012", "skip", change(SPARK_CONTAINER, packages={"nvidia-imex-580": "580.173.02-1"})),
    ("EB-TRI-001", "pass", pointed(OLD_PTXAS, "13.0")),
    ("EB-TRI-001", "unknown", pointed(OLD_PTXAS, "")),
    ("EB-ENV-011", "info", change(SPARK, environment__shadowed=("/srv/.local/lib/python3.12/site-packages/torch",))),
    ("EB-ENV-011", "pass", change(SPARK, environment__shadowed=("/srv/out/envs/serve/lib/python3.12/site-packages/torch",))),
    ("EB-DRV-031", "info", change(SPARK_CONTAINER, toolkits=(toolkit("/usr/local/cuda-13.2", "13.2", "PATH"),))),
    ("EB-DRV-031", "info", change(H100, toolkits=(toolkit("/usr/local/cuda-13.2", "13.2", "PATH"),))),
    ("EB-CTR-009", "skip", change(SPARK_CONTAINER, driver__nodes=(), target="cpu")),
    ("EB-PKG-001", "pass", with_dists(SPARK, dist("nvidia-cublas", "13.1.0.3"), dist("nvidia-cublas-cu13", "13.1.0.3"))),
    ("EB-VLLM-003", "pass", variables(SPARK, VLLM_SERVICE_HOST="10.0.0.7", VLLM_SERVICE_PORT="80", VLLM_PORT_80_TCP_ADDR="10.0.0.7")),
    ("EB-CUDA-001", "skip", change(H100, target="dgx-spark", toolkits=KIT12)),
    ("EB-TORCH-004", "skip", variables(CPU, UV_EXTRA_INDEX_URL="https://index.example/whl/cu130")),
    ("EB-DRV-017", "skip", change(SPARK, machine="jetson", driver__libraries=())),
    ("EB-LLMC-002", "info", change(LLMC, checkpoints=())),
    # A fault.
    ("EB-LLMC-002", "fail", LLMC),
    ("EB-BUILD-006", "warn", memory(in_source(SPARK), MemAvailable=60 * GIB)),
    ("EB-BUILD-006", "pass", memory(SPARK, MemAvailable=60 * GIB)),
    ("EB-BUILD-010", "fail", change(variables(SPARK, CC="/usr/bin/gcc"), compilers__not_executable=("CC",))),
    ("EB-ENV-011", "warn", variables(change(SPARK, environment__shadowed=(USER_TORCH,)), PYTHONPATH=USER_TORCH.removesuffix("/torch"))),
    ("EB-DRV-031", "warn", change(H100, nvml__cuda="12.8", toolkits=(toolkit("/usr/local/cuda-13.2", "13.2", "PATH"),))),
    ("EB-PKG-001", "fail", with_dists(SPARK, dist("nvidia-cublas", "13.1.0.3"), dist("nvidia-cublas-cu12", "12.8.4.1"))),
    ("EB-PKG-012", "warn", env_with(SPARK, "flash-attn", "2.8.3", tags=("py3-none-any",))),
    ("EB-MACH-005", "fail", change(UNLOADED, host__kernel="6.8.0-84-generic")),
    ("EB-MACH-010", "fail", kernel_says(DEAD, "PM: suspend exit")),
    ("EB-TRI-001", "fail", pointed(OLD_PTXAS, "12.4")),
    ("EB-TRI-001", "fail", pointed(change(OLD_PTXAS, environment__triton_ptxas="12.9"), "12.4")),
    ("EB-TRI-001", "fail", variables(OLD_PTXAS, **PTXAS)),  # it is not there: Triton takes its own
    ("EB-TRI-005", "fail", change(variables(SPARK, **PTXAS), compilers__not_executable=("TRITON_PTXAS_PATH",))),
    ("EB-BUILD-005", "warn", apt_rust("1.75.0+dfsg0ubuntu1-0ubuntu7")),
    ("EB-BUILD-005", "pass", apt_rust("1.95.0-1")),
    ("EB-VLLM-011", "warn", env_with(SPARK, "fastsafetensors", "0.3.2")),
    (
        "EB-CUDA-005",
        "warn",
        change(
            variables(SPARK, LD_LIBRARY_PATH="/usr/local/cuda/lib64"),
            toolkits=(toolkit("/usr/local/cuda-12.6", "12.6", "/usr/local/cuda"),),
        ),
    ),
    ("EB-CUDA-005", "pass", variables(SPARK, LD_LIBRARY_PATH="/usr/local/cuda/lib64")),
    ("EB-DISK-001", "fail", place(SPARK, "the environment", filesystem="btrfs", free_bytes=0, inodes=0, free_inodes=0)),
    ("EB-DISK-001", "fail", place(SPARK, "temporary files", filesystem="tmpfs", free_bytes=4096)),
    ("EB-DISK-003", "fail", change(place(SPARK, "Hugging Face's cache", writable=False), checkpoints=())),
    ("EB-MACH-016", "fail", kernel_says(SPARK, "I/O error, dev nvme0n1, sector 2048 op 0x0:(READ)")),
    ("EB-CKPT-001", "fail", change(SPARK, checkpoints=model(broken=("model-2.safetensors: named, not there",)))),
    (
        "EB-DRV-009",
        "fail",
        change(UNLOADED, nvml__driver="", driver__libraries=(DriverLibrary(path="/usr/lib/libcuda.so.1", version="570.172.08"),)),
    ),
    ("EB-DRV-012", "fail", change(UNLOADED, packages={"nvidia-driver-580-server-open": "580.173.02-0ubuntu1"})),
]


@pytest.mark.parametrize(("id", "status", "snapshot"), JUDGED, ids=[f"{case[0]}-{case[1]}-{n}" for n, case in enumerate(JUDGED)])
def test_it_is_judged_for_what_it_is(id: str, status: str, snapshot: Snapshot) -> None:
    verdict = run_check(all_checks()[id], snapshot)
    assert verdict.status.value == status, verdict


SILENT = change(DEAD, nvml__driver="")
SERVING = change(
    SPARK,
    nvml__gpus=(
        gpu(
            utilization=96,
            sm_clock_mhz=2418,
            power_w=61.0,
            temperature_c=74,
            throttle_reasons=4,
            processes=(GpuProcess(pid=4711, memory_bytes=90 << 30, name="VLLM::EngineCor"),),
        ),
    ),
    processes=(
        Process(pid=4700, name="vllm", orphan=False, flags=("--gpu-memory-utilization=0.80", "model=gemma")),
        Process(pid=4711, name="VLLM::EngineCore", orphan=False, flags=()),
    ),
)
NGC = {
    "CUDA_HOME": "/usr/local/cuda",
    "CUDA_VERSION": "13.1.1.006",
    "LD_LIBRARY_PATH": f"/usr/local/lib/python3.12/dist-packages/torch/lib:{NGC_PATH}:/usr/local/cuda/lib64",
    "NCCL_VERSION": "2.29.2",
    "NVIDIA_DRIVER_CAPABILITIES": "compute,utility,video",
    "NVIDIA_PYTORCH_VERSION": "26.03",
    "NVIDIA_VLLM_VERSION": "26.04",
    "PIP_CONSTRAINT": "/etc/pip/constraint.txt",
    "TORCH_CUDA_ARCH_LIST": "8.0 8.6 9.0 10.0 11.0 12.0",
    "TRITON_PTXAS_PATH": "/usr/local/cuda/bin/ptxas",
    "VLLM_VERSION": "0.23.0",
}
WELL: dict[str, Snapshot] = {
    "a Spark that serves": memory(SERVING, MemAvailable=20 * GIB, MemFree=2 * GIB),
    "a Spark that builds": variables(in_source(SPARK, rust_channel="1.95"), TORCH_CUDA_ARCH_LIST="12.1a", MAX_JOBS="8", NVCC_THREADS="2"),
    "a Spark of a joined pair": variables(
        change(SPARK, network__interfaces=("enP7s7", "enp1s0f0np0", "enP2p1s0f0np0")),
        NCCL_SOCKET_IFNAME="enp1s0f0np0",
        GLOO_SOCKET_IFNAME="enp1s0f0np0",
        NCCL_IB_HCA="rocep1s0f0",
    ),
    "NVIDIA's image on a Spark": change(
        variables(SPARK_CONTAINER, **NGC),
        toolkits=(toolkit("/usr/local/cuda-13.1", "13.1", "/usr/local/cuda", "CUDA_HOME", "PATH"),),
        compilers__ptxas_releases={"TRITON_PTXAS_PATH": "13.1"},
        environment__path="/usr/local",
        environment__kind="prefix",
        environment__interpreter__path="/usr/bin/python3.12",
        environment__interpreter__home="",
        environment__lock=None,
    ),
    "a second container on a Spark that serves": memory(SPARK_CONTAINER, MemAvailable=18 * GIB, MemFree=2 * GIB),
    "a pod on an H100": change(
        variables(H100, NVIDIA_VISIBLE_DEVICES="void", VLLM_SERVICE_HOST="10.0.0.7", VLLM_SERVICE_PORT="80"),
        host__container="kubernetes",
        places=(*(H100.places or ()), change((H100.places or ())[0], purpose="Hugging Face's cache", writable=False, filesystem="nfs4")),
        packages={},
    ),
    "an RTX 5090 under a desktop": change(
        variables(RTX, TORCH_CUDA_ARCH_LIST="12.0"),
        host__os_id="arch",
        host__kernel="6.17.8-arch1-1",
        pci=(PciDevice(address="0000:01:00.0", vendor="0x10de", device="0x2b85", kind="0x030000", driver="nvidia"),),
        driver__libraries=(DriverLibrary(path="/usr/lib/libcuda.so.1", version="580.173.02"),),
        driver__firmware_dirs=(),
        packages={},
        places=tuple(
            change(one, filesystem="tmpfs", free_bytes=3 * 10**9) if one.purpose == "temporary files" else one for one in RTX.places or ()
        ),
        kernel_log__lines=("usb 2-3: USB disconnect, device number 4", "I/O error, dev sda, sector 2048 op 0x0:(READ)"),
        environment__extensions=tuple(change(one, cubins=("sm_80", "sm_90a", "sm_120")) for one in H100.environment.extensions),  # type: ignore[union-attr]
    ),
    "a build machine that judges for a Spark": change(
        CPU, target="dgx-spark", environment=SPARK.environment, toolkits=(toolkit("/usr/local/cuda-12.4", "12.4", "PATH", "CUDA_HOME"),)
    ),
    "a container for the CPU on a machine with a GPU": change(
        CPU, machine="cuda", target="cpu", host__container="docker", pci=H100.pci, driver=change(NO_DRIVER, loaded="580.173.02")
    ),
}


@pytest.mark.parametrize("machine", WELL)
def test_a_machine_that_is_well_gives_no_alarm(machine: str) -> None:
    """A doctor that cries at sound machines is not read when it is right."""
    assert [(one.check.id, one.verdict) for one in examine(WELL[machine]).findings if one.is_fault] == []


OLD_LIBRARIES = tuple(
    DriverLibrary(path=f"/usr/lib/aarch64-linux-gnu/{name}", version="570.172.08") for name in ("libcuda.so.1", "libnvidia-ml.so.1")
)
OLD_DRIVER = {
    "driver__libraries": OLD_LIBRARIES,
    "driver__gpu_firmware": ("570.172.08",),
    "driver__firmware_dirs": ("570.172.08",),
    "containers__cdi_driver_versions": ("570.172.08",),
    "packages": {},
}
SPECIMEN = env_with(SPARK, "vllm", "0.23.0", tags=("cp38-abi3-manylinux_2_28_x86_64",))
OFF_THE_BUS = change(SILENT, pci=(SPARK.pci or ())[:1])
# what is wrong -> the one root, the machine
ROOTS: dict[str, tuple[str, Snapshot]] = {
    "a driver before GB10 counts no device": ("EB-DRV-009", change(SPARK, driver__loaded="570.172.08", nvml__gpus=(), **OLD_DRIVER)),
    "a driver before GB10 does not start NVML": ("EB-DRV-009", change(SILENT, driver__loaded="570.172.08", **OLD_DRIVER)),
    "a driver before GB10 is not loaded": ("EB-DRV-009", change(change(SILENT, driver=INSTALLED), **OLD_DRIVER)),
    "the proprietary module counts no device": ("EB-DRV-014", change(SPARK, driver__flavour="proprietary", nvml__gpus=())),
    "the proprietary module does not start NVML": ("EB-DRV-014", change(DEAD, driver__flavour="proprietary")),
    "a server's driver is not loaded": ("EB-DRV-012", change(UNLOADED, packages={"nvidia-driver-580-server-open": "580.173.02-0ubuntu1"})),
    "a CDI spec written for the libraries of an update that waits for its restart": (
        "EB-DRV-006",
        change(
            SPARK, driver__loaded="580.142", driver__gpu_firmware=("580.142",), driver__firmware_dirs=("580.142",), nvml__status="error"
        ),
    ),
    "an Xid of a GPU that fell off the bus": (
        "EB-MACH-007",
        kernel_says(OFF_THE_BUS, "NVRM: Xid (PCI:000f:01:00): 79, GPU has fallen off the bus."),
    ),
    "NVML without the GPU that fell off the bus": ("EB-MACH-007", OFF_THE_BUS),
    "a module that a kernel of another kind has none of": (
        "EB-MACH-005",
        change(SILENT, driver=change(INSTALLED, module_for_kernel=False), host__kernel="6.8.0-84-generic"),
    ),
    "nouveau where the driver was not built for the kernel": (
        "EB-DRV-003",
        change(SILENT, driver=change(INSTALLED, module_for_kernel=False, nouveau=True, modules=("nouveau",))),
    ),
    "nouveau where no driver is": (
        "EB-DRV-001",
        change(SILENT, driver=change(NO_DRIVER, nouveau=True, modules=("nouveau",)), packages={}, nvml__status="absent"),
    ),
    "NVML after the machine was asleep": ("EB-MACH-010", kernel_says(SILENT, "PM: suspend exit")),
    "NVML after a grave Xid": ("EB-DRV-018", kernel_says(SILENT, "NVRM: Xid (PCI:000f:01:00): 62, 2027 0001")),
    "a CPU torch where the lock names another": (
        "EB-TORCH-001",
        change(SPARK, environment__torch=change(CPU.environment.torch, version="2.10.0+cpu")),  # type: ignore[union-attr]
    ),
    "an environment copied from another machine": (
        "EB-ENV-004",
        change(SPECIMEN, environment__interpreter__machine="x86_64", environment__extensions=H100.environment.extensions),  # type: ignore[union-attr]
    ),
    "files that a failing disk cut short": (
        "EB-MACH-016",
        kernel_says(env_with(SPARK, "vllm", "0.23.0", short_files=("vllm/_C.abi3.so",)), "I/O error, dev nvme0n1, sector 2048"),
    ),
    "torch's metadata twice": (
        "EB-ENV-007",
        change(SPARK, environment__distributions=(dist("torch", "2.10.0", "triton==3.5.0"), *SPARK.environment.distributions)),  # type: ignore[union-attr]
    ),
    "vLLM without what it asks NVML with": ("EB-PKG-015", without(SPARK, "nvidia-ml-py")),
    "a torch for CUDA 12 beside packages for 13": (
        "EB-TORCH-009",
        change(SPARK, environment__torch=change(SPARK.environment.torch, version="2.11.0+cu126", cuda="12.6")),  # type: ignore[union-attr]
    ),
}


@pytest.mark.parametrize("machine", ROOTS)
def test_the_cause_stands_alone_at_the_root(machine: str) -> None:
    """What follows from it would send its owner to the wrong place, one finding after the other."""
    root, snapshot = ROOTS[machine]
    found = [(one.check.id, one.explained_by) for one in examine(snapshot).findings if one.is_fault]
    assert [name for name, explained_by in found if not explained_by] == [root], found
    assert found[0][0] == root
    assert len(found) > 1, "nothing follows here: the case tests nothing"


def test_a_cdi_spec_is_written_anew_where_it_lies() -> None:
    """The folder of /var/run is read last and wins: one written to /etc would change nothing."""
    stale = change(SPARK, containers__cdi_driver_versions=("580.142",))
    assert run_check(all_checks()["EB-CTR-005"], stale).commands == ("sudo nvidia-ctk cdi generate --output=/var/run/cdi/nvidia.yaml",)


def test_a_toolkit_is_named_where_it_is() -> None:
    """What a page calls /usr/local/cuda-13.0 has another number, or is not there."""
    kits = (toolkit("/usr/local/cuda-12.6", "12.6", "PATH", "CUDA_HOME"), toolkit("/opt/cuda 13.2", "13.2", "/usr/local/cuda"))
    newer = change(OLD_PTXAS, toolkits=kits)
    checks = {"EB-TRI-001": newer, "EB-FI-003": newer, "EB-CUDA-001": newer}
    named = {key: (run_check(all_checks()[key], s).commands or ("",))[0] for key, s in checks.items()}
    assert named == {
        "EB-TRI-001": "export TRITON_PTXAS_PATH=/opt/'cuda 13.2'/bin/ptxas",
        "EB-FI-003": "export CUDA_HOME=/opt/'cuda 13.2' PATH=/opt/'cuda 13.2'/bin:$PATH",
        "EB-CUDA-001": "export CUDA_HOME=/opt/'cuda 13.2' PATH=/opt/'cuda 13.2'/bin:$PATH",
    }
    ptx = change(SPARK, toolkits=(toolkit("/usr/local/cuda-13.2", "13.2", "PATH"), toolkit("/opt/cuda-13.0", "13.0", "/usr/local/cuda")))
    assert run_check(all_checks()["EB-DRV-031"], ptx).commands == ("export CUDA_HOME=/opt/cuda-13.0 PATH=/opt/cuda-13.0/bin:$PATH",)
    alone = change(OLD_PTXAS, toolkits=())
    assert (run_check(all_checks()["EB-TRI-001"], alone).commands or ())[0] == "sudo apt install cuda-toolkit-13-0"


def test_what_is_installed_again_is_the_version_that_is_there_from_the_index_of_its_cuda() -> None:
    """`--reinstall torch` alone brings whatever the default index calls torch: on aarch64 that was the CPU build for years."""
    damaged = env_with(SPARK, "torch", "2.11.0", missing_files=("torch/lib/libtorch_cuda.so",))
    assert run_check(all_checks()["EB-ENV-008"], damaged).commands == (
        "uv pip install --python /srv/out/envs/serve/bin/python --reinstall --no-deps --torch-backend cu130 torch==2.11.0",
    )
    pair = env_with(SPARK, "torchvision", "0.25.0", "torch==2.10.0")
    assert run_check(all_checks()["EB-TORCH-007"], pair).commands == (
        "uv pip install --python /srv/out/envs/serve/bin/python --reinstall --no-deps --torch-backend cu130 torchvision==0.26.0",
    )


def test_the_wrong_driver_packages_go_in_the_step_that_brings_the_right_one() -> None:
    """`apt install nvidia-driver-580-open` alone removes none of them."""
    wrong = change(SPARK, packages={"nvidia-driver-580-server-open": "580.173.02-0ubuntu1", "nvidia-fabricmanager-580": "580.173.02-1"})
    assert (run_check(all_checks()["EB-DRV-012"], wrong).commands or ())[0] == (
        "sudo apt update && sudo apt install nvidia-driver-580-open nvidia-driver-580-server-open- nvidia-fabricmanager-580-"
    )


def test_a_ptxas_that_triton_is_pointed_to_is_looked_into(tmp_path: Path) -> None:
    """The variable alone says nothing: it may name an old one, a file that may not be run, or none."""
    build = spark(tmp_path)
    build.file("/opt/old/ptxas", b"\0Cuda compilation tools, release 12.4, V12.4.99\0", mode=0o755).file("/opt/closed/ptxas", mode=0o644)
    build.file(f"{HOME}/.venv/lib/python3.12/site-packages/triton/backends/nvidia/bin/ptxas-blackwell", b"release 13.0").remove(
        f"{HOME}/.venv/lib/python3.12/site-packages/triton/backends/nvidia/bin/ptxas-blackwell"
    )
    found = {}
    for name in ("old", "closed", "none"):
        build.variables["TRITON_PTXAS_PATH"] = f"/opt/{name}/ptxas"
        result = examine(take(build.world(), environment=build.environment))
        found[name] = [(one.check.id, one.status.value) for one in result.findings if one.is_fault]
    assert found == {"old": [("EB-TRI-001", "fail")], "closed": [("EB-TRI-005", "fail")], "none": [("EB-TRI-005", "warn")]}


def test_an_old_ptxas_that_a_variable_names_is_not_mended_by_another_one_elsewhere(tmp_path: Path) -> None:
    """`--fix` would put the toolkit's in Triton's place, say that it is done, and every kernel would fail as before."""
    (tmp_path / "cuda/bin").mkdir(parents=True)
    (tmp_path / "cuda/bin/ptxas").touch()
    own = tmp_path / "env/triton/backends/nvidia/bin/ptxas"
    own.parent.mkdir(parents=True)
    own.touch()
    base = change(
        OLD_PTXAS,
        environment__path=str(tmp_path / "env"),
        environment__site_packages=(str(tmp_path / "env"),),
        toolkits=(toolkit(str(tmp_path / "cuda"), "13.0", "PATH"),),
    )
    assert [repair.id for repair in plan(base, examine(base))] == ["EB-TRI-001"]
    sick = pointed(base, "12.4")
    assert plan(sick, examine(sick)) == []


def test_the_driver_of_arch_is_found(tmp_path: Path) -> None:
    """Arch has no folder for each architecture: its libcuda is in /usr/lib."""
    build = spark(tmp_path)
    for path in (tmp_path / "usr/lib/aarch64-linux-gnu").iterdir():
        path.rename(tmp_path / "usr/lib" / path.name)
    assert [one.check.id for one in examine(take(build.world(), environment=build.environment)).findings if one.is_fault] == []


@pytest.mark.parametrize(("age_s", "expected"), [(60, []), (90_000, ["EB-CKPT-001"])])
def test_a_download_at_work_is_no_broken_model(age_s: int, expected: list[str], tmp_path: Path) -> None:
    """The hub's library brings the index first; what it names comes for an hour, as files that end with .incomplete."""
    build = spark(tmp_path)
    hub = f"{HOME}/.cache/huggingface/hub/models--google--gemma"
    build.file(f"{hub}/snapshots/1/model.safetensors.index.json", '{"weight_map": {"a": "model-1.safetensors"}}')
    build.file(f"{hub}/blobs/abc.incomplete", "half").folder(f"{HOME}/.cache").folder(f"{HOME}/.cache/huggingface")
    then = time.time() - age_s
    os.utime(tmp_path / f"{hub}/blobs/abc.incomplete".lstrip("/"), (then, then))
    assert [one.check.id for one in examine(take(build.world(), environment=build.environment)).findings if one.is_fault] == expected


@pytest.mark.parametrize(("served", "expected"), [("google/gemma-3-12b-it", []), ("google/gemma-4-12b-it", ["EB-VLLM-004"])])
def test_only_gemma_4_has_heads_of_two_sizes(served: str, expected: list[str], tmp_path: Path) -> None:
    """Another backend is a good choice for the Gemmas before it."""
    arguments = ["python", "/usr/bin/vllm", "serve", served, "--attention-backend", "FLASH_ATTN"]
    build = spark(tmp_path).file("/proc/4711/comm", "vllm\n").file("/proc/4711/cmdline", "\0".join(arguments))
    build.file("/proc/4711/status", "PPid:\t4000\n")
    found = examine(take(build.world(), environment=build.environment)).findings
    assert [one.check.id for one in found if one.is_fault] == expected


def test_debians_python_is_found_from_usr_local(tmp_path: Path) -> None:
    """In a container `--env /usr/local` is where pip installed to; the interpreter and its headers are in /usr."""
    build = spark(tmp_path)
    source = tmp_path / f"{HOME}/.venv/lib/python3.12/site-packages".lstrip("/")
    (tmp_path / "usr/local/lib/python3.12").mkdir(parents=True)
    source.rename(tmp_path / "usr/local/lib/python3.12/dist-packages")
    snapshot = take(build.world(), environment=type(source)("/usr/local"))
    assert snapshot.environment is not None
    assert snapshot.environment.interpreter is not None
    assert (snapshot.environment.interpreter.path, snapshot.environment.interpreter.headers) == ("/usr/bin/python3.12", True)
    assert [one.check.id for one in examine(snapshot).findings if one.is_fault] == []
