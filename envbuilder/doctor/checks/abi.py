"""Extension modules: whether the loader takes them. Read from their ELF, never by loading them."""

from __future__ import annotations

from envbuilder.doctor.checks.common import dist, dist_seen, numbers
from envbuilder.doctor.commands import align, backend, install, quoted
from envbuilder.doctor.model import Severity, fail, info, ok, skip, unknown
from envbuilder.doctor.registry import check
from envbuilder.doctor.versions import within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuilder.doctor.model import Verdict
    from envbuilder.facts.model import Extension, Snapshot

_NEEDED = ("environment",)
# What gives an environment the wrong torch explains what its extensions then lack.
_TORCH = (
    "EB-TORCH-001",
    "EB-TORCH-013",
    "EB-TORCH-015",
    "EB-TORCH-010",
    "EB-TORCH-003",
    "EB-TORCH-009",
    "EB-TORCH-014",
    "EB-ENV-009",
    "EB-ENV-008",
    "EB-ENV-019",
)


def _extensions(s: Snapshot) -> tuple[Extension, ...] | None:
    """Return the extensions, torchvision's left out: EB-TORCH-007 judges those."""
    extensions = s.environment.extensions if s.environment else None
    return None if extensions is None else tuple(extension for extension in extensions if not extension.path.startswith("torchvision/"))


def _of_kind(s: Snapshot, kind: str) -> list[Extension]:
    return [extension for extension in _extensions(s) or () if kind in extension.kinds]


def _root_kind(
    s: Snapshot, kind: str, *, expected: str, commands: tuple[str, ...] | None = None, keep: Callable[[Extension], bool] = lambda _: True
) -> Verdict:
    """Judge by one kind of fault."""
    extensions = _extensions(s)
    if extensions is None:
        return unknown("extension modules were not looked into")
    if not extensions:
        return skip("no extension modules of vLLM and its kind")
    hit = [extension for extension in _of_kind(s, kind) if keep(extension)]
    if not hit:
        return ok(f"{len(extensions)} extension modules")
    seen = [(extension.path, _reason(extension)) for extension in hit[:3]]
    torch = s.environment.torch if s.environment else None
    if torch:
        seen.append(("torch/version.py", f"{torch.version}, cuda {torch.cuda or 'None'}"))
    return fail(*seen, expected=expected, commands=commands, note=f"{len(hit)} modules in all." if len(hit) > 3 else "")


def _reason(extension: Extension) -> str:
    if extension.not_found:
        return f"needs {', '.join(extension.not_found[:3])}: not found"
    if extension.symbols:
        more = f" and {len(extension.symbols) - 1} more" if len(extension.symbols) > 1 else ""
        return f"undefined symbol: {extension.symbols[0]}{more}"
    return extension.detail or extension.machine


def _libraries_of_torch(s: Snapshot) -> tuple[str, ...] | None:
    """Return what brings the libraries that the installed torch asks for, and leaves torch as it is."""
    torch = dist(s, "torch")
    return install(s, f"torch=={torch.version.partition('+')[0]}", options=backend(s).strip()) if torch else None


@check("EB-ABI-001", "abi-c10-messagelogger", Severity.BLOCKS, needs=_NEEDED, after=_TORCH)
def torch_version(s: Snapshot) -> Verdict:
    return _root_kind(s, "torch-version", expected="every torch symbol that it needs", commands=align(s))


@check("EB-ABI-002", "abi-old-cxx11", Severity.BLOCKS, needs=_NEEDED, after=_TORCH)
def old_abi(s: Snapshot) -> Verdict:
    return _root_kind(s, "old-cxx11-abi", expected="std::string of the C++11 ABI (__cxx11)")


@check("EB-ABI-003", "abi-incomplete-build", Severity.BLOCKS, needs=_NEEDED)
def incomplete(s: Snapshot) -> Verdict:
    kind = "incomplete-build" if _of_kind(s, "incomplete-build") else "not-linked"
    return _root_kind(s, kind, expected="every function that it calls, compiled in or linked")


@check("EB-ABI-004", "abi-c-so-absent", Severity.BLOCKS, needs=_NEEDED, after=("EB-ENV-008",))
def c_so_absent(s: Snapshot) -> Verdict:
    server, extensions = dist(s, "vllm"), _extensions(s)
    if server is None or not extensions:
        return skip("no CUDA vLLM, or its extensions were not looked into")
    names = {extension.path.rpartition("/")[2] for extension in extensions if extension.path.startswith("vllm/")}
    if any(name.startswith("_C.") for name in names):
        return ok(("vllm/_C.abi3.so", "there"))
    seen = (dist_seen(server), ("vllm/", "no _C.abi3.so"))
    if any(name.startswith("_C_stable_libtorch") for name in names):
        return info(*seen, note="From 0.24 on its operations are in _C_stable_libtorch.")
    if within(server.version, ">=0.12"):
        return fail(*seen, expected="_C.abi3.so, or _C_stable_libtorch.abi3.so")
    return ok(*seen)


