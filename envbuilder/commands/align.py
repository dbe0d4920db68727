"""Give an environment the torch that its extension modules need.

Every torch that a known lock names is tried on paper first: its wheel is fetched by hash and the symbols and libraries of
each extension are resolved against it. The first that fits is put in the place of the one that is there; no other
distribution is touched. When all is well, nothing is done.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from envbuilder.console import Console


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--env", metavar="DIR", type=Path, required=True, help="a virtual environment, of this machine's architecture or another"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--offline", action="store_true", help="use only files of this machine")


def run(args: argparse.Namespace, console: Console) -> int:
    from envbuilder.build.align import Aligner
    from envbuilder.commands.options import known_locks
    from envbuilder.store.cache import Store, default_root
    from envbuilder.store.settings import read_settings

    aligner = Aligner(
        store=Store(default_root()), settings=read_settings(), console=console, locks=list(known_locks()), offline=args.offline
    )
    alignment = aligner.plan(args.env)
    count = len(alignment.report.extensions)
    if alignment.chosen is None:
        console.line(f"nothing to do: {count} extension modules load with torch {alignment.installed}")
        return 0
    for cause in alignment.report.causes:
        console.line(f"torch {alignment.installed or 'is not there'}: {cause.text}")
    file = alignment.chosen.file
    console.line(f"torch {alignment.chosen.version} fits: {file.filename}")
    console.line(f"  sha256:{file.sha256}")
    if args.dry_run:
        console.line("nothing was changed (--dry-run)")
        return 0
    report = aligner.apply(alignment)
    console.line(f"done: {len(report.extensions)} extension modules load; no other distribution was touched")
    return 0
