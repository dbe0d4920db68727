"""Tell which GPU code files carry, and how it gets to run on a GPU.

PATH is an environment, any folder, a wheel, a .so, .cubin or .fatbin file. Per file:
native (made for this GPU), family (made for another of its family, and runs), jit
(compiled from PTX at first use), none (nothing in it can run), host-only.
A file is as good as its best translation unit; the counts beside it tell the rest.

Exit code 1 when a PATH has GPU code and none that runs, when that holds for one of
its packages with extension modules (vllm, torch), or when a file cannot be read; 2
when PATH holds nothing to check.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    import contextlib

    from envbuilder.binaries.fatbin import Arch
    from envbuilder.binaries.gpu_code import GpuCodeReport
    from envbuilder.console import Console

_GB10 = "sm_121a"
_PLACES = "Name an environment, a folder, a wheel, or a file."


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="an environment, a folder, a wheel, or a file")
    parser.add_argument("--arch", default=_GB10, help="the GPU: sm_121a, sm_90, 12.1a (default: %(default)s, a DGX Spark's)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace, console: Console) -> int:
    import contextlib
    import json

    from envbuilder.binaries.fatbin import parse_arch
    from envbuilder.binaries.gpu_code import merged
    from envbuilder.binaries.gpu_code_text import render
    from envbuilder.errors import UsageError

    gpu = parse_arch(args.arch)
    if gpu is None:
        raise UsageError(f"{args.arch!r} is not a GPU architecture", next="Write it as nvcc does: sm_121a, sm_120, sm_90.")
    with contextlib.ExitStack() as stack:
        report = merged([_check(path, gpu, stack, console) for path in args.paths], gpu)
    print(json.dumps(report.as_json(), indent=2) if console.json_mode else render(report))  # noqa: T201
    return 0 if report.ok else 1


def _check(path: Path, gpu: Arch, stack: contextlib.ExitStack, console: Console) -> GpuCodeReport:
    """Check one path, with what is installed into it as editable. Raises ConfigurationError if there is nothing to check."""
    from envbuilder.binaries.gpu_code import below, check_gpu_code, merged
    from envbuilder.binaries.place import editables_of
    from envbuilder.errors import ConfigurationError

    place = _place(path, stack)
    reports = [check_gpu_code([place], gpu)]
    if path.is_dir():
        editables = editables_of(place)
        reports += [below(package, check_gpu_code([package], gpu)) for package in editables.packages]
        for name in editables.unseen:
            console.warn(f"{name} is installed as editable, and its files were not found: not judged")
    report = merged(reports, gpu)
    if not report.files and not report.unreadable:
        raise ConfigurationError(f"nothing to check in {path}", why="There is no shared object, cubin or fat binary in it.", next=_PLACES)
    return report


def _place(path: Path, stack: contextlib.ExitStack) -> Path:
    from envbuilder.binaries.place import place_of
    from envbuilder.binaries.wheel import unpacked
    from envbuilder.errors import UsageError

    if path.is_dir():
        return place_of(path)
    if not path.is_file():
        raise UsageError(f"{path} does not exist", next=_PLACES)
    return stack.enter_context(unpacked(path)) if path.suffix == ".whl" else path
