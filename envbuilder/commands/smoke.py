"""Prove a built environment again: quantize a tiny model, serve it, and compare what it says.

    envbuilder smoke --out .envbuilder/cpu

Writes smoke.json into the output folder. Ends with 0 when the decoded text is exact, and with 1 when it is not, or
when this machine cannot try (another machine's environment, no GPU): what was not run was not proved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from envbuilder.console import Console
    from envbuilder.layout import Layout


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", required=True, help="a finished build's output folder")
    parser.add_argument("--json", action="store_true", help="print smoke.json on standard output")


def run(args: argparse.Namespace, console: Console) -> int:
    import json
    import time

    from envbuilder import files, smoke
    from envbuilder.commands.options import tell_known_failures
    from envbuilder.errors import SmokeError, UsageError
    from envbuilder.layout import Layout

    layout = Layout.of(args.out)
    absent = [name for name in ("quantize", "serve") if not layout.environment(name).is_dir()]
    if absent:
        raise UsageError(f"{layout.out} has no envs/{absent[0]}", next="Build it first: `envbuilder build --out DIR`.")
    started = time.time()
    document = _prove(layout, console)
    files.write_json(layout.smoke, document)
    if args.json:
        print(json.dumps(document, indent=2, ensure_ascii=False))  # noqa: T201 - the one document
    else:
        _show(document, console)
    try:
        smoke.require(document)
    except SmokeError as error:  # told here: with --json the one document has been printed
        tell_known_failures(layout, console, since=started)
        console.error(error)
        return error.exit_code
    return 0 if document["exact"] else 1


def _prove(layout: Layout, console: Console) -> dict[str, Any]:
    """Run both stages, in a folder of their own; it is kept when one fails, for the replay line."""
    from envbuilder import files, smoke
    from envbuilder.build.environment import chosen_variables, server_arguments
    from envbuilder.smoke.results import Status

    for_quantize, for_serve, arguments = chosen_variables(layout, "quantize"), chosen_variables(layout, "serve"), server_arguments(layout)
    device, obstacle = smoke.look(layout.python("serve"), log=layout.log("smoke-serve"))
    if obstacle:
        return smoke.not_run(obstacle, device=device)
    work = layout.out / ".smoke"
    with console.step("quantize") as step:
        quantized = smoke.quantize(
            smoke.QuantizeRequest(
                python=layout.python("quantize"),
                work=work / "canary",
                log=layout.log("smoke-quantize"),
                device=device,
                variables=for_quantize,
            ),
            console,
        )
        step.detail = f"{quantized.stage.status}, NVFP4A16"
    if quantized.stage.status is not Status.PASSED:
        return smoke.document(quantized, None)
    with console.step("serve, decode") as step:
        served = smoke.serve(
            smoke.ServeRequest(
                python=layout.python("serve"),
                model=work / "canary" / "quantized",
                work=work / "serve",
                log=layout.log("smoke-serve"),
                device=device,
                variables=for_serve,
                arguments=arguments,
            ),
            console,
        )
        step.detail = f"{served.serve.status}, {served.decode.status}"
    if served.decode.status is Status.PASSED:
        files.remove_tree(work)
    return smoke.document(quantized, served)


def _show(document: dict[str, Any], console: Console) -> None:
    import textwrap

    rows = [[name, stage["status"], f"{stage['seconds']:.1f}"] for name, stage in document["stages"].items()]
    console.table("smoke", ["stage", "status", "seconds"], rows, right=[2])
    for title, key in (("proved", "proved"), ("not proved", "not_proved")):
        for text in document[key]:
            console.line(textwrap.fill(f"{title}: {text}", 80, subsequent_indent="  "))
    for finding in document["findings"]:
        console.line(textwrap.fill(f"known: {finding['name']}: {finding['text']}", 80, subsequent_indent="  "))
    reasons = {stage["reason"] for stage in document["stages"].values() if stage["status"] == "not-run"}
    for reason in sorted(reasons):
        console.line(textwrap.fill(f"not run: {reason}", 80, subsequent_indent="  "))
