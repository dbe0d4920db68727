"""Build an environment for a target, prove it, and write its manifest.

Without options: the target that fits this machine, its default release, into .envbuilder/<target>. Stages whose
inputs have not changed are kept, so a second build does nothing and an interrupted one goes on where it was.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from envbuilder.commands import options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from envbuilder.build.plan import Plan
    from envbuilder.build.stages import Outcome
    from envbuilder.console import Console


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_target(parser)
    options.add_release(parser)
    parser.add_argument("--platform", metavar="P", help="one of the target's platforms (default: this machine's own, else its first)")
    parser.add_argument("--out", metavar="DIR", help="where the results go (default: .envbuilder/<target>)")
    parser.add_argument("--vllm", choices=("source", "published"), help="where vLLM comes from (default: what the release says)")
    parser.add_argument("--jobs", metavar="N", type=_positive, help="compiles at once, memory permitting (default: one for each core)")
    parser.add_argument("--verify", action="store_true", help="compile a second time from scratch, and compare the wheels byte for byte")
    parser.add_argument(
        "--offline", action="store_true", help="use only files of this machine: the store, and folders named in your settings"
    )
    parser.add_argument("--no-smoke", action="store_true", help="do not quantize, serve and decode; the report says that it was not run")
    parser.add_argument("--no-image", action="store_true", help="do not write the images; the report says that it was not done")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _positive(text: str) -> int:
    import argparse

    with contextlib.suppress(ValueError):
        if (number := int(text)) >= 1:
            return number
    raise argparse.ArgumentTypeError("must be a whole number of at least 1")


def run(args: argparse.Namespace, console: Console) -> int:
    import json

    from envbuilder.build.pipeline import build
    from envbuilder.build.plan import chosen_machine, make_plan
    from envbuilder.layout import Layout
    from envbuilder.store.cache import Store, default_root

    target, path = options.chosen_target(args.target)
    machine = chosen_machine(target, args.platform)
    # What is built for another platform than usual has a place of its own: the usual one is kept.
    suffix = f"-{machine}" if machine != chosen_machine(target, None) else ""
    layout = Layout.of(args.out or options.default_out(f"{target.name}{suffix}"))
    plan = make_plan(
        target,
        path,
        args.release,
        machine=machine,
        layout=layout,
        store=Store(default_root()),
        offline=args.offline,
        smoke=not args.no_smoke,
        images=not args.no_image,
        vllm=args.vllm,
        jobs=args.jobs,
        verify=args.verify,
    )
    python = f"CPython {plan.interpreter.version}{f' of linux/{plan.interpreter.machine}' if plan.interpreter.foreign else ''}"
    console.line(f"{target.name} {plan.release_name}, {python}, into {layout.out}")
    with options.diagnosed(layout, console):
        outcomes = build(plan, console)
    if args.json:
        print(json.dumps(_document(plan, outcomes)))  # noqa: T201
    else:
        _summary(plan, outcomes, console)
    return 0


def _document(plan: Plan, outcomes: Sequence[Outcome]) -> dict[str, object]:
    return {
        "schema": "envbuilder/build/1",
        "target": plan.target.name,
        "release": plan.release_name,
        "platform": f"linux/{plan.interpreter.machine}",
        "out": str(plan.layout.out),
        "lock": f"sha256:{plan.lock.digest}",
        "manifest": str(plan.layout.manifest),
        "stages": [
            {"name": it.name, "status": it.status, "key": it.key, "seconds": round(it.seconds, 2), "detail": it.detail} for it in outcomes
        ],
    }


def _summary(plan: Plan, outcomes: Sequence[Outcome], console: Console) -> None:
    if all(outcome.status != "done" for outcome in outcomes):
        console.line(f"nothing to do: {plan.layout.out} is what the lock and the target ask for")
    rows = [(it.name, it.status, f"{it.seconds:.1f}" if it.status != "not-run" else "", it.detail) for it in outcomes]
    console.table(f"{plan.target.name} {plan.release_name}", ("stage", "", "seconds", "what"), rows, right=(2,))
    if not_run := [outcome.name for outcome in outcomes if outcome.status == "not-run"]:
        console.line(f"Not run, and so not proved: {', '.join(not_run)}.")
    console.line(f"Manifest: {plan.layout.manifest}")
