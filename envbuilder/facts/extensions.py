"""The extension modules that serving depends on: would they load, and which GPU code do they carry? Asked of `binaries`.

Not all of an environment's 400 libraries are looked into, only those whose faults stop a server: vLLM's and
torchvision's, and the attention packages'. `envbuilder abi` looks at everything.
"""

from __future__ import annotations

from envbuilder import reading
from envbuilder.binaries.abi import check_catalog
from envbuilder.binaries.elf import read_elf_path
from envbuilder.binaries.environment import interpreter_of, locate_torch, python_tag
from envbuilder.binaries.layout import MalformedElfError
from envbuilder.binaries.loader import Catalog
from envbuilder.binaries.symbols import demangle
from envbuilder.binaries.system import DEBIAN_12, this_system
from envbuilder.binaries.verdicts import Verdict
from envbuilder.facts.site_packages import sites_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from envbuilder.binaries.system import System
    from envbuilder.binaries.verdicts import AbiReport, Cause, ExtensionReport

# Folders below site-packages, and how the names in them begin.
_WHERE = (("vllm", ""), ("vllm/vllm_flash_attn", ""), ("torchvision", ""), ("", "flash_attn"), ("xformers", ""))
# Kernels for other GPUs by design: that this one cannot use them is no fault; `abi` looks into them as well.
_FOR_OTHERS = ("_flashmla", "_vllm_fa3")
_MOST_SYMBOLS = 5


def read_extensions(environment: Path) -> list[dict[str, Any]]:
    """Return the fields of model.Extension for each, in the order of their paths: plain data, for it is read in a child."""
    site = next(iter(sites_of(environment)), environment)
    python = interpreter_of(site, [])
    files = [path for path in _candidates(site) if python_tag(path.name) in {None, "abi3", python}]
    if not files:
        return []
    torch = locate_torch(site)
    # By their paths below site-packages, also where no torch lies beside them.
    # Demangled are the few symbols that are shown: the demangler's library takes as long to load as two modules to judge.
    paths = list(map(str, files))
    report = check_catalog(
        Catalog(), site, paths, torch=torch, system=_system(files[0]), asked=True, spell=lambda names: {it: it for it in names}
    )
    with_gpu = torch is not None and torch.info.cuda is not None
    return [_extension(entry, report, site, with_gpu=with_gpu) for entry in report.extensions]


def _candidates(site: Path) -> Iterator[Path]:
    for folder, start in _WHERE:
        for name in reading.names(site / folder):
            if name.startswith(start) and name.endswith(".so") and not name.startswith(_FOR_OTHERS):
                yield site / folder / name


def _system(sample: Path) -> System:
    """Return the base system that the environment will find: this machine's own, if it is of the same kind."""
    try:
        return this_system(read_elf_path(sample).machine)
    except (MalformedElfError, OSError):
        return DEBIAN_12


def _extension(entry: ExtensionReport, report: AbiReport, site: Path, *, with_gpu: bool) -> dict[str, Any]:
    path = entry.path.removeprefix(f"{site}/")
    cubins, ptx = _gpu_code(site / path) if with_gpu else ((), ())
    return {
        "path": path,
        "machine": entry.machine or "",
        "verdict": entry.verdict.value,
        "kinds": tuple(cause.kind.value for cause in report.causes if entry.path in cause.extensions and _own(cause, entry)),
        "symbols": _symbols(entry),
        "not_found": tuple(library.soname for library in entry.needed if library.found is None),
        "detail": entry.detail,
        "cubins": cubins,
        "ptx": ptx,
    }


def _symbols(entry: ExtensionReport) -> tuple[str, ...]:
    """Return what the extension itself asks for and nobody defines, where the loader comes to it: while a library is missing, it never does."""
    names = [symbol.demangled for symbol in entry.missing if symbol.via is None and entry.verdict is not Verdict.MISSING_LIBRARY]
    return tuple(demangle(names[:_MOST_SYMBOLS]).values())


def _own(cause: Cause, entry: ExtensionReport) -> bool:
    """Whether a cause is the first thing the loader meets: while a library is missing, it never comes to symbols."""
    if entry.verdict is not Verdict.MISSING_LIBRARY:
        return True
    of_symbols = {"incomplete-build", "not-linked", "torch-version", "old-cxx11-abi"}
    return cause.kind.value not in of_symbols or all(library.found for library in entry.needed)


def _gpu_code(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from envbuilder.binaries.fatbin import read_gpu_code_path  # noqa: PLC0415 - where torch has CUDA

    try:
        pieces = sorted(read_gpu_code_path(path).pieces, key=lambda code: (code.ptx, code.arch.number, code.arch.variant))
    except (MalformedElfError, OSError):
        return (), ()
    return tuple(str(code) for code in pieces if not code.ptx), tuple(str(code) for code in pieces if code.ptx)
