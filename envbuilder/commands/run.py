"""Run a command inside a built environment, with the right variables.

    envbuilder run -- python -m vllm.entrypoints.openai.api_server --model DIR

The command takes this process's place: it gets its signals and its exit code is the command's.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from envbuilder.console import Console


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", help="a build's output folder (default: .envbuilder/<this machine's target>)")
    parser.add_argument("--env", choices=("serve", "quantize"), default="serve", help="which of its environments (default: serve)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the command and its arguments")


def run(args: argparse.Namespace, console: Console) -> NoReturn:  # noqa: ARG001 - every command has the same shape
    import os
    import shutil

    from envbuilder.build.environment import environment_variables
    from envbuilder.commands.options import default_out, fitting_target
    from envbuilder.errors import ProgramError, UsageError
    from envbuilder.layout import Layout

    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError("no command was given", next="For example: `envbuilder run --out DIR -- python -c 'import vllm'`")
    layout = Layout.of(args.out or default_out(fitting_target()))
    variables = environment_variables(layout, args.env)
    program = shutil.which(command[0], path=variables["PATH"])
    if program is None:
        raise ProgramError(
            f"{command[0]} is neither in envs/{args.env} nor on PATH", next="Check the name; the environment has what its lock names."
        )
    os.execve(program, command, variables)  # noqa: S606 - no shell is wanted
