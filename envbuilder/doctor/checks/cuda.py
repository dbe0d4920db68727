"""CUDA toolkits: which one a build or a run-time compiler would take."""

from __future__ import annotations

import re

from envbuilder.doctor.checks.common import dist_seen, for_spark, installed, numbers, on_spark, variable
from envbuilder.doctor.commands import a_toolkit, first_on_path, quoted, toolkit
from envbuilder.doctor.model import Severity, fail, info, ok, skip, warn
from envbuilder.doctor.registry import check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envbuilder.doctor.model import Verdict
    from envbuilder.facts.model import Snapshot, Toolkit

_SM121 = (12, 9)  # the first release whose nvcc knows compute_121
_PARTS = ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-cccl")


def _by(s: Snapshot, way: str) -> Toolkit | None:
    return next((kit for kit in s.toolkits or () if way in kit.found_by), None)


def _seen(kit: Toolkit) -> tuple[str, str]:
    return kit.path, f"CUDA {kit.release or 'of unknown release'} (by {', '.join(kit.found_by)})"


def _compiles_for_spark(s: Snapshot) -> bool:
    """Whether this machine's toolkits are those that a GB10 would use: not where its environment is only judged from elsewhere."""
    return for_spark(s) and on_spark(s)


@check("EB-CUDA-001", "nvcc-unsupported-arch", Severity.BLOCKS, needs=("toolkits",))
def nvcc_too_old(s: Snapshot) -> Verdict:
    if not _compiles_for_spark(s):
        return skip("no GB10 machine to compile for")
    used = [kit for way in ("CUDA_HOME", "PATH") if (kit := _by(s, way)) and kit.nvcc and kit.release]
    if not used:
        return skip("no nvcc on PATH")
    old = [kit for kit in used if numbers(kit.release) < _SM121]
    if not old:
        return ok(_seen(used[0]))
    better = toolkit(s, least=_SM121)
    commands = a_toolkit(s, least=_SM121)
    seen = [_seen(kit) for kit in dict.fromkeys(old)]
    return fail(*seen, *([_seen(better)] if better else []), expected="an nvcc that knows compute_121: 13.0", commands=commands)


@check("EB-CUDA-002", "cuda-home-dangling", Severity.BLOCKS, needs=("compilers",))
def dangling(s: Snapshot) -> Verdict:
    lost = s.compilers.dangling_cuda if s.compilers else ()
    if not lost:
        return ok("CUDA_HOME and /usr/local/cuda lead somewhere, or are not set")
    kit = toolkit(s)
    link = (f"sudo ln -sfnT {quoted(kit.path)} /usr/local/cuda",) if kit and "/usr/local/cuda" in lost else ()
    variables = [name for name in ("CUDA_HOME", "CUDA_PATH") if variable(s, name) in lost and variable(s, name) != "/usr/local/cuda"]
    unset = (first_on_path(kit) if kit else f"unset {' '.join(variables)}",) if variables else ()
    return warn(*((path, "leads nowhere") for path in lost), expected="a toolkit's folder", commands=(*link, *unset) or None)


@check("EB-CUDA-003", "cuda-home-not-nvcc", Severity.BLOCKS, needs=("toolkits",), after=("EB-CUDA-001",))
def home_not_nvcc(s: Snapshot) -> Verdict:
    home, path = _by(s, "CUDA_HOME"), _by(s, "PATH")
    if home is None or path is None or not home.release or not path.release:
        return skip("not both a CUDA_HOME and an nvcc on PATH")
    if numbers(home.release)[:1] != numbers(path.release)[:1]:
        return warn(_seen(home), _seen(path), expected="one toolkit", commands=a_toolkit(s, least=_SM121 if for_spark(s) else ()))
    return ok(_seen(home))


@check("EB-CUDA-004", "distro-cuda-toolkit", Severity.BLOCKS, needs=("packages", "toolkits"), after=("EB-CUDA-001",))
def distro_toolkit(s: Snapshot) -> Verdict:
    version = (s.packages or {}).get("nvidia-cuda-toolkit", "")
    if not version or not _compiles_for_spark(s):
        return ok("the distribution's toolkit is not installed")
    used = _by(s, "PATH")
    seen = ("dpkg", f"nvidia-cuda-toolkit {version}")
    first = used is not None and used.path in {"/usr", "/usr/lib/nvidia-cuda-toolkit"}
    return warn(seen, expected="NVIDIA's cuda-toolkit-13-0") if first else info(seen, note="It is not the one on PATH.")


@check("EB-CUDA-005", "library-path-other-cuda", Severity.BLOCKS, needs=("variables", "environment"))
def other_cuda_first(s: Snapshot) -> Verdict:
    torch = s.environment.torch if s.environment else None
    if torch is None or not torch.cuda:
        return skip("no CUDA torch in the environment")
    major = numbers(torch.cuda)[:1]
    folders = variable(s, "LD_LIBRARY_PATH").split(":")
    # A folder of another major hides nothing by its sonames, except the unversioned parts (cuDNN, NCCL, cuBLASLt's plugins).
    other = [folder for folder in folders if (found := _major_of(s, folder)) and found != major]
    if other:
        return warn(
            ("LD_LIBRARY_PATH", ", ".join(f"{folder} (CUDA {_major_of(s, folder)[0]})" for folder in other[:3])),
            ("torch/version.py", f"cuda {torch.cuda}"),
            expected="not set: wheels find their own libraries",
        )
    return ok(("LD_LIBRARY_PATH", variable(s, "LD_LIBRARY_PATH") or "not set"))


def _major_of(s: Snapshot, folder: str) -> tuple[int, ...]:
    """Return the CUDA major of a folder of libraries: by its name, or by the toolkit that /usr/local/cuda leads to; () if it has none."""
    if match := re.search(r"cuda-(\d+)", folder):
        return (int(match[1]),)
    for kit in s.toolkits or ():
        if any(f"{folder}/".startswith(f"{name}/") for name in (kit.path, *kit.found_by) if name.startswith("/usr/local/cuda")):
            return numbers(kit.release)[:1]
    return ()


@check("EB-CUDA-006", "cuda-parts-mixed", Severity.INFO, needs=("environment",))
def parts_mixed(s: Snapshot) -> Verdict:
    parts = [entry for name in _PARTS if (entry := installed(s).get(name))]
    if len(parts) < 2:
        return skip("no CUDA compiler in the environment")
    seen = tuple(map(dist_seen, parts))
    if len({numbers(entry.version)[:2] for entry in parts}) > 1:
        return info(*seen, expected="parts of one release", note="Only compiling with them is at risk.")
    return ok(*seen)


@check("EB-CUDA-007", "toolkit-without-nvcc", Severity.INFO, needs=("toolkits",))
def without_nvcc(s: Snapshot) -> Verdict:
    if not _compiles_for_spark(s) or not s.toolkits:
        return skip("no toolkit, or not for a GB10")
    if any(kit.nvcc for kit in s.toolkits):
        return ok(*map(_seen, s.toolkits[:2]))
    return info(*map(_seen, s.toolkits[:2]), note="Enough to run; compiling kernels needs nvcc.")
