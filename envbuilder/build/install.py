"""Putting locked wheels into a new environment: with uv, from the store alone, for this machine or for another one.

For this machine it is a virtual environment and `uv pip sync`. For another one the same wheels are unpacked by `uv pip
install --target`, and what uv then wrote for this machine's Python (the programs in bin/) is made anew for the other's.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import io
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from envbuilder.errors import HashMismatchError, ProgramError
from envbuilder.facts.site_packages import find_site
from envbuilder.files import write_atomic
from envbuilder.uv import run_uv

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envbuilder.build.interpreters import Interpreter
    from envbuilder.console import Console
    from envbuilder.locking.model import LockedWheel
    from envbuilder.store.cache import Store
    from envbuilder.targets.model import Target

# A program of a relocatable environment starts the interpreter that lies beside it (as uv and virtualenv write it).
_SHEBANG = b"#!/bin/sh\n'''exec' \"$(dirname -- \"$(realpath -- \"$0\")\")\"/'python' \"$0\" \"$@\"\n' '''\n"


@dataclass(frozen=True, kw_only=True)
class Installer:
    """Installs wheels from a store into fresh folders.

    `wheels` are those of all environments that are made: uv unpacks a wheel once for each folder that it finds it in.
    """

    target: Target
    interpreter: Interpreter
    store: Store
    wheels: Sequence[LockedWheel]
    console: Console
    scratch: Path

    def install(self, name: str, environment: Path, wheels: Sequence[LockedWheel], *, log: Path) -> Path:
        """Make an environment in a folder that is not there yet; return its site-packages.

        Raises HashMismatchError if a stored wheel was damaged (it is removed from the store), ProgramError otherwise.
        """
        requirements = self.scratch / f"{name}.txt"
        lines = (f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.file.sha256}\n" for wheel in wheels)
        requirements.write_text("".join(lines), encoding="utf-8")
        pairs = [(wheel.file.sha256, wheel.file.filename) for wheel in wheels]
        site = self._foreign_skeleton(environment) if self.interpreter.foreign else self._virtual_environment(environment, log)
        command: list[str | Path] = ["pip", *self._mode(environment, site), "--require-hashes", "--no-index", "--no-build", "--offline"]
        command += ["--find-links", self.store.link_folder({(wheel.file.sha256, wheel.file.filename) for wheel in self.wheels})]
        command += ["-r", requirements] if self.interpreter.foreign else [requirements]
        try:
            with self._progress(name, len(wheels), site):
                # No INSTALLER, REQUESTED or direct_url.json: they say how, not what, and differ from one time to the next.
                quiet = {"UV_NO_INSTALLER_METADATA": "1"}
                run_uv(command, cache=self.store.uv_cache, what=f"installing into envs/{name}", log=log, variables=quiet)
        except ProgramError as error:
            raise self._explained(error, pairs) from error
        if self.interpreter.foreign:
            settle_programs(site, environment / "bin")
        return site

    def _virtual_environment(self, environment: Path, log: Path) -> Path:
        command: list[str | Path] = ["venv", "--relocatable", "--python", self.interpreter.path, "--no-project", environment]
        run_uv(command, cache=self.store.uv_cache, what="making a virtual environment", log=log)
        site = find_site(environment)
        assert site is not None  # noqa: S101 - uv just made it
        return site

    def _foreign_skeleton(self, environment: Path) -> Path:
        """Make what PEP 405 calls a virtual environment, around an interpreter that is not on this machine."""
        minor = self.interpreter.minor
        site = environment / f"lib/python{minor}/site-packages"
        site.mkdir(parents=True)
        (environment / "lib64").symlink_to("lib")
        programs = environment / "bin"
        programs.mkdir()
        (programs / "python").symlink_to(self.interpreter.path)
        for alias in ("python3", f"python{minor}"):
            (programs / alias).symlink_to("python")
        home = Path(self.interpreter.path).parent
        settings = f"home = {home}\nimplementation = CPython\nversion_info = {self.interpreter.version}\n"
        write_atomic(environment / "pyvenv.cfg", f"{settings}include-system-site-packages = false\nrelocatable = true\n")
        return site

    def _mode(self, environment: Path, site: Path) -> list[str | Path]:
        if not self.interpreter.foreign:
            return ["sync", "--python", environment / "bin" / "python"]
        platform = f"{self.interpreter.machine}-manylinux_{self.target.glibc.replace('.', '_')}"
        return ["install", "--no-deps", "--target", site, "--python-version", self.interpreter.minor, "--python-platform", platform]

    def _explained(self, error: ProgramError, pairs: Sequence[tuple[str, str]]) -> ProgramError | HashMismatchError:
        damaged = self.store.evict_damaged(pairs)
        if not damaged:
            return error
        return HashMismatchError(
            f"{', '.join(damaged)} in the store had other bytes than the lock names",
            why="The file was changed after it was fetched. It has been removed from the store.",
            next="Run the same command again: it fetches the file anew.",
        )

    @contextlib.contextmanager
    def _progress(self, name: str, total: int, site: Path) -> Iterator[None]:
        """Show how many distributions have arrived, which is all that can be seen from outside uv."""
        done = threading.Event()

        def watch() -> None:
            seen = 0
            while not done.wait(0.5):
                now = sum(1 for _ in site.glob("*.dist-info"))
                progress.advance(now - seen)
                seen = now

        with self.console.progress(f"installing {name}", total, unit="distributions") as progress:
            thread = threading.Thread(target=watch, daemon=True)
            thread.start()
            try:
                yield
            finally:
                done.set()
                thread.join()


def settle_programs(site: Path, programs: Path) -> None:
    """Move the programs of a `--target` install to where an environment has them, under its own interpreter.

    uv starts them with this machine's Python; a relocatable start takes its place, and the RECORDs are put right.
    """
    (site / ".lock").unlink(missing_ok=True)  # uv's lock on the folder, which it leaves behind
    source = site / "bin"
    if not source.is_dir():
        return
    for record in sorted(site.glob("*.dist-info/RECORD")):
        rows = list(csv.reader(io.StringIO(record.read_text(encoding="utf-8"))))
        if not any(row and row[0].startswith("bin/") for row in rows):
            continue
        for row in rows:
            if row and row[0].startswith("bin/"):
                row[:] = _settle(source / row[0].removeprefix("bin/"), programs)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_atomic(record, text.getvalue())
    source.rmdir()


def _settle(program: Path, programs: Path) -> list[str]:
    """Move one program; return its row of RECORD: path, hash, size (PEP 376 and 427)."""
    content = program.read_bytes()
    first, _, rest = content.partition(b"\n")
    if first.startswith(b"#!") and b"python" in first:
        content = _SHEBANG + rest
    goal = programs / program.name
    write_atomic(goal, content, mode=0o755)
    program.unlink()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return [f"../../../bin/{program.name}", f"sha256={digest}", str(len(content))]
