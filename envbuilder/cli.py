"""The command line: a table of commands, each a module in `commands/` that is imported only when it is asked for.

A command module has `configure(parser)` and `run(args, console) -> int`. Start time matters (`explain` and `--help`
answer in under 0.15 s), so nothing here imports a room of the house.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import importlib
import os
import signal
import sys
import threading

from envbuilder import __version__
from envbuilder.console import Console
from envbuilder.errors import EnvbuilderError, StorageError, UnknownNameError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import NoReturn

# name -> what `envbuilder --help` says of it. The module is envbuilder.commands.<name>, with - as _.
COMMANDS = {
    "abi": "tell whether extensions load with a torch, without loading them",
    "align": "give an environment the torch that its extensions need",
    "atlas": "make or show the map of which vLLM loads with which torch",
    "build": "build an environment for a target, prove it, and write its manifest",
    "cache": "show what the store holds, or remove what no lock needs",
    "doctor": "find out what is wrong here, and how to mend it",
    "envs": "compare two environments or machines",
    "explain": "explain a finding of `doctor`",
    "gpu-code": "tell which GPU code files carry, and how it gets to run on a GPU",
    "image": "write the images of a build, load them, push them to a registry",
    "lock": "write a release's locks, or check that they are whole and current",
    "run": "run a command inside a built environment",
    "smoke": "prove a built environment again: quantize, serve, decode, compare",
    "targets": "list what can be built, and which target fits this machine",
    "verify": "check a build or an image against its lock; name what differs first",
}
_INTERRUPTED = 130
# At 700, Python's own figure, the modules of one command are searched for garbage, and have none, a dozen times.
_OBJECTS_PER_COLLECTION = 50_000


class _Parser(argparse.ArgumentParser):
    """argparse, with this project's way of saying what is wrong (and exit code 2, which is argparse's too)."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, next=f"See `{self.prog} --help`.")


class _Help(argparse.HelpFormatter):
    """A module's docstring as a description: paragraphs are wrapped to the terminal, indented lines left alone."""

    def __init__(self, prog: str) -> None:
        # argparse makes one for each option, only to see whether it would work; asking shutil for the terminal's width
        # imports four compressors.
        super().__init__(prog, width=_columns() - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(it if it.startswith(" ") else super(_Help, self)._fill_text(it, width, indent) for it in paragraphs)


def _columns() -> int:
    """Return the terminal's width as shutil.get_terminal_size does: COLUMNS, the terminal's own word, or 80."""
    stated = os.environ.get("COLUMNS", "")
    if stated.isdecimal() and int(stated) > 0:
        return int(stated)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):  # no terminal, or closed
        return 80


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. No exception leaves here: even a programming error becomes code 3."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    console = Console(json_mode="--json" in _own(arguments))
    gc.set_threshold(_OBJECTS_PER_COLLECTION)
    gc.enable()  # bin/envbuilder starts without
    try:
        with _terminable():
            return _delivered(lambda: _guarded(arguments, console))
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nobody is left to tell.
        _discard_output()
        return 0
    except OSError as error:
        # Standard output may be a file on a full disk: what was printed is lost then, so this cannot be code 0.
        _discard_output()
        failure = StorageError(f"cannot write {error.filename or 'to standard output'}", why=error.strerror or str(error))
        console.error(failure)
        return failure.exit_code


def program() -> int:
    """Run the command of this process, which ends with it: what is left then is not searched for garbage once more."""
    code = main()
    gc.freeze()
    return code


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Take SIGTERM for an interrupt: where CI cancels a job, too, programs that were started end, and what is half made goes."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # whoever set another answer, or none, wants it so
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _guarded(arguments: Sequence[str], console: Console) -> int:
    try:
        return _dispatch(arguments, console)
    except EnvbuilderError as error:
        console.error(error)
        _error_document(console, error.as_dict())
        return error.exit_code
    except KeyboardInterrupt:
        console.line("interrupted; the next run goes on from here")
        _error_document(console, {"reference": "interrupted", "what": "interrupted", "why": "", "next": ""})
        return _INTERRUPTED
    except SystemExit as end:  # argparse, after --help
        return int(end.code or 0)
    except BrokenPipeError:
        raise
    except Exception as error:  # the last net: a bug is reported as one
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise  # nobody's bug, wherever it happened
        return _report_bug(error, console)


def _delivered(work: Callable[[], int]) -> int:
    """Do the work and hand its output over here: at the interpreter's end it would be too late to say that it failed."""
    with contextlib.suppress(AttributeError):  # what a test captures with may have no such method
        # A terminal that knows only ASCII gets `\u2190`, not a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = work()
    sys.stdout.flush()
    return code


def _discard_output() -> None:
    """Let the interpreter's last flush go nowhere; see the note on SIGPIPE in Python's documentation."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _own(arguments: Sequence[str]) -> Sequence[str]:
    """Return the arguments that are ours: after `--` come those of another program."""
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _error_document(console: Console, error: dict[str, str]) -> None:
    """With --json, one document comes also when there is no result."""
    if console.json_mode:
        import json

        print(json.dumps({"schema": "envbuilder/error/1", "error": error}))  # noqa: T201


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
    parser = _Parser(
        prog=f"envbuilder {name}",
        description=module.__doc__,
        formatter_class=_Help,
        allow_abbrev=False,  # `--js` would be half of --json: understood here, unknown to `main`
    )
    module.configure(parser)
    code: int = module.run(parser.parse_args(arguments[1:]), console)
    return code


def _overview() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: envbuilder COMMAND [options]\n\n"
        "A reproducible vLLM environment for NVIDIA DGX Spark, and proof that it works.\n\n"
        f"commands:\n{rows}\n\n"
        "`envbuilder COMMAND --help` says more of each. Exit codes: 0 fine; 1 findings or\n"
        "a failed verification; 2 wrong usage or configuration; 3 envbuilder itself\n"
        "failed; 4 a step could not be carried out; 130 interrupted."
    )


def _report_bug(error: Exception, console: Console) -> int:
    import traceback

    console.line("".join(traceback.format_exception(error)))
    console.line(f"error[internal-error]: {type(error).__name__}: {error}")
    console.line("  next: this is a fault of envbuilder; please report it with the lines above")
    _error_document(console, {"reference": "internal-error", "what": f"{type(error).__name__}: {error}", "why": "", "next": ""})
    return 3