@check(
    "EB-ABI-005",
    "abi-local-version-blind",
    Severity.BLOCKS,
    needs=_NEEDED,
    after=("EB-TORCH-001", "EB-TORCH-003", "EB-TORCH-004", "EB-TORCH-009", "EB-TORCH-014", "EB-PKG-001"),
)
def cuda_major(s: Snapshot) -> Verdict:
    return _root_kind(s, "cuda-major", expected="the CUDA major of torch", commands=align(s))


def _cudart(major: int) -> Callable[[Extension], bool]:
    return lambda extension: f"libcudart.so.{major}" in extension.not_found


def _runtime(s: Snapshot, major: int) -> tuple[str, ...] | None:
    """A torch of the same CUDA lost its runtime; another torch must go; only what was built for an older CUDA than torch is itself wrong."""
    torch = s.environment.torch if s.environment else None
    if torch and numbers(torch.cuda)[:1] == (major,):
        return _libraries_of_torch(s)
    return align(s) if major == 13 else (f"envbuilder abi {quoted(s.environment.path if s.environment else '')}",)


def _missing_runtime(s: Snapshot, major: int) -> Verdict:
    extensions = _extensions(s)
    if extensions is None:
        return unknown("extension modules were not looked into")
    if not extensions:
        return skip("no extension modules of vLLM and its kind")
    hit = [extension for extension in extensions if _cudart(major)(extension)]
    if not hit:
        return ok(f"libcudart.so.{major} is found, or not needed")
    return fail(
        *((extension.path, f"needs libcudart.so.{major}: not found") for extension in hit[:3]),
        expected=f"libcudart.so.{major} of nvidia-cuda-runtime",
        commands=_runtime(s, major),
    )


@check("EB-ABI-006", "cudart12-missing", Severity.BLOCKS, needs=_NEEDED, after=("EB-ABI-005", *_TORCH))
def cudart_12(s: Snapshot) -> Verdict:
    return _missing_runtime(s, 12)


@check("EB-ABI-007", "cudart13-missing", Severity.BLOCKS, needs=_NEEDED, after=("EB-ABI-005", *_TORCH))
def cudart_13(s: Snapshot) -> Verdict:
    return _missing_runtime(s, 13)


@check("EB-ABI-008", "extension-wrong-machine", Severity.BLOCKS, needs=_NEEDED, after=("EB-ENV-019", "EB-ENV-004"))
def wrong_machine(s: Snapshot) -> Verdict:
    return _root_kind(s, "wrong-machine", expected="the machine of the environment")


@check("EB-ABI-009", "extension-not-whole", Severity.BLOCKS, needs=_NEEDED, after=("EB-ENV-009",))
def malformed(s: Snapshot) -> Verdict:
    return _root_kind(s, "malformed", expected="a whole ELF file")


@check("EB-ABI-010", "system-too-old", Severity.BLOCKS, needs=_NEEDED, after=("EB-ENV-018",))
def system_too_old(s: Snapshot) -> Verdict:
    return _root_kind(s, "system-too-old", expected="glibc and libstdc++ that have these versions")


@check("EB-ABI-011", "cuda-library-missing", Severity.BLOCKS, needs=_NEEDED, after=("EB-ABI-005", "EB-ENV-014", *_TORCH))
def cuda_library(s: Snapshot) -> Verdict:
    def other(extension: Extension) -> bool:
        return not any(name.startswith("libcudart.so.") for name in extension.not_found)

    return _root_kind(s, "cuda-library", expected="NVIDIA's libraries in site-packages/nvidia", keep=other, commands=_libraries_of_torch(s))


@check("EB-ABI-012", "other-library-missing", Severity.BLOCKS, needs=_NEEDED, after=("EB-ENV-008",))
def other_library(s: Snapshot) -> Verdict:
    return _root_kind(s, "other-library", expected="the library, in the environment or the system")


@check("EB-ABI-013", "extensions-without-cuda-torch", Severity.BLOCKS, needs=_NEEDED, after=_TORCH)
def without_cuda_torch(s: Snapshot) -> Verdict:
    kind = "cpu-only-torch" if _of_kind(s, "cpu-only-torch") else "no-torch"
    return _root_kind(s, kind, expected="a torch built for CUDA", commands=align(s))
