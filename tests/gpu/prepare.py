"""Fills a folder with what a GPU machine without a network lacks to run run.py: wheels of two locks, and built kernels.

  prepare.py [--out .gpu-carry] [--python 3.12.3] [--arch 9.0 | --no-kernels]

tool/      envbuilder's own dependencies, by lockfiles/envbuilder/tool.txt, without those that only builds use
quantize/  llmcompressor and what a machine with torch and transformers usually lacks of it, by dgx-spark's newest lock
kernels/   libraries with a few of vLLM's kernels for the GPU (see kernels.py), and what they were made from
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
_MOST = 40 * 2**20
_NOT_NEEDED = {"uv", "pywin32"}  # uv: nothing is installed there
_QUANTIZE = ("llmcompressor", "compressed-tensors", "loguru", "datasets", "dill", "multiprocess")
_SHARED = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection")  # of the tool's lock: it has the files for x86_64
_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (39, 34, 31, 28, 27, 24, 17)] + ["manylinux2014_x86_64", "manylinux1_x86_64"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu-carry", help="(default: %(default)s)")
    parser.add_argument("--python", default="3.12.3", help="of the GPU machine (default: %(default)s)")
    parser.add_argument("--arch", default="9.0", help="of the GPU (default: %(default)s)")
    parser.add_argument("--no-kernels", action="store_true", help="leave kernels/ as it is")
    parser.add_argument("--kernels", type=Path, metavar="DIR", help="take kernels from this folder of an earlier kernels.py")
    arguments = parser.parse_args()
    tool = requirements(ROOT / "lockfiles/envbuilder/tool.txt", python=arguments.python)
    quantize = requirements(ROOT / "lockfiles/dgx-spark/0.32.0/quantize.txt", python=arguments.python)
    download({name: lines for name, lines in tool.items() if name not in _NOT_NEEDED}, arguments.out / "tool", python=arguments.python)
    chosen = {name: quantize[name] for name in _QUANTIZE} | {name: tool[name] for name in _SHARED}
    download(chosen, arguments.out / "quantize", python=arguments.python)
    if arguments.kernels:
        shutil.rmtree(arguments.out / "kernels", ignore_errors=True)
        shutil.copytree(arguments.kernels, arguments.out / "kernels")
    elif not arguments.no_kernels:
        command = [sys.executable, HERE / "kernels.py", "--arch", arguments.arch, "--out", arguments.out / "kernels"]
        subprocess.run(command, check=True)
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{arguments.out}: {size / 2**20:.1f} MiB")
    return 0 if size < _MOST else 1


def requirements(lock: Path, *, python: str) -> dict[str, list[str]]:
    """Return a lock's requirements by name, each with its hashes: those that hold for this Python on x86_64 Linux."""
    machine = {
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
        "platform_machine": "x86_64",
        "sys_platform": "linux",
    }
    found: dict[str, list[str]] = {}
    for block in re.split(r"\n(?=\w)", lock.read_text(encoding="utf-8").replace("\\\n", "\n")):
        head, *rest = block.strip().split("\n")
        if head.startswith("#"):
            continue
        requirement = Requirement(head)
        # A lock for another machine (dgx-spark's) says so in every marker; what is taken from it is pure Python.
        marker = str(requirement.marker or "").replace('"aarch64"', '"x86_64"')
        if not marker or Marker(marker).evaluate(machine):
            found[requirement.name] = [f"{requirement.name}{requirement.specifier}", *re.findall(r"--hash=sha256:\w+", "".join(rest))]
    return found


def download(chosen: dict[str, list[str]], goal: Path, *, python: str) -> None:
    """Fetch wheels for the machine, each proved by the lock's hashes."""
    shutil.rmtree(goal, ignore_errors=True)
    goal.mkdir(parents=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("".join(f"{' '.join(lines)}\n" for lines in chosen.values()))
        file.flush()
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"]
        command += ["--python-version", python, "--implementation", "cp", *(f"--platform={name}" for name in _PLATFORMS)]
        subprocess.run([*command, "--dest", str(goal), "--requirement", file.name], check=True)


if __name__ == "__main__":
    sys.exit(main())
