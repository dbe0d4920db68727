"""The symbol check of a whole environment against a plain walk with pyelftools, and the atlas's offline answer.

    just bench-abi ENV

ENV is an environment of any architecture, the aarch64 serve environment for example (8.6 GB, 274 shared objects).
Importing vLLM is the contender in bench/build.py, where the environment is this machine's.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from timing import Contender, compare, machine

from envbuilder.binaries.environment import shared_objects

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = str(ROOT / "bin" / "envbuilder")
ATLAS_WHEEL = "vllm-0.23.0-2-cp38-abi3-manylinux_2_28_aarch64.whl"


def main() -> None:
    if sys.argv[1] == "--generic":
        generic(Path(sys.argv[2]))
        return
    environment = sys.argv[1]
    print(machine())
    ours = Contender(name="envbuilder abi", command=[LAUNCHER, "abi", environment])
    walk = Contender(name="a plain walk with pyelftools", command=[sys.executable, __file__, "--generic", environment])
    compare("every extension of the environment", ours, [walk], runs=3)
    start = Contender(name="envbuilder --version", command=[LAUNCHER, "--version"])
    answer = Contender(name="envbuilder abi WHEEL --torch 2.11.0", command=[LAUNCHER, "abi", ATLAS_WHEEL, "--torch", "2.11.0"])
    compare("an offline answer from the atlas", answer, [start], runs=7)


def generic(environment: Path) -> None:
    """What a plain check does: collect all that is defined anywhere, then look for each reference."""
    defined: set[str] = set()
    undefined: dict[str, list[str]] = {}
    for path in shared_objects(environment):
        with Path(path).open("rb") as file:
            try:
                elf = ELFFile(file)
            except ELFError:
                continue
            sonames = [
                tag.needed
                for section in elf.iter_sections()
                if isinstance(section, DynamicSection)
                for tag in section.iter_tags("DT_NEEDED")
            ]
            table = elf.get_section_by_name(".dynsym")
            if not isinstance(table, SymbolTableSection):
                continue
            names: list[str] = []
            for symbol in table.iter_symbols():
                if symbol.entry.st_shndx != "SHN_UNDEF":
                    defined.add(symbol.name)
                elif symbol.entry.st_info.bind != "STB_WEAK":
                    names.append(symbol.name)
            undefined[path] = names
            assert sonames is not None
    missing = {path: [name for name in names if name and name not in defined] for path, names in undefined.items()}
    print(sum(map(len, missing.values())), "names that no file here defines")


if __name__ == "__main__":
    main()
