from __future__ import annotations

import argparse
import importlib
import inspect
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from envbuilder import cli
from envbuilder.cli import COMMANDS, main
from envbuilder.errors import EnvbuilderError, FetchError, GateError, LockError, StorageError, UsageError

ROOT = Path(__file__).parents[2]


def envbuilder(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "envbuilder", *arguments], cwd=ROOT, text=True, check=False, timeout=60, **options)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A command named `probe` whose `run` a test sets."""
    module = ModuleType("envbuilder.commands.probe", "Probe.")
    module.configure = lambda parser: parser.add_argument("--json", action="store_true")  # type: ignore[attr-defined]
    module.run = lambda _args, _console: 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(COMMANDS, "probe", "a probe")
    return module


def raising(error: BaseException) -> Any:
    def run(_args: object, _console: object) -> int:
        raise error

    return run


# -- signals -----------------------------------------------------------------------------------------------------

_SLEEPING = """
import signal, sys, time, types
from envbuilder import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in a shell's background, as tests may, ignores it
probe = types.ModuleType("envbuilder.commands.probe", "Probe.")
probe.configure = lambda parser: None
def run(args, console):
    try:
        print("at work", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)
probe.run = run
sys.modules[probe.__name__] = probe
cli.COMMANDS["probe"] = "a probe"
sys.exit(cli.main(["probe"]))
"""


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_who_is_told_to_end_cleans_up_first(sign: signal.Signals) -> None:
    """CI cancels with SIGTERM: half-made layers and scratch folders of gigabytes would stay, and programs that were started."""
    with subprocess.Popen([sys.executable, "-c", _SLEEPING], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == "at work\n"
        child.send_signal(sign)
        told = child.communicate(timeout=30)
    assert (child.returncode, *told) == (130, "cleaned up\n", "interrupted; the next run goes on from here\n")


# -- exit codes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (GateError("x"), 1),
        (LockError("x"), 1),
        (FetchError("x"), 4),
        (StorageError("x"), 4),
        (KeyboardInterrupt(), 130),
        (ValueError("a bug"), 3),
        (AssertionError("a bug"), 3),
        (RecursionError(), 3),
        (FileNotFoundError(2, "a bug"), 3),
        (OSError(28, "No space left on device", "/somewhere"), 4),
        (BrokenPipeError(), 0),
    ],
)
def test_each_way_of_giving_up_has_its_exit_code(
    command: ModuleType, error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripts rely on these numbers. A closed pipe is no failure; a full disk is nobody's bug."""
    monkeypatch.setattr(cli, "_discard_output", lambda: None)
    command.run = raising(error)  # type: ignore[attr-defined]
    assert main(["probe"]) == code


