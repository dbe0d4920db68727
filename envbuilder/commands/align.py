"""Give an environment the torch that its extension modules need.

Every torch that a known lock names is tried on paper first: its wheel is fetched by hash and the symbols and libraries of
each extension are resolved against it. The first that fits is put in the place of the one that is there; no other
distribution is touched. When all is well, nothing is done. What no torch can cure is named; then it ends with 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from envbuilder.binaries.verdicts import AbiReport
    from envbuilder.build.align import Alignment
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
    if args.dry_run:
        _announce(aligner.plan(args.env), console)
        console.line("nothing was changed (--dry-run)")
        return 0
    with aligner.undisturbed(args.env):
        alignment = aligner.plan(args.env)
        _announce(alignment, console)
        report = aligner.apply(alignment)
    if alignment.chosen:
        count = sum(not extension.fails for extension in report.extensions)
        console.line(f"done: {count} of {len(report.extensions)} extension modules load; no other distribution was touched")
        _leave(report, console)
    return 0 if report.ok else 1


def _announce(alignment: Alignment, console: Console) -> None:
    installed, chosen = alignment.installed, alignment.chosen
    if chosen is None:
        fine = sum(not extension.fails for extension in alignment.report.extensions)
        console.line(
            f"nothing to do: {fine} extension modules load with torch {installed}"
            if installed
            else "nothing to do: no extension here needs torch"
        )
        _leave(alignment.report, console)
        return
    for cause in alignment.report.causes:
        console.line(f"torch {installed or 'is not there'}: {cause.text}")
    console.line(f"torch {chosen.version} fits: {chosen.file.filename}")
    console.line(f"  sha256:{chosen.file.sha256}")


def _leave(report: AbiReport, console: Console) -> None:
    """Name what no torch can cure."""
    for cause in report.causes:
        console.line(f"not a matter of torch: {cause.text} ({', '.join(cause.extensions[:3])})")
