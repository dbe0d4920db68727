"""Tell whether extension modules load with a torch, without loading anything.

PATH is an environment (a virtual environment, a site-packages folder), a wheel, or
a single .so file, of any architecture. Each extension gets a verdict; missing
symbols are demangled and sorted by cause, and the root cause stands first.

Without --torch, extensions are checked against the torch of their environment.
Exit code 1 when an extension would not load.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    import contextlib

    from envbuilder.binaries.environment import TorchBuild
    from envbuilder.binaries.verdicts import AbiReport
    from envbuilder.console import Console


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="an environment, a wheel, or a .so file")
    parser.add_argument("--torch", metavar="PATH", help="the torch to check against: an environment, a torch wheel, a torch/lib folder")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace, console: Console) -> int:
    import contextlib
    import json

    from envbuilder.binaries.abi_text import render
    from envbuilder.binaries.verdicts import merged

    with contextlib.ExitStack() as stack:
        torch = _torch(Path(args.torch), stack) if args.torch else None
        reports = [(path, _check(path, torch)) for path in args.paths]
    if console.json_mode:
        print(json.dumps(merged([report for _, report in reports]).as_json(), indent=2))  # noqa: T201
    else:
        print("\n\n".join(render(report, title=str(path)) for path, report in reports))  # noqa: T201
    return 0 if all(report.ok for _, report in reports) else 1


def _torch(path: Path, stack: contextlib.ExitStack) -> TorchBuild:
    from envbuilder.binaries.environment import torch_at
    from envbuilder.binaries.wheel import unpacked
    from envbuilder.errors import UsageError

    if not path.exists():
        raise UsageError(f"no torch at {path}", next="Name an environment, a torch wheel, or a torch/lib folder.")
    return torch_at(stack.enter_context(unpacked(path)) if path.suffix == ".whl" else path)


def _check(path: Path, torch: TorchBuild | None) -> AbiReport:
    from envbuilder.binaries.abi import check_environment, check_files, check_wheel
    from envbuilder.binaries.environment import site_packages_of
    from envbuilder.errors import UsageError

    if path.is_dir():
        return check_environment(site_packages_of(path), torch=torch)
    if not path.is_file():
        raise UsageError(f"{path} does not exist", next="Name an environment, a wheel, or a .so file.")
    if path.suffix == ".whl":
        return check_wheel(path, torch=torch)
    return check_files([path], torch=torch)
