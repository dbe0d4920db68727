"""Draw what a command prints on an 80-column terminal: `python docs/picture.py GOAL.svg TITLE COMMAND ARGUMENTS`.

The command runs under a pseudo-terminal, so it prints what a person sees; only what is left on the screen at the end is drawn.
"""

from __future__ import annotations

import os
import pty
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

COLUMNS = 80
# A bare SVG: no fonts from elsewhere, no window around it.
TEMPLATE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {terminal_width} {terminal_height}">
<style>.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; white-space: pre }}
{styles}</style><defs>{lines}</defs>
<rect width="100%" height="100%" rx="6" fill="#0c0c0c"/><g transform="translate(8, 4)" class="{unique_id}-matrix">{backgrounds}{matrix}</g></svg>
"""


def main() -> None:
    goal, title, command = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    output = bytearray()

    def keep(handle: int) -> bytes:
        data = os.read(handle, 1 << 16)
        output.extend(data)
        return data

    os.environ |= {"COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    pty.spawn(command, keep)
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w", encoding="utf-8"), force_terminal=True)  # noqa: SIM115, PTH123
    console.print(f"[bold]{title}[/bold]", highlight=False)
    for line in screen(output.decode(errors="replace")):
        console.print(Text.from_ansi(line))
    goal.write_text(console.export_svg(theme=MONOKAI, code_format=TEMPLATE), encoding="utf-8")


def screen(text: str) -> list[str]:
    """Return the lines that stay: a line that was erased, or overwritten after a carriage return, is gone."""
    lines: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        up = len(re.findall(r"\x1b\[1A", line))
        if up:
            del lines[-up:]
        kept = re.split(r"\r|\x1b\[2K", line)[-1]
        lines.append(re.sub(r"\x1b\[\??[0-9;]*[A-HJKSTfhlsu]", "", kept))
    return lines


if __name__ == "__main__":
    main()
