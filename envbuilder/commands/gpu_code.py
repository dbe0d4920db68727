"""Tell which GPU code files carry, and how it gets to run on a GPU.

PATH is an environment, any folder, a wheel, a .so, .cubin or .fatbin file. Per file:
native (made for this GPU), family (made for another of its family, and runs), jit
(compiled from PTX at first use), none (nothing in it can run), host-only.
A file is as good as its best translation unit; the counts beside it tell the rest.

Exit code 1 when a PATH has GPU code and none that runs, when that holds for one of
its packages with extension modules (vllm, torch), or when a file cannot be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    import contextlib

    from envbuilder.console import Console

_GB10 = "sm_121a"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="an environment, a folder, a wheel, or a file")
    parser.add_argument("--arch", default=_GB10, help="the GPU: sm_121a, sm_90, 120 (default: %(default)s, a DGX Spark's)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace, console: Console) -> int:
    import contextlib
    import json

    from envbuilder.binaries.fatbin import parse_arch
    from envbuilder.binaries.gpu_code import check_gpu_code
    from envbuilder.binaries.gpu_code_text import render
    from envbuilder.errors import UsageError

    gpu = parse_arch(args.arch)
    if gpu is None:
        raise UsageError(f"{args.arch!r} is not a GPU architecture", next="Write it as nvcc does: sm_121a, sm_120, sm_90.")
    with contextlib.ExitStack() as stack:
        report = check_gpu_code([_place(path, stack) for path in args.paths], gpu)
    print(json.dumps(report.as_json(), indent=2) if console.json_mode else render(report))  # noqa: T201
    return 0 if report.ok else 1


def _place(path: Path, stack: contextlib.ExitStack) -> Path:
    from envbuilder.binaries.environment import site_packages_of
    from envbuilder.binaries.wheel import unpacked
    from envbuilder.errors import UsageError

    if path.is_dir():
        return site_packages_of(path)
    if not path.is_file():
        raise UsageError(f"{path} does not exist", next="Name an environment, a folder, a wheel, or a file.")
    return stack.enter_context(unpacked(path)) if path.suffix == ".whl" else path
