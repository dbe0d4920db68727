"""Find out what is wrong with this machine or an environment on it.

Reads files and asks NVML; imports no torch, changes nothing, needs no root. Every
finding has its evidence, why it matters, and commands to paste; what only follows
from another finding is folded under it. Exit code 1 when something is wrong.

  envbuilder doctor                   this machine, and the active environment
  envbuilder doctor --env .venv       that environment
  envbuilder doctor --log build.log   what a log shows (- is standard input)
  envbuilder doctor --save a.json     write a redacted snapshot, to be replayed
  envbuilder doctor --facts a.json    judge a snapshot, of any machine, here
  envbuilder doctor --fix             mend what is safe to mend, after asking
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from envbuilder.console import Console
    from envbuilder.doctor.model import Check, Examination
    from envbuilder.facts.model import Snapshot

_OWN_TARGETS = {"dgx-spark", "cuda", "cpu"}
# Options that look at different things, or at none: with which others each would leave one of them out without a word.
_APART = {
    "log": ("It looks at a log and at nothing else.", ("env", "model", "target", "facts", "save", "fix")),
    "facts": ("A snapshot is of another time or place.", ("env", "model", "fix")),
    "undo": ("It takes the last --fix back and looks at nothing.", ("env", "model", "target", "facts", "save", "log", "check", "fix")),
    "list": ("It names the checks and looks at nothing.", ("env", "model", "target", "facts", "save", "log", "check", "fix", "undo")),
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", metavar="T", help="judge the environment for this target, not for this machine's own")
    parser.add_argument("--env", metavar="DIR", type=Path, help="the environment to look at (default: the active one)")
    parser.add_argument("--model", metavar="DIR", type=Path, help="a model's folder to look at as well")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--facts", metavar="FILE", type=Path, help="judge a saved snapshot instead of this machine")
    source.add_argument("--save", metavar="FILE", type=Path, help="also write the snapshot, redacted")
    parser.add_argument("--log", metavar="FILE", help="recognise failures in a log; - is standard input")
    parser.add_argument("--check", metavar="ID", action="append", default=[], help="run this check only (repeatable; an id or a name)")
    parser.add_argument("--list", action="store_true", help="list all checks and end")
    parser.add_argument("--all", action="store_true", help="also show what passed and what does not apply")
    parser.add_argument("--fix", action="store_true", help="show what can be mended safely, ask, mend, check again")
    parser.add_argument("--yes", action="store_true", help="with --fix: do not ask")
    parser.add_argument("--undo", action="store_true", help="take the last --fix back")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace, console: Console) -> int:
    _check_arguments(args)
    if args.list:
        return _list(console)
    if args.undo:
        from envbuilder.doctor.mending import undo_last

        return undo_last(console)
    started = time.monotonic()
    chosen = _chosen(args.check, in_log=args.log is not None)
    mendable: set[str] = set()
    if args.log is not None:
        result = _examine_log(args.log, chosen)
    else:
        snapshot = _snapshot(args)
        if args.save:
            _save(snapshot, args.save, console)
        result = _examine(snapshot, chosen)
        if args.fix:
            result = _mend(snapshot, result, args, chosen, console)
        elif not (args.facts or console.json_mode):
            mendable = _mendable(snapshot, result)
    _print(result, console, everything=args.all or bool(args.check), seconds=time.monotonic() - started, mendable=mendable)
    return 1 if any(finding.is_fault for finding in result.findings) else 0


def _mendable(snapshot: Snapshot, result: Examination) -> set[str]:
    """Return the faults that `--fix` would do something for."""
    if not any(finding.is_fault for finding in result.findings):
        return set()
    from envbuilder.doctor.fixes import plan

    return {repair.id for repair in plan(snapshot, result, align=lambda environment: environment)}


def _mend(snapshot: Snapshot, result: Examination, args: argparse.Namespace, chosen: list[Check] | None, console: Console) -> Examination:
    from envbuilder.doctor.fixes import mend

    def align(environment: Path) -> None:
        from argparse import Namespace

        from envbuilder.commands import align as command

        command.run(Namespace(env=environment, dry_run=False, offline=False), console)

    return mend(snapshot, result, console, yes=args.yes, again=lambda: _examine(_snapshot(args), chosen), align=align)


def _check_arguments(args: argparse.Namespace) -> None:
    from envbuilder.errors import UsageError

    for name, (does, excluded) in _APART.items():
        clash = [f"--{other}" for other in excluded if getattr(args, other) not in (None, False, [])]
        if getattr(args, name) not in (None, False) and clash:
            raise UsageError(
                f"--{name} does not go with {' or '.join(clash)}", why=does, next=f"Leave out {' and '.join(clash)}, or --{name}."
            )
    if args.yes and not (args.fix or args.undo):
        raise UsageError("--yes goes with --fix")
    if args.target and args.target not in _OWN_TARGETS:
        from envbuilder.targets.catalogue import find_target

        find_target(args.target)


def _chosen(names: list[str], *, in_log: bool) -> list[Check] | None:
    """Return the checks that were asked for, None for all. Raises UsageError for one that cannot find anything there."""
    if not names:
        return None
    from envbuilder.doctor.registry import find
    from envbuilder.errors import UsageError

    checks = [find(name) for name in names]
    for check in checks:
        if not in_log and check.judge is None:
            raise UsageError(
                f"{check.id} {check.name} leaves no trace on a machine",
                why="It is recognised in logs alone.",
                next=f"Run `envbuilder doctor --log FILE --check {check.id}`.",
            )
        if in_log and not _in_logs(check):
            raise UsageError(
                f"{check.id} {check.name} is not recognised in logs",
                next=f"Run `envbuilder doctor --check {check.id}` on the machine itself.",
            )
    return checks


def _in_logs(check: Check) -> bool:
    from envbuilder.doctor.signatures import SIGNATURES

    return any(signature.id == check.id for signature in SIGNATURES)


def _snapshot(args: argparse.Namespace) -> Snapshot:
    if args.facts:
        import dataclasses

        from envbuilder.facts.codec import load

        snapshot = load(args.facts)
        return dataclasses.replace(snapshot, target=args.target) if args.target else snapshot
    from envbuilder.facts.snapshot import take

    return take(environment=args.env, model=args.model, target=args.target or "", meanwhile=_prepare)


def _prepare() -> None:
    """Load what judges and what shows while the readers wait for a child or a disk."""
    from envbuilder.doctor import examine, render  # noqa: F401
    from envbuilder.doctor.registry import all_checks

    all_checks()


def _save(snapshot: Snapshot, path: Path, console: Console) -> None:
    from envbuilder.errors import StorageError, UsageError
    from envbuilder.facts import redact
    from envbuilder.facts.codec import to_json
    from envbuilder.files import write_json

    if path.exists() and not path.is_file():  # a device would be replaced by a file, for everybody
        raise UsageError(f"cannot write the snapshot to {path}", why="It is there, and it is no file.")
    try:
        write_json(path, to_json(redact.tree(snapshot)))
    except (OSError, StorageError) as error:  # the latter speaks of builds
        why = error.why or error.what if isinstance(error, StorageError) else error.strerror or str(error)
        raise UsageError(f"cannot write the snapshot to {path}", why=why) from error
    console.line(f"snapshot: {path}")


def _examine(snapshot: Snapshot, chosen: list[Check] | None) -> Examination:
    from envbuilder.doctor.examine import examine

    return examine(snapshot, checks=chosen)


def _examine_log(log: str, chosen: list[Check] | None) -> Examination:
    import dataclasses

    from envbuilder.doctor.logs import examine_log
    from envbuilder.errors import UsageError

    if log == "-":
        result = examine_log(sys.stdin.buffer, name="standard input")
    else:
        path = Path(log)
        try:
            with path.open("rb") as stream:
                result = examine_log(stream, name=path.name)
        except OSError as error:
            raise UsageError(f"cannot read the log {path}", why=error.strerror or str(error)) from error
    if chosen is None:
        return result
    wanted = {check.id for check in chosen}
    # What is asked for stands by itself where its cause was not asked for.
    findings = (one if one.explained_by in wanted else dataclasses.replace(one, explained_by="") for one in result.findings)
    return dataclasses.replace(result, findings=tuple(one for one in findings if one.check.id in wanted))


def _print(result: Examination, console: Console, *, everything: bool, seconds: float, mendable: set[str]) -> None:
    if console.json_mode:
        import json

        from envbuilder.doctor.document import document

        print(json.dumps(document(result), indent=2, ensure_ascii=False))  # noqa: T201
        return
    from envbuilder.doctor.render import Style, examination

    print(examination(result, Style.of(sys.stdout), everything=everything, seconds=seconds, mendable=mendable))  # noqa: T201


def _list(console: Console) -> int:
    from envbuilder.doctor.pages import page
    from envbuilder.doctor.registry import all_checks

    rows = [
        {
            "id": check.id,
            "name": check.name,
            "severity": check.severity.value,
            "log_only": check.judge is None,
            "title": page(check.id).title,
        }
        for check in all_checks().values()
    ]
    if console.json_mode:
        import json

        print(json.dumps({"schema": "envbuilder/doctor-checks/1", "checks": rows}, indent=2, ensure_ascii=False))  # noqa: T201
    else:
        for row in rows:
            print(f"{row['id']:<13} {row['name']:<33} {'log only' if row['log_only'] else row['severity']}")  # noqa: T201
    return 0
