"""The command line: a table of commands, each a module in `commands/` that is imported only when it is asked for.

A command module has `configure(parser)` and `run(args, console) -> int`. Start time matters (`explain` and `--help`
answer in under 0.15 s), so nothing here imports a room of the house.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from envbuilder import __version__
from envbuilder.console import Console
from envbuilder.errors import EnvbuilderError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

# name -> what `envbuilder --help` says of it. The module is envbuilder.commands.<name>, with - as _.
COMMANDS = {
    "build": "build an environment for a target, prove it, and write its manifest",
    "lock": "resolve a target's release and write its locks, or check that they are current",
    "run": "run a command inside a built environment",
    "targets": "list what can be built, and which target fits this machine",
}
_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """argparse, with this project's way of saying what is wrong (and exit code 2, which is argparse's too)."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, next=f"See `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. No exception but a programming error leaves here, and that as code 3."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    console = Console(json_mode="--json" in arguments)
    try:
        return _dispatch(arguments, console)
    except EnvbuilderError as error:
        console.error(error)
        if console.json_mode:
            print(json.dumps({"schema": "envbuilder/error/1", "error": error.as_dict()}))  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        console.line("interrupted; the next run goes on from here")
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`| head`); see the note on SIGPIPE in Python's documentation.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the last net: a bug is reported as one
        return _report_bug(error, console)


def _dispatch(arguments: Sequence[str], console: Console) -> int:
    name = arguments[0] if arguments else "--help"
    if name in {"-h", "--help", "help"}:
        print(_overview())  # noqa: T201
        return 0 if arguments else 2
    if name in {"-V", "--version"}:
        print(f"envbuilder {__version__}")  # noqa: T201
        return 0
    if name not in COMMANDS:
        raise UnknownNameError("command", name, COMMANDS)
    module = importlib.import_module(f"envbuilder.commands.{name.replace('-', '_')}")
    parser = _Parser(prog=f"envbuilder {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    module.configure(parser)
    code: int = module.run(parser.parse_args(arguments[1:]), console)
    return code


def _overview() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: envbuilder COMMAND [options]\n\n"
        "A reproducible vLLM environment for NVIDIA DGX Spark, and the proof that it works.\n\n"
        f"commands:\n{rows}\n\n"
        "`envbuilder COMMAND --help` says more of each. Exit codes: 0 fine; 1 findings or a failed\n"
        "verification; 2 wrong usage or configuration; 3 envbuilder itself failed; 4 a step could\n"
        "not be carried out; 130 interrupted."
    )


def _report_bug(error: Exception, console: Console) -> int:
    import traceback

    console.line("".join(traceback.format_exception(error)))
    console.line(f"error[internal-error]: {type(error).__name__}: {error}")
    console.line("  next: this is a fault of envbuilder; please report it with the lines above")
    if console.json_mode:
        detail = {"reference": "internal-error", "what": f"{type(error).__name__}: {error}", "why": "", "next": ""}
        print(json.dumps({"schema": "envbuilder/error/1", "error": detail}))  # noqa: T201
    return 3
