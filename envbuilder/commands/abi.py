"""Tell whether extension modules load with a torch, without loading anything.

PATH is an environment (a virtual environment, a site-packages folder), a wheel, or
a single .so file, of any architecture; or the file name of a vLLM wheel that need
not be here: the atlas knows what each release needs. Each extension gets a verdict;
missing symbols are demangled and sorted by cause, and the root cause stands first.

--torch is an environment, a torch wheel, a torch/lib folder, or a release (2.10.0)
that the atlas knows. Without it, the torch of PATH's environment is meant, or, for a
vLLM wheel that the atlas knows, the one that the wheel pins.

Exit code 1 when an extension would not load, 2 when PATH holds none.
"""

from __future__ import annotations

from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from envbuilder.console import Console


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="an environment, a wheel, a .so file, or a vLLM wheel's name")
    parser.add_argument("--torch", metavar="PATH|VERSION", help="the torch to check against")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace, console: Console) -> int:
    from envbuilder.binaries.abi_text import render
    from envbuilder.binaries.ask import check_path, torch_named
    from envbuilder.binaries.verdicts import merged

    with torch_named(args.torch, Path(args.torch) if args.torch else None) as torch:
        reports = [(path, check_path(path, torch)) for path in args.paths]
    if console.json_mode:
        import json

        print(json.dumps(merged([report for _, report in reports]).as_json(), indent=2))  # noqa: T201
    else:
        print("\n\n".join(render(report, title=str(path)) for path, report in reports))  # noqa: T201
    return 0 if all(report.ok for _, report in reports) else 1
