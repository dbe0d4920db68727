"""Why names are missing: each one's kind, and the few causes behind the faults of a whole environment."""

from __future__ import annotations

import re
from collections import defaultdict

from envbuilder.binaries.environment import TORCH_LIBRARY
from envbuilder.binaries.symbols import about_cuda, old_cxx11, owned_by_cuda, owned_by_torch
from envbuilder.binaries.system import BASE_SONAMES, driver_symbol
from envbuilder.binaries.verdicts import AbiReport, Cause, ExtensionReport, Kind, MissingSymbol, TorchInfo, Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_CUDA_LIBRARY = r"(lib(?:cudart|cublas|cublasLt|cusparse|cusparseLt|cusolver|cusolverMg|cudnn\w*|cufft|cufftw|curand|nccl|nvrtc|nvrtc-builtins|nvJitLink|cufile|nvshmem_host|cupti|nvToolsExt|nvtx3interop|npp\w+))\.so\.(\d+)[\d.]*"
# These carry CUDA's own major in their soname; cuFFT, cuSOLVER and others count for themselves.
_NUMBERED_AS_CUDA = frozenset({"libcudart", "libcublas", "libcublasLt", "libnvrtc", "libnvJitLink"})
_EXAMPLES = 3
_TEXTS = {
    Kind.WRONG_MACHINE: "built for {names}, and the environment is for {machine}",
    Kind.NO_TORCH: "there is no torch here to load with (needed: {names})",
    Kind.CPU_ONLY_TORCH: "this torch has no CUDA: {torch} is a CPU-only build (missing: {names})",
    Kind.CUDA_MAJOR: "built for another CUDA major than {torch} brings{cuda}: {names}",
    Kind.OLD_CXX11_ABI: "built with the C++ ABI from before GCC 5 (_GLIBCXX_USE_CXX11_ABI=0), which {torch} is not: {names}",
    Kind.TORCH_VERSION: "built for another torch than {torch}, which does not define {names}",
    Kind.NOT_LINKED: "{torch} or the C++ runtime defines it, but the extension does not name the library among those it needs: {names}",
    Kind.INCOMPLETE_BUILD: "an incomplete build: it refers to functions that its own sources should define: {names}",
    Kind.SYSTEM_TOO_OLD: "needs newer system libraries: {names}",
    Kind.CUDA_LIBRARY: "CUDA libraries or functions that are not in the environment: {names}",
    Kind.OTHER_LIBRARY: "libraries or functions that are neither in the environment nor in the base system: {names}",
    Kind.MALFORMED: "not a readable ELF file: {names}",
}


def kind_of_library(soname: str, torch: TorchInfo | None = None, present: Iterable[str] = ()) -> Kind:
    """Return why a library that is needed and absent is absent. `present`: file names of the environment's libraries."""
    if TORCH_LIBRARY.fullmatch(soname):
        return Kind.NO_TORCH if torch is None else Kind.CPU_ONLY_TORCH if torch.cuda is None and about_cuda(soname) else Kind.TORCH_VERSION
    match = re.fullmatch(_CUDA_LIBRARY, soname)
    if match is None:
        return Kind.OTHER_LIBRARY
    if torch is not None and torch.cuda is None:
        return Kind.CPU_ONLY_TORCH
    if torch is not None and torch.cuda and match[1] in _NUMBERED_AS_CUDA and match[2] != torch.cuda.partition(".")[0]:
        return Kind.CUDA_MAJOR
    alike = (re.fullmatch(_CUDA_LIBRARY, name) for name in present if name.startswith(f"{match[1]}.so."))
    majors = {other[2] for other in alike if other}
    return Kind.CUDA_MAJOR if majors - {match[2]} else Kind.CUDA_LIBRARY


def kind_of_symbol(name: str, *, torch: TorchInfo | None, own: bool) -> Kind:
    """Return why nobody defines a symbol. `own`: no library that the file needs could be meant to define it."""
    if owned_by_torch(name) or (name.startswith("_ZNS") and not own):
        if old_cxx11(name):
            return Kind.OLD_CXX11_ABI
        if torch is None:
            return Kind.NO_TORCH
        return Kind.CPU_ONLY_TORCH if torch.cuda is None and about_cuda(name) else Kind.TORCH_VERSION
    if owned_by_cuda(name):
        return Kind.CPU_ONLY_TORCH if torch is not None and torch.cuda is None else Kind.CUDA_LIBRARY
    if driver_symbol(name):
        return Kind.CUDA_LIBRARY
    return Kind.INCOMPLETE_BUILD if own else Kind.OTHER_LIBRARY


def could_own_symbols(soname: str) -> bool:
    """Tell whether a library is some other project's: one whose symbols we cannot tell by their names."""
    return soname not in BASE_SONAMES and kind_of_library(soname) is Kind.OTHER_LIBRARY and soname != "libcuda.so.1"


def causes_of(report: AbiReport, *, present: Iterable[str]) -> tuple[Cause, ...]:
    """Return the causes behind the unexpected faults of a report, the root first, each with the extensions it hits."""
    names = frozenset(present)
    hit: dict[Kind, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for extension in report.extensions:
        if extension.fails:
            for kind, name in _reasons(extension, report.torch, names):
                hit[kind][extension.path].append(name)
    return tuple(
        Cause(
            kind=kind,
            text=_text(kind, report, sorted({name for entries in hit[kind].values() for name in entries})),
            extensions=tuple(hit[kind]),
        )
        for kind in Kind
        if kind in hit
    )


def _reasons(extension: ExtensionReport, torch: TorchInfo | None, present: frozenset[str]) -> Iterable[tuple[Kind, str]]:
    match extension.verdict:
        case Verdict.WRONG_MACHINE:
            yield Kind.WRONG_MACHINE, extension.machine or "unknown"
        case Verdict.NOT_ELF:
            yield Kind.MALFORMED, extension.detail
        case Verdict.OK | Verdict.UNDEFINED_SYMBOLS | Verdict.MISSING_LIBRARY | Verdict.INCOMPLETE_BUILD:
            if extension.detail:  # of libraries that are there, and cut or none: `PATH: why`
                yield Kind.MALFORMED, extension.detail
            for library in extension.needed:
                if library.found is None and f"{library.soname.rpartition('/')[2]}: " not in extension.detail:
                    yield kind_of_library(library.soname, torch, present), library.soname
            for symbol in extension.missing:
                if symbol.kind is not Kind.OTHER_LIBRARY or not extension.detail:  # whose else than that library's?
                    yield symbol.kind, symbol.demangled


def _text(kind: Kind, report: AbiReport, names: list[str]) -> str:
    torch = f"torch {report.torch.version or '(version unknown)'}" if report.torch else "torch"
    cuda = f" (CUDA {report.torch.cuda})" if report.torch and report.torch.cuda else ""
    return _TEXTS[kind].format(torch=torch, cuda=cuda, machine=report.machine, names=_listed(names))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else ""
    return ", ".join(names[:_EXAMPLES]) + more


def verdict_of(missing: Iterable[MissingSymbol], *, library_missing: bool) -> Verdict:
    """The loader stops at a missing library before it looks at symbols; so does the verdict."""
    kinds = {symbol.kind for symbol in missing}
    if library_missing:
        return Verdict.MISSING_LIBRARY
    if not kinds:
        return Verdict.OK
    return Verdict.INCOMPLETE_BUILD if kinds == {Kind.INCOMPLETE_BUILD} else Verdict.UNDEFINED_SYMBOLS
