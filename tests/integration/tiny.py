"""A target of two pure-Python distributions: every stage but the smoke test, in a second and without a network."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]

TARGET = """
schema = "envbuilder/target/1"
name = "tiny"
summary = "two small distributions"
platforms = ["linux/x86_64", "linux/aarch64"]
glibc = "2.17"
python = ">=3.11,<3.15"
device = "cpu"
default-release = "1"

[releases."1"]
vllm = "published"

[releases."1".serve]
requires = ["beta"]

[[releases."1".serve.gates]]
kind = "version"
distribution = "beta"
specifier = ">=1"
why = "the tests say so"

[releases."1".quantize]
requires = ["alpha==1.0"]
"""


def make_wheel(folder: Path, name: str, *, requires: str = "", code: str = "x = 1\n", version: str = "1.0") -> Path:
    """Write a wheel (PEP 427) with one module."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in files.items():
            archive.writestr(zipfile.ZipInfo(member), text)  # without the time: the same wheel has the same hash
    return path


_made_before: dict[str, bytes] = {}


@dataclass
class Tiny:
    """A user of the target: a folder with all that is theirs, and nothing of this machine's settings."""

    root: Path
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        make_wheel(self.wheels, "alpha")
        make_wheel(self.wheels, "beta", requires="alpha")
        self.target.parent.mkdir(parents=True)
        self.target.write_text(TARGET, encoding="utf-8")
        (self.root / "home").mkdir()
        self.variables = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.root / "home"),
            "ENVBUILDER_CONFIG": str(self.root / "config ü"),
            "ENVBUILDER_CACHE": str(self.root / "cache ö"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "UV_FIND_LINKS": str(self.wheels),
        }

    @property
    def wheels(self) -> Path:
        return self.root / "my wheels"

    @property
    def target(self) -> Path:
        return self.root / "config ü" / "targets" / "tiny.toml"

    @property
    def lock(self) -> Path:
        return self.target.parent / "lockfiles" / "tiny" / "1"

    @property
    def cache(self) -> Path:
        return Path(self.variables["ENVBUILDER_CACHE"])

    @property
    def out(self) -> Path:
        return self.root / "out ä"

    def run(self, *arguments: str | Path, before: str = "", **changes: str | None) -> subprocess.CompletedProcess[str]:
        """Run the real command line in a process of its own, after the code in `before`; a change to None takes a variable away."""
        merged = {**self.variables, **changes}
        variables = {name: value for name, value in merged.items() if value is not None}
        code = f"import sys; sys.path.insert(0, sys.argv.pop(1)); {before or 'pass'}; from envbuilder.cli import main; sys.exit(main())"
        command = [sys.executable, "-I", "-c", code, str(ROOT), *map(str, arguments)]
        return subprocess.run(command, env=variables, cwd=self.root, capture_output=True, text=True, check=False, timeout=300)

    def build(self, *arguments: str | Path, **changes: str | None) -> subprocess.CompletedProcess[str]:
        return self.run(*self.build_arguments, *arguments, **changes)

    @property
    def build_arguments(self) -> tuple[str | Path, ...]:
        return ("build", "--target", "tiny", "--no-smoke", "--out", self.out)

    def locked(self) -> Tiny:
        """Lock, or take the lock that an earlier test made: the same wheels have the same lock."""
        if not _made_before:
            done = self.run("lock", "--target", "tiny")
            assert done.returncode == 0, done.stderr
            _made_before.update({path.name: path.read_bytes() for path in self.lock.iterdir()})
        self.lock.mkdir(parents=True, exist_ok=True)
        for name, payload in _made_before.items():
            (self.lock / name).write_bytes(payload)
        return self

    def stored(self) -> list[str]:
        """Return what the store holds as finished, and as partial, by name."""
        files = [path.name for path in (self.cache / "files").rglob("*.whl")]
        return sorted(files + [path.name for path in (self.cache / "partial").glob("*") if path.suffix != ".lock"])
