"""The snapshot: everything the doctor judges by, as plain frozen data that goes to JSON and back.

A section is None when its reader failed (`readers` says why) or when there is nothing to read (no environment).
Memory is in kB as /proc/meminfo has it, sizes elsewhere in bytes. Nothing here names a person or a machine.
"""

from __future__ import annotations

from envbuilder.values import made, value

SCHEMA = "envbuilder/facts/1"


@value
class Reading:
    """How one reader fared: `status` is ok, failed or timeout."""

    name: str
    status: str
    milliseconds: int
    error: str = ""


@value
class Host:
    """The system: `container` is "docker", "podman", "kubernetes" or ""; `libc` like "glibc 2.39"."""

    arch: str
    kernel: str
    os_id: str
    os_version: str
    os_name: str
    libc: str
    container: str
    wsl: bool
    remote_shell: bool
    root_user: bool
    year: int
    restricted_user_namespaces: bool = False
    secure_boot: bool | None = None
    unclean_boots: int = 0
    boots: int = 0
    pstore_entries: int = 0


@value
class DgxRelease:
    """What /etc/dgx-release says, without the serial number; `running` is the last OTA version, or the base's."""

    name: str
    platform: str
    base: str
    running: str


@value
class Cpu:
    """`parts` are Arm part numbers ("0xd85"), `flags` the few x86 features that matter to kernels."""

    count: int
    model: str
    parts: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


@value
class Memory:
    """/proc/meminfo in kB, the pressure file's full avg10 in percent, and the settings that move them."""

    meminfo: dict[str, int]
    pressure_full_avg10: float | None = None
    min_free_kb: int | None = None
    cgroup_limit_bytes: int | None = None

    def kb(self, name: str) -> int:
        return self.meminfo.get(name, 0)

    @property
    def total_gib(self) -> float:
        return self.kb("MemTotal") / 2**20

    @property
    def available_gib(self) -> float:
        return self.kb("MemAvailable") / 2**20

    @property
    def swap_used_gib(self) -> float:
        return (self.kb("SwapTotal") - self.kb("SwapFree")) / 2**20


@value
class Place:
    """A folder that is written to: what for, whether it can be, and what its filesystem has left."""

    purpose: str
    path: str
    exists: bool
    writable: bool
    noexec: bool
    filesystem: str
    free_bytes: int
    free_inodes: int
    inodes: int


@value
class PciDevice:
    """A PCI function: ids and class as sysfs writes them ("0x10de"), `driver` the bound one ("" if none)."""

    address: str
    vendor: str
    device: str
    kind: str
    driver: str


@value
class DriverLibrary:
    """A file of the driver's user side: `version` from its name, `stub` when it is a toolkit's stand-in."""

    path: str
    version: str


@value
class Driver:
    """The NVIDIA driver as files show it: `loaded` is the kernel module's version ("" if none is loaded)."""

    loaded: str
    flavour: str
    modules: tuple[str, ...]
    libraries: tuple[DriverLibrary, ...]
    gpu_firmware: tuple[str, ...]
    firmware_dirs: tuple[str, ...]
    module_for_kernel: bool | None
    nodes: tuple[str, ...]
    unusable_nodes: tuple[str, ...]
    run_installer: bool
    nouveau: bool
    fabric_manager_running: bool | None = None


@value
class GpuProcess:
    """A process that holds memory of a GPU."""

    pid: int
    memory_bytes: int | None
    name: str


@value
class Gpu:
    """One GPU as NVML tells it; None where NVML does not support the question."""

    name: str
    compute_capability: str
    memory_total: int | None
    memory_free: int | None
    utilization: int | None
    sm_clock_mhz: int | None
    max_sm_clock_mhz: int | None
    power_w: float | None
    temperature_c: int | None
    throttle_reasons: int | None
    ecc_uncorrected: int | None
    compute_mode: int | None
    mig: int | None
    processes: tuple[GpuProcess, ...] = ()


@value
class Nvml:
    """NVML's answers: `status` is ok, absent (no library), error or timeout; `cuda` the driver's CUDA, like "13.0"."""

    status: str
    error: str = ""
    driver: str = ""
    cuda: str = ""
    gpus: tuple[Gpu, ...] = ()


@value
class Toolkit:
    """A CUDA toolkit: where it is, its release ("13.0"; "" if not to be told), and how one comes to it."""

    path: str
    release: str
    nvcc: bool
    found_by: tuple[str, ...]


@value
class Compilers:
    """The first of each program on PATH ("" if none), and what should lead to one and does not.

    `lost_programs` are variables ("NAME=path") that name a program which is not there, `not_executable` the names of those whose
    file may not be run; `ptxas_releases` the CUDA release ("13.0", "" if it does not say) of each ptxas that Triton is pointed to.
    """

    c: str
    cxx: str
    nvcc: str
    cargo: str
    cmake: str
    ninja: str
    git: str
    dangling_cuda: tuple[str, ...] = ()
    lost_programs: tuple[str, ...] = ()
    not_executable: tuple[str, ...] = ()
    ptxas_releases: dict[str, str] = made(default_factory=dict)


@value
class DevicePlugin:
    """NVIDIA's device plugin for Kubernetes, by its newest log: `line` is its last word on memory or registration.

    A log that this user may not read is there, and not `readable`.
    """

    log: str
    readable: bool
    line: str = ""


