"""The GPU code of a vLLM's five largest files: envbuilder against cuobjdump, which must name every piece too.

    just bench-gpu-code ENV CUOBJDUMP

ENV holds vllm/; CUOBJDUMP is the program (in the wheel nvidia-cuda-cuobjdump).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from timing import Contender, compare, machine

from envbuilder.binaries.environment import shared_objects, site_packages_of

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = str(ROOT / "bin" / "envbuilder")


def main() -> None:
    if sys.argv[1] == "--cuobjdump":
        for path in sys.argv[3:]:
            subprocess.run(
                [sys.argv[2], "--list-elf", "--list-ptx", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
            )
        return
    root, program = site_packages_of(Path(sys.argv[1])), sys.argv[2]
    files = sorted(shared_objects(root / "vllm"), key=lambda path: Path(path).stat().st_size, reverse=True)[:5]
    print(machine())
    print("".join(f"  {Path(path).stat().st_size / 1e6:6.1f} MB  {Path(path).name}\n" for path in files), end="")
    ours = Contender(name="envbuilder gpu-code", command=[LAUNCHER, "gpu-code", str(root / "vllm")])
    theirs = Contender(name="cuobjdump --list-elf --list-ptx", command=[sys.executable, __file__, "--cuobjdump", program, *files])
    compare("all GPU code in them (ours reads the rest of vllm/ too)", ours, [theirs], runs=3)


if __name__ == "__main__":
    main()
