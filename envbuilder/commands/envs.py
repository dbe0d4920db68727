"""Compare two environments or machines.

  envbuilder envs diff A B

A and B are snapshots (`envbuilder doctor --save FILE`) or folders of environments on
this machine. Exit code 1 when they differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from envbuilder.console import Console
    from envbuilder.facts.model import Snapshot


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["diff"], help="what to do")
    parser.add_argument("first", metavar="A", type=Path, help="a snapshot, or an environment")
    parser.add_argument("second", metavar="B", type=Path, help="a snapshot, or an environment")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace, console: Console) -> int:
    from envbuilder.doctor.difference import differences

    found = differences(_snapshot(args.first), _snapshot(args.second))
    if console.json_mode:
        import json

        rows = [{"where": one.where, "first": one.first, "second": one.second} for one in found]
        print(json.dumps({"schema": "envbuilder/envs-diff/1", "same": not found, "differences": rows}, indent=2, ensure_ascii=False))  # noqa: T201
    else:
        for one in found:
            print(one.where)  # noqa: T201
            print(f"  - {_short(one.first)}\n  + {_short(one.second)}")  # noqa: T201
        print(f"{len(found)} differences." if found else "No difference.")  # noqa: T201
    return 1 if found else 0


def _short(text: str | None) -> str:
    return "(not there)" if text is None else text if len(text) <= 76 else f"{text[:73]}..."


def _snapshot(path: Path) -> Snapshot:
    from envbuilder.errors import ConfigurationError
    from envbuilder.facts.codec import load
    from envbuilder.facts.snapshot import take

    if not path.is_dir():
        return load(path)
    snapshot = take(environment=path)
    if snapshot.environment is None or not snapshot.environment.valid:
        why = snapshot.environment.reason if snapshot.environment else "It could not be read."
        raise ConfigurationError(f"{path} is no environment", why=why)
    return snapshot
