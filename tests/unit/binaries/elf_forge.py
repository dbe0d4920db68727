"""Makes tiny real ELF files with gcc, in milliseconds each."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


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
        """Compile a library that defines and refers to the given names (mangled as they should be in the file).

        `needs`: paths of libraries made before; each is linked by its soname. `machine`: e_machine, put in afterwards.
        """
        goal = self.root / path
        goal.parent.mkdir(parents=True, exist_ok=True)
        source = goal.with_suffix(".c")
        source.write_text(_source(defines, uses, weak))
        name = ["-Wl,-soname," + soname] if soname else []
        libraries = [str(self.root / need) for need in needs]
        command = ["gcc", "-shared", "-fPIC", "-nostdlib", "-Wl,--no-as-needed", *name, *flags, "-o", str(goal), str(source), *libraries]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        source.unlink()
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


def _source(defines: Sequence[str], uses: Sequence[str], weak: Sequence[str]) -> str:
    lines = [f'void d{i}(void) __asm__("{name}"); void d{i}(void) {{}}' for i, name in enumerate(defines)]
    lines += [f'extern void u{i}(void) __asm__("{name}"); void *p{i} = (void *)u{i};' for i, name in enumerate(uses)]
    lines += [f'extern void w{i}(void) __asm__("{name}") __attribute__((weak)); void *q{i} = (void *)w{i};' for i, name in enumerate(weak)]
    return "\n".join(lines) + "\n"
