from __future__ import annotations

import contextlib
import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from envbuilder import console as console_module
from envbuilder.console import Console
from envbuilder.errors import GateError

ROOT = Path(__file__).parents[2]


def test_a_step_that_ends_shows_its_seconds_and_what_it_did(console: Console, said: io.StringIO) -> None:
    with console.step("fetch") as step:
        step.detail = "2 wheels"
    assert said.getvalue() == "✓ fetch                 0.0 s  2 wheels\n"
    assert step.seconds > 0


def test_a_step_that_fails_is_closed_as_one_and_the_error_goes_on(console: Console, said: io.StringIO) -> None:
    with pytest.raises(RuntimeError), console.step("fetch"):
        raise RuntimeError
    assert said.getvalue() == "✗ fetch  0.0 s\n"


def test_a_skipped_step_says_nothing(console: Console, said: io.StringIO) -> None:
    with console.step("fetch") as step:
        step.skipped = True
    assert said.getvalue() == ""


def test_where_nobody_looks_progress_is_a_line_now_and_then(console: Console, said: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar redrawn ten times a second would fill a CI log; nothing at all for minutes looks like a hang."""
    monkeypatch.setattr(console_module, "_PLAIN_INTERVAL_S", 0)
    with console.progress("fetching", 10_000_000) as progress:
        progress.advance(2_500_000)
    with console.progress("installing", 3, unit="distributions") as progress:
        progress.advance(1)
    assert said.getvalue() == "  fetching: 2.5 MB of 10.0 MB\n  installing: 1 of 3 distributions\n"


def test_an_unknown_total_is_not_shown_as_nothing(console: Console, said: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "_PLAIN_INTERVAL_S", 0)
    with console.progress("fetching", 0) as progress:
        progress.advance(2_500_000)
    assert said.getvalue() == "  fetching: 2.5 MB\n"


@pytest.mark.parametrize(
    ("called", "named"),
    [("", "envbuilder"), ("bin/envbuilder", "bin/envbuilder"), ("/my tools/bin/envbuilder", "'/my tools/bin/envbuilder'")],
)
def test_what_to_do_next_can_be_typed_as_it_stands(
    called: str, named: str, console: Console, said: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever works from a clone has no `envbuilder` on PATH, and reads "command not found" on top of the error."""
    monkeypatch.setenv("ENVBUILDER_COMMAND", called)
    console.error(GateError("no lock", next="Run `envbuilder lock`, then `envbuilder build`. See docs of envbuilder itself."))
    assert said.getvalue().splitlines()[-1] == f"  next: Run `{named} lock`, then `{named} build`. See docs of envbuilder itself."


def test_quick_progress_stays_silent(console: Console, said: io.StringIO) -> None:
    with console.progress("fetching", 10) as progress:
        progress.advance(10)
    assert said.getvalue() == ""


def test_an_error_has_its_reference_and_every_line_of_its_reason(console: Console, said: io.StringIO) -> None:
    console.error(GateError("a gate", why="one\ntwo", next="do"))
    assert said.getvalue() == "error[gate]: a gate\n  why:  one\n        two\n  next: do\n"


def test_a_table_goes_to_standard_output_and_fits_80_columns(console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    console.table("Title", ("name", "size"), [("a" * 120, "1 B"), ("[bold]literal", "2 B")], right=(1,))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert printed.replace("\n", "").replace(" ", "").count("a") >= 120, "a long word is folded, never cut"


def test_with_json_standard_output_is_left_to_the_document(said: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    Console(json_mode=True, stream=said).table("Title", ("name",), [("row",)])
    assert capsys.readouterr().out == ""
    assert "row" in said.getvalue()


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("TERM", "dumb")])
def test_nothing_is_drawn_where_it_would_be_noise(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    assert Console(stream=Terminal()).interactive
    monkeypatch.setenv(name, value)
    assert not Console(stream=Terminal()).interactive


def test_on_a_terminal_a_bar_and_its_step_share_one_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two consoles of rich would draw over each other, and a line printed meanwhile would be torn."""
    main_end, terminal = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    with os.fdopen(terminal, "w") as stream:
        console = Console(stream=stream)
        with console.step("fetch") as step, console.progress("fetching", 1000) as progress:
            progress.advance(400)
            console.line("warning: [red]one mirror[/red] is slow")
            step.detail = "done"
    parts = []
    with contextlib.suppress(OSError):  # EIO: the terminal is closed, and all of it was read
        while part := os.read(main_end, 1 << 16):
            parts.append(part)
    os.close(main_end)
    drawn = b"".join(parts).decode()
    assert "fetching" in drawn
    assert "warning: [red]one mirror[/red] is slow\r\n" in drawn, "what is printed is no markup"
    assert drawn.endswith("done\r\n")
    assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h") == 1, "the cursor is hidden and shown again, once"


def test_one_line_does_not_pay_for_rich() -> None:
    code = "import sys; from envbuilder.console import Console; Console().line('x'); print('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "False\n"
