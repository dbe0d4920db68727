"""Makes tiny real ELF files with gcc's assembler and linker, in milliseconds each, and the same one only once."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Forge:
    """Makes shared objects below one folder."""

    root: Path

    def so(
        self,
        path: str,
        *,
        defines: Sequence[str] = (),
        uses: Sequence[str] = (),
        weak: Sequence[str] = (),
        needs: Sequence[str] = (),
        soname: str | None = None,
        flags: Sequence[str] = (),
        machine: int | None = None,
    ) -> Path:
        """Make a library that defines and refers to the given names (mangled as they should be in the file).

        `needs`: paths of libraries made before; each is linked by its soname. `machine`: e_machine, put in afterwards.
        `flags`: of the linker, through gcc; a file that they name is read here, and belongs to what is made.
        """
        goal = self.root / path
        goal.parent.mkdir(parents=True, exist_ok=True)
        scripts = tuple(Path(flag.rpartition("=")[2]).read_text() for flag in flags if flag.startswith("-Wl,--version-script="))
        others = tuple(flag for flag in flags if not flag.startswith("-Wl,--version-script="))
        name = (f"-Wl,-soname,{soname}",) if soname else ()
        libraries = tuple((self.root / need).read_bytes() for need in needs)
        goal.write_bytes(_linked(_source(defines, uses, weak), (*name, *others), scripts, libraries))
        if machine is not None:
            data = bytearray(goal.read_bytes())
            data[18:20] = machine.to_bytes(2, "little")
            goal.write_bytes(data)
        return goal

    def file(self, path: str, text: str = "") -> Path:
        goal = self.root / path
        goal.parent.mkdir(parents=True, exist_ok=True)
        goal.write_text(text)
        return goal


@functools.cache
def _linked(source: str, flags: tuple[str, ...], scripts: tuple[str, ...], libraries: tuple[bytes, ...]) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        goal, code = folder / "made.so", folder / "code.s"
        code.write_text(source)
        for number, script in enumerate(scripts):
            (folder / f"{number}.map").write_text(script)
        for number, library in enumerate(libraries):
            (folder / f"{number}.so").write_bytes(library)
        inputs = [code, *(folder / f"{number}.so" for number in range(len(libraries)))]
        maps = [f"-Wl,--version-script={folder / f'{number}.map'}" for number in range(len(scripts))]
        command = ["gcc", "-shared", "-nostdlib", "-Wl,--no-as-needed", *flags, *maps, "-o", goal, *inputs]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return goal.read_bytes()


def _source(defines: Sequence[str], uses: Sequence[str], weak: Sequence[str]) -> str:
    """Return assembly, which spares starting a compiler: functions of one byte, and pointers to what is referred to."""
    lines = [".text", *(f".globl {name}\n.type {name}, %function\n{name}: .byte 0" for name in defines)]
    lines += [".data", *(f".weak {name}" for name in weak), *(f".dc.a {name}" for name in (*uses, *weak))]
    return "\n".join([*lines, '.section .note.GNU-stack,"",%progbits']) + "\n"
