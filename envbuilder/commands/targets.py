"""List what can be built, and which target fits this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from envbuilder.console import Console


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace, console: Console) -> int:
    import json

    from envbuilder.facts.detect import detect_target
    from envbuilder.targets.catalogue import lock_folder, target_files
    from envbuilder.targets.model import read_target

    fitting, evidence = detect_target()
    rows: list[dict[str, Any]] = []
    for path in target_files().values():
        target = read_target(path)
        releases = [
            {
                "name": name,
                "default": name == target.default_release,
                "vllm": release.vllm,
                "locked": (lock_folder(path, target, name) / "inputs.toml").is_file(),
            }
            for name, release in target.releases.items()
        ]
        fits = target.name == fitting
        rows.append(
            {"name": target.name, "summary": target.summary, "platforms": list(target.platforms), "fits": fits, "releases": releases}
        )
    if args.json:
        print(json.dumps({"schema": "envbuilder/targets/1", "fitting": fitting, "evidence": list(evidence), "targets": rows}))  # noqa: T201
        return 0
    console.table(
        "Targets",
        ("target", "platform", "releases (* default)", "what it is"),
        [(_mark(row), ", ".join(row["platforms"]), _releases(row), row["summary"]) for row in rows],
    )
    console.line(f"This machine is a {fitting}: {'; '.join(evidence) or 'no sign of an NVIDIA GPU'}.")
    return 0


def _mark(row: dict[str, Any]) -> str:
    return f"{row['name']} ←" if row["fits"] else str(row["name"])


def _releases(row: dict[str, Any]) -> str:
    return ", ".join(f"{it['name']}{'*' if it['default'] else ''}{'' if it['locked'] else ' (no lock)'}" for it in row["releases"])