@value
class Containers:
    """Container engines and NVIDIA's part of them. `socket` is absent, ok, denied or refused."""

    socket: str
    snap: bool
    runtimes: tuple[str, ...]
    daemon_json_error: str
    cdi_specs: tuple[str, ...]
    cdi_driver_versions: tuple[str, ...]
    toolkit: str
    docker: bool
    podman: bool
    swarm: bool
    shm_bytes: int | None = None
    device_plugin: DevicePlugin | None = None


@value
class KernelLog:
    """The lines of this boot's kernel log that matter (a marker, and the line without time and host)."""

    source: str
    lines: tuple[str, ...]


@value
class Process:
    """A process of a serving stack: `flags` are those of its arguments that checks know."""

    pid: int
    name: str
    orphan: bool
    flags: tuple[str, ...]


@value
class Network:
    """`interfaces` are names that are up; `connectx` PCI functions of a ConnectX-7."""

    interfaces: tuple[str, ...]
    connectx: int


@value
class Interpreter:
    """An environment's Python: `machine` from its ELF header; `headers` whether Python.h is there."""

    path: str
    version: str
    exists: bool
    machine: str
    home: str
    home_exists: bool
    headers: bool
    free_threaded: bool


@value
class Distribution:
    """An installed distribution; `requires` without those of extras; `bad_files` differ from RECORD."""

    name: str
    version: str
    requires: tuple[str, ...] = ()
    requires_python: str = ""
    tags: tuple[str, ...] = ()
    build: str = ""
    missing_files: tuple[str, ...] = ()
    short_files: tuple[str, ...] = ()
    record_escapes: int = 0


@value
class SharedFile:
    """A library that several distributions ("name version") brought, each another: the one installed last is there."""

    path: str
    owners: tuple[str, ...]


@value
class Torch:
    """torch/version.py, and what lies beside it."""

    version: str
    cuda: str
    hip: str
    cuda_library: bool
    arch_rewrite: bool


@value
class Extension:
    """An extension module: the ABI verdict with the kinds of its faults, and its GPU code ("sm_120f", "compute_80").

    `symbols` are a few that nobody defines; none where a library is `not_found`, for the loader never comes to them.
    """

    path: str
    machine: str
    verdict: str
    kinds: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    not_found: tuple[str, ...] = ()
    detail: str = ""
    cubins: tuple[str, ...] = ()
    ptx: tuple[str, ...] = ()


@value
class Lock:
    """What an environment was locked to; `left_out` are distributions that were left out on purpose."""

    pins: dict[str, str]
    unhashed: int
    left_out: tuple[str, ...] = ()
    platform: str = ""


@value
class CachedLibrary:
    """A library compiled at run time and kept: which CUDA runtime major it needs."""

    path: str
    cudart: str


@value
class Environment:
    """A Python environment, read without running it."""

    path: str
    kind: str
    valid: bool
    reason: str = ""
    interpreter: Interpreter | None = None
    site_packages: tuple[str, ...] = ()
    system_site: bool = False
    shadowed: tuple[str, ...] = ()
    moved_from: str = ""
    leftovers: tuple[str, ...] = ()
    distributions: tuple[Distribution, ...] = ()
    torch: Torch | None = None
    torchvision_cuda: str | None = None
    triton_ptxas: str = ""
    triton_ptxas_blackwell: str = ""
    extensions: tuple[Extension, ...] | None = ()
    vllm_variables: tuple[str, ...] = ()
    vllm_models: tuple[str, ...] = ()
    vllm_faults: tuple[str, ...] = ()
    vllm_rust: bool = False
    model_types: tuple[str, ...] = ()
    jit_cache: tuple[CachedLibrary, ...] = ()
    lock: Lock | None = None
    owned_twice: tuple[SharedFile, ...] = ()


@value
class Choice:
    """The environment that was looked at, and why that one (to be read in brackets after its path)."""

    path: str
    why: str


@value
class Checkpoint:
    """A model on this machine: `name` is the repository's or the folder's; `broken` files ("name: reason"); `downloading` if files come in now."""

    name: str
    model_type: str
    architectures: tuple[str, ...]
    quantization: str
    head_dims: tuple[int, ...]
    broken: tuple[str, ...]
    path: str = ""
    downloading: bool = False


@value
class Project:
    """The folder one stands in: a vLLM source tree, a pyproject, a folder of wheels."""

    vllm_source: bool = False
    vllm_shadow: bool = False
    git: str = ""
    rust_channel: str = ""
    sm120_only_guard: bool = False
    torch_source_transitive: bool = False
    wheel_versions: dict[str, tuple[str, ...]] = made(default_factory=dict)
    build_metadata_unknown: tuple[str, ...] = ()


@value
class Snapshot:
    """A machine and an environment on it, at one moment."""

    schema: str = SCHEMA
    tool: str = ""
    machine: str
    target: str = ""
    product: str = ""
    detected: tuple[str, ...] = ()
    chosen: Choice | None = None
    readers: tuple[Reading, ...] = ()
    host: Host | None = None
    dgx: DgxRelease | None = None
    cpu: Cpu | None = None
    memory: Memory | None = None
    places: tuple[Place, ...] | None = None
    pci: tuple[PciDevice, ...] | None = None
    driver: Driver | None = None
    nvml: Nvml | None = None
    toolkits: tuple[Toolkit, ...] | None = None
    compilers: Compilers | None = None
    packages: dict[str, str] | None = None
    containers: Containers | None = None
    kernel_log: KernelLog | None = None
    processes: tuple[Process, ...] | None = None
    network: Network | None = None
    variables: dict[str, str] | None = None
    environment: Environment | None = None
    checkpoints: tuple[Checkpoint, ...] | None = None
    project: Project | None = None
