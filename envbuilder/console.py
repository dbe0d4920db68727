"""What a person sees: steps with their seconds, progress, tables. Everything goes to standard error but results.

On a terminal, rich draws; elsewhere plain lines appear, few enough for a log. rich is imported on first use: a
command that prints one line does not pay for it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TextIO

    import rich.console

    from envbuilder.errors import EnvbuilderError

_PLAIN_INTERVAL_S = 5.0


def own_name() -> str:
    """Return the name by which this program can be called again: in a clone it is on no PATH, and bin/envbuilder says how it was called."""
    called = os.environ.get("ENVBUILDER_COMMAND", "")
    if not called:
        return "envbuilder"
    import shutil  # noqa: PLC0415 - and with it four compressors, where a name is to be said

    return "envbuilder" if shutil.which("envbuilder") == called else called


class Step:
    """A step at work: `detail` is shown when it ends, `skipped` when there was nothing to do."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.detail = ""
        self.skipped = False
        self.seconds = 0.0


class Progress:
    """Bytes or items done, of a known total; thread-safe enough for workers that only call `advance`."""

    def __init__(self, console: Console, label: str, total: int, *, unit: str) -> None:
        self._console, self._label, self._total, self._unit = console, label, total, unit
        self._done = 0
        self._printed_at = time.monotonic()

    def advance(self, amount: int) -> None:
        self._done += amount
        self._draw()

    def _draw(self) -> None:
        now = time.monotonic()
        if now - self._printed_at >= _PLAIN_INTERVAL_S:
            self._printed_at = now
            from envbuilder.files import human_size  # noqa: PLC0415 - and with it hashlib and tempfile, for who downloads only

            in_bytes = self._unit == "bytes"
            done, total = (human_size(self._done), human_size(self._total)) if in_bytes else (str(self._done), str(self._total))
            of_total = f" of {total}" if self._total else ""  # a file of unknown size may be among them
            self._console.line(f"  {self._label}: {done}{of_total}{'' if in_bytes else ' ' + self._unit}")


class Console:
    """The terminal of one command. `json_mode` keeps standard output for the one document."""

    def __init__(self, *, json_mode: bool = False, stream: TextIO | None = None) -> None:
        self.json_mode = json_mode
        self.stream = stream or sys.stderr
        # One for all that is drawn: two would draw over each other, a step's spinner over a progress bar.
        self._drawing: rich.console.Console | None = None

    @property
    def interactive(self) -> bool:
        return self.stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")

    def rich(self, *, result: bool = False) -> rich.console.Console:
        """Return rich's console, on standard output for a result (unless that is kept for JSON)."""
        import rich.console  # noqa: PLC0415 - see the module's docstring

        if self._drawing and not result:
            return self._drawing
        stream = sys.stdout if result and not self.json_mode else self.stream
        width = None if stream.isatty() else 80
        console = rich.console.Console(file=stream, width=width, highlight=False, soft_wrap=False)
        if not result:
            self._drawing = console
        return console

    def line(self, text: str) -> None:
        if "`envbuilder " in text:  # to be typed as it stands
            import shlex  # noqa: PLC0415 - see the module's docstring

            text = text.replace("`envbuilder ", f"`{shlex.quote(own_name())} ")
        if self._drawing:  # a spinner or a bar may be on the screen: rich prints above it
            self._drawing.print(text, markup=False, soft_wrap=True)
        else:
            print(text, file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        self.line(f"warning: {text}")

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Announce a step, and close it with its seconds; a failure is closed as one."""
        step = Step(name)
        started = time.monotonic()
        status = contextlib.nullcontext() if not self.interactive else self.rich().status(f"{name} …")
        try:
            with status:
                yield step
        except BaseException:
            self.line(f"✗ {name}  {time.monotonic() - started:.1f} s")
            raise
        step.seconds = time.monotonic() - started
        if not step.skipped:
            self.line(f"✓ {name:<18} {step.seconds:6.1f} s  {step.detail}".rstrip())

    @contextlib.contextmanager
    def progress(self, label: str, total: int, *, unit: str = "bytes") -> Iterator[Progress]:
        """Show how far a long piece of work is; `unit` is "bytes" or the plural of what is counted."""
        if not self.interactive:
            yield Progress(self, label, total, unit=unit)
            return
        import rich.progress as rp  # noqa: PLC0415 - see the module's docstring

        columns: list[rp.ProgressColumn] = [rp.TextColumn("  {task.description}"), rp.BarColumn(bar_width=24)]
        if unit == "bytes":
            columns += [rp.DownloadColumn(), rp.TransferSpeedColumn(), rp.TimeRemainingColumn()]
        else:
            columns += [rp.MofNCompleteColumn(), rp.TextColumn(unit)]
        with rp.Progress(*columns, console=self.rich(), transient=True) as bar:
            task = bar.add_task(label, total=total or None)  # None: unknown, drawn as such
            drawn = Progress(self, label, total, unit=unit)
            drawn.advance = lambda amount: bar.advance(task, amount)  # type: ignore[method-assign]
            yield drawn

    def table(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
        """Print a result as a table; columns named in `right` are set to the right."""
        import rich.table  # noqa: PLC0415 - see the module's docstring
        from rich import box  # noqa: PLC0415

        table = rich.table.Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for index, heading in enumerate(headings):
            table.add_column(heading, justify="right" if index in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        # Rendered here but printed by `print`: rich would answer a closed pipe with an exit code of its own.
        console = self.rich(result=True)
        with console.capture() as rendered:
            console.print(table)
        print(rendered.get(), end="", file=console.file)

    def error(self, error: EnvbuilderError) -> None:
        """Print what / why / next; the reference stands first, to be searched for."""
        self.line(f"error[{error.reference}]: {error.what}")
        for label, text in (("why", error.why), ("next", error.next)):
            for number, row in enumerate(text.splitlines()):
                self.line(f"  {label + ':' if number == 0 else '':<6}{row}")