@pytest.mark.parametrize(
    ("error", "reference"),
    [(GateError("x", why="y", next="z"), "gate"), (ValueError("a bug"), "internal-error"), (KeyboardInterrupt(), "interrupted")],
)
def test_with_json_a_failure_is_exactly_one_document(
    command: ModuleType, error: BaseException, reference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command.run = raising(error)  # type: ignore[attr-defined]
    main(["probe", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "envbuilder/error/1"
    assert document["error"]["reference"] == reference
    assert document["error"].keys() == {"reference", "what", "why", "next"}


def test_without_json_standard_output_stays_empty_on_failure(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    command.run = raising(GateError("x"))  # type: ignore[attr-defined]
    main(["probe"])
    assert capsys.readouterr().out == ""


def test_a_bug_is_called_one_with_the_traceback_to_report(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    command.run = raising(ValueError("off by one"))  # type: ignore[attr-defined]
    main(["probe"])
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "error[internal-error]: ValueError: off by one" in said
    assert "fault of envbuilder" in said


def test_an_expected_failure_shows_no_traceback(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    command.run = raising(LockError("stale", next="lock again"))  # type: ignore[attr-defined]
    main(["probe"])
    assert capsys.readouterr().err == "error[lock]: stale\n  next: lock again\n"


def test_every_error_has_an_exit_code_of_the_contract_and_a_reference_of_its_own() -> None:
    def below(kind: type[EnvbuilderError]) -> set[type[EnvbuilderError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    kinds = [kind for kind in below(EnvbuilderError) if kind.__module__.startswith("envbuilder.")]
    assert {kind.exit_code for kind in kinds} <= {1, 2, 3, 4}
    references = [kind.reference for kind in kinds]
    assert len(references) == len(set(references)), "two kinds of error could not be told apart by a script"


# -- what is typed -----------------------------------------------------------------------------------------------


def test_an_unknown_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["biuld"]) == 2
    assert "Did you mean 'build'?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["targets", "--nonsense"], ["targets", "--js"], ["build", "--vllm", "nowhere"], ["build", "--out"]])
def test_a_wrong_option_is_usage_and_names_the_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An abbreviated --json would print a document that `main` does not know of."""
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error[usage]: ")
    assert f"envbuilder {arguments[0]} --help" in said


def test_a_wrong_option_with_json_is_a_document_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "--json", "--nonsense"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["reference"] == "usage"


def test_json_after_the_dashes_belongs_to_the_other_program(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    command.configure = lambda parser: parser.add_argument("rest", nargs=argparse.REMAINDER)  # type: ignore[attr-defined]
    command.run = raising(GateError("x"))  # type: ignore[attr-defined]
    assert main(["probe", "--", "prog", "--json"]) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--help"], 0), (["-h"], 0), (["help"], 0), (["--version"], 0)])
def test_the_overview_names_every_command_and_fits(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == code
    printed = capsys.readouterr().out
    if arguments != ["--version"]:
        assert all(f"  {name} " in printed for name in COMMANDS)
    assert max(map(len, printed.splitlines())) <= 80


# -- every command -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_keeps_the_shape(name: str) -> None:
    """The table promises a module with a description, `configure(parser)` and `run(args, console)`."""
    module = importlib.import_module(f"envbuilder.commands.{name.replace('-', '_')}")
    assert module.__doc__
    assert len(inspect.signature(module.configure).parameters) == 1
    assert list(inspect.signature(module.run).parameters) == ["args", "console"]
    parser = argparse.ArgumentParser()
    module.configure(parser)
    for action in parser._actions:
        assert action.help, f"{action.option_strings or action.dest} is not explained"


def test_every_module_of_commands_is_in_the_table() -> None:
    modules = {path.stem for path in (ROOT / "envbuilder" / "commands").glob("[!_]*.py")} - {"options"}
    assert modules == {name.replace("-", "_") for name in COMMANDS}


def test_the_help_of_every_command_fits_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    wide = []
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        wide += [(name, line) for line in capsys.readouterr().out.splitlines() if len(line) > 80]
    assert wide == []


def test_an_example_in_a_description_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    assert "\n    envbuilder run -- python -m vllm.entrypoints.openai.api_server --model DIR\n" in capsys.readouterr().out


def test_help_of_any_command_imports_no_heavy_library() -> None:
    """`--help` in 0.15 s is a promise; importing rich or pydantic alone costs that."""
    code = f"""
import sys, io, contextlib
from envbuilder.cli import main
for name in {list(COMMANDS)!r}:
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([name, "--help"]) == 0
    loaded = {{"rich", "pydantic", "requests", "packaging", "elftools", "pynvml", "torch"}} & set(sys.modules)
    assert not loaded, (name, loaded)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- the real program and its pipes ------------------------------------------------------------------------------


def test_a_reader_that_goes_away_is_no_failure() -> None:
    """`envbuilder targets | head -1` must end quietly: no traceback, no code 120 from the interpreter's last flush."""
    reading, writing = os.pipe()
    os.close(reading)
    done = envbuilder("targets", "--json", stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert done.returncode == 0
    assert "BrokenPipe" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize("arguments", [["targets", "--json"], ["targets"]])
def test_a_result_that_is_lost_is_not_code_0(arguments: list[str]) -> None:
    """Standard output on a full disk: the caller's file is empty, and must not be taken for the result."""
    with Path("/dev/full").open("w") as full:
        done = envbuilder(*arguments, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 4
    assert "cannot write to standard output" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("surroundings", [{"LANG": "C"}, {"LC_ALL": "POSIX"}, {"PYTHONIOENCODING": "ascii"}, {}])
def test_a_poor_locale_is_no_obstacle(surroundings: dict[str, str]) -> None:
    """Tables hold arrows and boxes: an ASCII terminal must get something else instead of a UnicodeEncodeError."""
    done = envbuilder("targets", env=surroundings, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "cpu" in done.stdout


def test_control_c_is_130_and_says_that_nothing_is_lost(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    command.run = raising(KeyboardInterrupt())  # type: ignore[attr-defined]
    assert main(["probe"]) == 130
    assert capsys.readouterr().err == "interrupted; the next run goes on from here\n"


def test_a_captured_standard_output_without_reconfigure_will_do(command: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert main(["probe"]) == 0
