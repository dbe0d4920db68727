"""Write the hash locks of envbuilder's own environments (lockfiles/envbuilder/) from pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = (
    "--universal",
    "--python-version",
    "3.11",
    "--generate-hashes",
    "--no-annotate",
    "--no-header",
    "--no-emit-index-url",
    "--no-config",
)


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    tool = project["project"]["dependencies"]
    test = [*tool, *project["dependency-groups"]["test"]]
    folder = ROOT / "lockfiles" / "envbuilder"
    # The test environment first: the tool's own versions are then those that were tested.
    _compile(test, folder / "test.txt", ())
    _compile(tool, folder / "tool.txt", ("--constraints", str(folder / "test.txt")))


def _compile(requirements: list[str], goal: Path, extra: tuple[str, ...]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".in", encoding="utf-8") as file:
        file.write("\n".join(requirements) + "\n")
        file.flush()
        subprocess.run(
            [sys.executable, "-m", "uv", "pip", "compile", "--quiet", *OPTIONS, *extra, file.name, "--output-file", goal],
            check=True,
        )


if __name__ == "__main__":
    main()
