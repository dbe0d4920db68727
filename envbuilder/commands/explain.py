"""Explain a finding of `envbuilder doctor`: what it means, why it matters, what to do.

ID is a finding's id (EB-DRV-006) or its name (nvml-driver-mismatch).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from envbuilder.console import Console


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="an id, or a name")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace, console: Console) -> int:
    import sys

    from envbuilder.doctor.pages import page
    from envbuilder.doctor.registry import find

    check = find(args.id)
    if console.json_mode:
        import json

        entry = page(check.id)
        fix = {"text": entry.fix, "commands": list(entry.commands)}
        document = {
            "schema": "envbuilder/explain/1",
            "id": check.id,
            "name": check.name,
            "severity": check.severity.value,
            "title": entry.title,
            "why": entry.why,
            "more": entry.more,
            "fix": fix,
            "refs": list(entry.refs),
        }
        print(json.dumps(document, indent=2, ensure_ascii=False))  # noqa: T201
    else:
        from envbuilder.doctor.render import Style, explanation

        print(explanation(check, Style.of(sys.stdout)))  # noqa: T201
    return 0
