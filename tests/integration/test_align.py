"""align, with torches made by gcc: small enough to read, real enough to be resolved, unpacked by uv and swapped."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envbuilder.build.align import Aligner
from envbuilder.console import Console
from envbuilder.errors import AbiError, UsageError
from envbuilder.facts.site_packages import distributions, torch_build
from envbuilder.locking.model import Lock, LockedFile, LockedRequirement
from envbuilder.store.cache import Store
from envbuilder.store.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = [pytest.mark.programs, pytest.mark.enable_socket]

_TAG = f"cp{sys.version_info[0]}{sys.version_info[1]}-cp{sys.version_info[0]}{sys.version_info[1]}-manylinux_2_28_x86_64"


def compile_library(goal: Path, source: str, *options: str | Path) -> Path:
    goal.parent.mkdir(parents=True, exist_ok=True)
    unit = goal.with_suffix(".cpp")
    unit.write_text(source)
    subprocess.run(["g++", "-shared", "-fPIC", "-nostdlib", "-o", goal, unit, *options], check=True)
    unit.unlink()
    return goal


def torch_wheel(folder: Path, version: str, function: str) -> Path:
    """Make a wheel of a torch that defines `c10::FUNCTION()` and nothing else."""
    library = compile_library(folder / version / "libc10.so", f"namespace c10 {{ void {function}() {{}} }}", "-Wl,-soname,libc10.so")
    info = f"torch-{version}.dist-info"
    members = {
        "torch/__init__.py": b"",
        "torch/version.py": f"__version__ = '{version}'\ncuda = None\n".encode(),
        "torch/lib/libc10.so": library.read_bytes(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {_TAG}\n".encode(),
    }
    wheel = folder / f"torch-{version}-{_TAG}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        rows = []
        for name, payload in members.items():
            archive.writestr(name, payload)
            digest = base64.urlsafe_b64encode(hashlib.sha256(payload).digest()).rstrip(b"=").decode()
            rows.append(f"{name},sha256={digest},{len(payload)}")
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]) + "\n")
    return wheel


@pytest.fixture
def wheels(tmp_path: Path) -> dict[str, Path]:
    return {
        version: torch_wheel(tmp_path / "wheels", version, function) for version, function in (("2.10.0", "older"), ("2.11.0", "newer"))
    }


@pytest.fixture
def aligner(tmp_path: Path, wheels: Mapping[str, Path]) -> Aligner:
    """An aligner whose only lock names both torches, in a store that has them."""
    store = Store(tmp_path / "store")
    requirements = []
    for version, wheel in wheels.items():
        payload = wheel.read_bytes()
        digest = hashlib.sha256(payload).hexdigest()
        place = store.path(digest, wheel.name)
        place.parent.mkdir(parents=True)
        place.write_bytes(payload)
        file = LockedFile(filename=wheel.name, sha256=digest, size=len(payload))
        requirements.append(LockedRequirement(name="torch", version=version, marker="", files=(file,)))
    lock = Lock(
        target="t", release="r", platforms=("linux/x86_64",), glibc="2.34", python=">=3.11", resolver="", intent="", digest="",
        environments={"serve": tuple(requirements), "quantize": ()},
    )  # fmt: skip
    return Aligner(store=store, settings=Settings(default_index=False), console=Console(stream=io.StringIO()), locks=[lock], offline=True)


def environment(folder: Path, wheel: Path, calls: str) -> Path:
    """Make an environment with that torch and an extension that calls `c10::CALLS()`."""
    site = folder / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    site.mkdir(parents=True)
    (folder / "bin").mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    source = f'namespace c10 {{ void {calls}(); }} extern "C" void PyInit_ext() {{ c10::{calls}(); }}'
    compile_library(
        site / "vllm" / "_C.abi3.so",
        source,
        "-Wl,--no-as-needed",
        "-Wl,--unresolved-symbols=ignore-all",
        site / "torch/lib/libc10.so",
    )
    other = site / "other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\nRequires-Dist: torch==2.11.0\n")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_torch_that_fits_is_put_in_and_nothing_else_is_touched(tmp_path: Path, wheels: Mapping[str, Path], aligner: Aligner) -> None:
    """The published trap: the extension was compiled against 2.11, and something brought 2.10."""
    env = environment(tmp_path / "env", wheels["2.10.0"], "newer")
    alignment = aligner.plan(env)
    assert alignment.installed == "2.10.0"
    assert alignment.chosen is not None
    assert alignment.chosen.version == "2.11.0"
    others = {path: payload for path, payload in tree(env).items() if "torch" not in path}
    report = aligner.apply(alignment)
    assert report.ok
    build = torch_build(alignment.site)
    assert build is not None
    assert build.version == "2.11.0"
    assert distributions(alignment.site) == {"other": "1.0", "torch": "2.11.0"}
    assert {path: payload for path, payload in tree(env).items() if "torch" not in path} == others
    assert aligner.plan(env).chosen is None, "the second time there must be nothing to do"


def test_planning_changes_nothing(tmp_path: Path, wheels: Mapping[str, Path], aligner: Aligner) -> None:
    """`--dry-run` is what a careful person does first."""
    env = environment(tmp_path / "env", wheels["2.10.0"], "newer")
    before = tree(env)
    aligner.plan(env)
    assert tree(env) == before


def test_an_environment_that_is_well_is_left_alone(tmp_path: Path, wheels: Mapping[str, Path], aligner: Aligner) -> None:
    env = environment(tmp_path / "env", wheels["2.11.0"], "newer")
    before = tree(env)
    alignment = aligner.plan(env)
    assert alignment.chosen is None
    aligner.apply(alignment)
    assert tree(env) == before


def test_when_no_torch_fits_each_is_named_with_its_reason(tmp_path: Path, wheels: Mapping[str, Path], aligner: Aligner) -> None:
    """Installing any torch then would be a guess."""
    env = environment(tmp_path / "env", wheels["2.10.0"], "never_defined")
    with pytest.raises(AbiError) as caught:
        aligner.plan(env)
    assert all(version in caught.value.why for version in ("2.10.0", "2.11.0"))


def test_a_folder_that_is_no_environment_is_a_usage_error(tmp_path: Path, aligner: Aligner) -> None:
    with pytest.raises(UsageError, match="no environment"):
        aligner.plan(tmp_path)


def test_what_was_there_comes_back_when_it_fails_halfway(
    tmp_path: Path, wheels: Mapping[str, Path], aligner: Aligner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk or a bug in the middle must not leave an environment without a torch."""
    env = environment(tmp_path / "env", wheels["2.10.0"], "newer")
    before = tree(env)
    alignment = aligner.plan(env)
    real = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.parent.name == "new" and self.name == "torch":
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        aligner.apply(alignment)
    monkeypatch.undo()
    assert tree(env) == before


def test_after_sigkill_in_the_middle_the_next_run_brings_the_old_one_back(
    tmp_path: Path, wheels: Mapping[str, Path], aligner: Aligner
) -> None:
    """Nobody runs a rollback by hand: the journal has to be found by itself."""
    env = environment(tmp_path / "env", wheels["2.10.0"], "newer")
    before = tree(env)
    alignment = aligner.plan(env)
    child = os.fork()
    if child == 0:
        real = Path.rename

        def killed(self: Path, target: Path) -> Path:
            if self.parent.name == "new":
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, target)

        Path.rename = killed  # type: ignore[method-assign]
        aligner.apply(alignment)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert torch_build(alignment.site) is None, "the kill came too early to prove anything"
    again = aligner.plan(env)
    assert again.installed == "2.10.0"
    assert tree(env) == before
