"""Why a program failed, from its log: the first cause, not the last line of what followed from it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# What vLLM and Python's multiprocessing put in front of a line: `(EngineCore pid=12) ERROR 11-23 14:40:34 [core.py:9] `.
_PREFIX = re.compile(r"^(?:\([^()]*pid=\d+\)\s?)?(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]\s?)?")
# The line that ends a traceback: a class name (dotted or not) at the line's start, by convention ending so.
_RAISED = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Warning)(?:: .*)?$")
_OTHER = re.compile(r"^(?:[\w./-]+: error: .+|guard: cannot start .+|Segmentation fault.*|Illegal instruction.*|Killed)$")
# Said by a process of a server about another that had failed before it.
_CASCADE = re.compile(
    r"Engine core initialization failed|EngineDeadError|EngineGenerateError|WorkerProc initialization failed|See root cause above"
)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def root_cause(log: str) -> str:
    """Return the log's first error that is not a consequence of another; empty when there is none.

    A chained traceback prints its cause first, and a server's parent process complains after its child: so it is the
    first raised line, unless that is one of the known complaints about somebody else.
    """
    first = ""
    for raw in log.splitlines():
        line = _PREFIX.sub("", _ANSI.sub("", raw)).rstrip()
        if not (_RAISED.match(line) or _OTHER.match(line)):
            continue
        if "Warning" in line.partition(":")[0]:
            continue
        if not _CASCADE.search(line):
            return line
        first = first or line
    return first


def last_line(log: str) -> str:
    """Return the last line that says something, without its prefix."""
    lines = (_PREFIX.sub("", _ANSI.sub("", raw)).strip() for raw in log.splitlines())
    return next((line for line in reversed([*lines]) if line), "")


def read_from(log: Path, start: int) -> str:
    """Return what was written to a log from byte `start` on: one log holds several runs. Empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(start)
            return file.read().decode(errors="replace")
    except OSError:
        return ""
