"""align, with torches made by gcc: small enough to read, real enough to be resolved, unpacked by uv and swapped."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shlex
import signal
import subprocess
import sys
import threading
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
    from collections.abc import Collection, Mapping

pytestmark = [pytest.mark.programs, pytest.mark.enable_socket]

_TAG = f"cp{sys.version_info[0]}{sys.version_info[1]}-cp{sys.version_info[0]}{sys.version_info[1]}-manylinux_2_28_x86_64"


def compile_library(goal: Path, source: str, *options: str | Path) -> Path:
    goal.parent.mkdir(parents=True, exist_ok=True)
    unit = goal.with_suffix(".cpp")
    unit.write_text(source)
    subprocess.run(["g++", "-shared", "-fPIC", "-nostdlib", "-o", goal, unit, *options], check=True)
    unit.unlink()
    return goal


_ASKS = (
    'Requires-Dist: filelock\nRequires-Dist: cuda-toolkit[cublas,cudart]==13.0.2; platform_system == "Linux"\n'
    'Requires-Dist: nvidia-nccl-cu13==2.28.9; platform_system == "Linux"\n'
)


def torch_wheel(folder: Path, version: str, function: str, *, cuda: bool = False) -> Path:
    """Make a wheel of a torch that defines `c10::FUNCTION()` and has one program; one for CUDA needs libcudart.so.13 too."""
    source = f"namespace c10 {{ void {function}() {{}} }}"
    needs = ["-Wl,--no-as-needed", cudart(folder / "cudart")] if cuda else []
    library = compile_library(folder / version / "libc10.so", source, "-Wl,-soname,libc10.so", *needs)
    info = f"torch-{version}.dist-info"
    members = {
        "torch/__init__.py": b"",
        "torch/version.py": f"__version__ = '{version}'\ncuda = {'13.0' if cuda else None!r}\n".encode(),
        "torch/lib/libc10.so": library.read_bytes(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n{_ASKS if cuda else ''}".encode(),
        f"{info}/entry_points.txt": f"[console_scripts]\ntorchrun = torch:run_{version.replace('.', '_')}\n".encode(),
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


def cudart(folder: Path) -> Path:
    return compile_library(folder / "libcudart.so.13", "", "-Wl,-soname,libcudart.so.13")


@pytest.fixture
def wheels(tmp_path: Path) -> dict[str, Path]:
    return {
        version: torch_wheel(tmp_path / "wheels", version, function) for version, function in (("2.10.0", "older"), ("2.11.0", "newer"))
    }


@pytest.fixture
def aligner(tmp_path: Path, wheels: Mapping[str, Path]) -> Aligner:
    return aligner_with(tmp_path / "store", wheels)


def aligner_with(root: Path, wheels: Mapping[str, Path]) -> Aligner:
    """Make an aligner whose only lock names these torches, with a store that has them."""
    store = Store(root)
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
    (folder / "bin" / "torchrun").write_text("the old one")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    with next(site.glob("torch-*.dist-info/RECORD")).open("a") as record:
        record.write("../../../bin/torchrun,,\n")
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


def fail_to_rename(monkeypatch: pytest.MonkeyPatch, places: Collection[tuple[str, ...]], error: OSError) -> None:
    """Have renames fail of what lies at the end of these paths."""
    real = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.parts[-3:] in places:
            raise error
        return real(self, target)

    monkeypatch.setattr(Path, "rename", failing)


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
    assert "run_2_11_0" in (env / "bin" / "torchrun").read_text()
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
    fail_to_rename(monkeypatch, {("new", "site", "torch")}, OSError(5, "Input/output error"))
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
            if self.parent.parts[-2:] == ("new", "site"):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, target)

        Path.rename = killed  # type: ignore[method-assign]
        aligner.apply(alignment)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert torch_build(alignment.site) is None, "the kill came too early to prove anything"
    with pytest.raises(UsageError, match="in the midst of an align"):
        aligner.plan(env)
    with aligner.undisturbed(env):
        again = aligner.plan(env)
    assert again.installed == "2.10.0"
    assert tree(env) == before


def test_a_restore_that_fails_keeps_the_old_torch(
    tmp_path: Path, wheels: Mapping[str, Path], aligner: Aligner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder with the only copy was removed, whatever had become of the renames before."""
    env = environment(tmp_path / "env", wheels["2.10.0"], "newer")
    before = tree(env)
    alignment = aligner.plan(env)
    places = {("new", "site", "torch"), ("old", "site", "torch")}
    fail_to_rename(monkeypatch, places, FileNotFoundError(2, "No such file or directory"))
    with pytest.raises(FileNotFoundError):
        aligner.apply(alignment)
    monkeypatch.undo()
    with aligner.undisturbed(env):
        assert tree(env) == before


def test_a_second_align_waits_and_a_dry_run_keeps_its_hands_off(tmp_path: Path, wheels: Mapping[str, Path], aligner: Aligner) -> None:
    """Each would take the other's half-made exchange for one that was interrupted, and undo it under its feet."""
    env = environment(tmp_path / "env", wheels["2.10.0"], "newer")
    alignment = aligner.plan(env)
    with aligner.undisturbed(env):
        (env / ".envbuilder-align").mkdir()  # as it is in the middle of an exchange
        with pytest.raises(UsageError, match="in the midst of an align"):
            aligner.plan(env)
        assert (env / ".envbuilder-align").is_dir()
        other = threading.Thread(target=lambda: [aligner.undisturbed(env).__enter__()], daemon=True)
        other.start()
        other.join(0.5)
        assert other.is_alive(), "the second one did not wait"
        assert (env / ".envbuilder-align").is_dir()
    other.join(30)
    assert not other.is_alive()
    assert alignment.chosen is not None


def cpu_torch_under_cuda(tmp_path: Path) -> tuple[Path, Aligner]:
    """Make the published trap as it is: a CPU-only torch 2.10 under an extension for the CUDA build of 2.11."""
    wheels = {
        "2.10.0": torch_wheel(tmp_path / "trap", "2.10.0", "older"),
        "2.11.0": torch_wheel(tmp_path / "trap", "2.11.0", "newer", cuda=True),
    }
    return environment(tmp_path / "env", wheels["2.10.0"], "newer"), aligner_with(tmp_path / "cuda-store", wheels)


def test_a_torch_is_put_in_where_its_cuda_libraries_are(tmp_path: Path) -> None:
    env, aligner = cpu_torch_under_cuda(tmp_path)
    site = next(env.glob("lib/python*/site-packages"))
    cudart(site / "nvidia/cu13/lib")
    alignment = aligner.plan(env)
    assert alignment.chosen is not None
    assert aligner.apply(alignment).ok


def test_a_torch_without_its_cuda_libraries_is_not_promised(tmp_path: Path) -> None:
    """--dry-run said that it fits, and the real run then failed: the libraries were taken to be there."""
    env, aligner = cpu_torch_under_cuda(tmp_path)
    before = tree(env)
    with pytest.raises(AbiError, match="has not the CUDA libraries") as caught:
        aligner.plan(env)
    assert "libcudart.so.13" in caught.value.why
    command = shlex.split(caught.value.next.splitlines()[-1])  # what brings them can be pasted
    assert command == [
        *["uv", "pip", "install", "--python"],
        f"{env}/bin/python",
        "cuda-toolkit[cublas,cudart]==13.0.2",
        "nvidia-nccl-cu13==2.28.9",
    ]
    assert tree(env) == before


def test_what_no_torch_can_cure_keeps_no_torch_out(tmp_path: Path, wheels: Mapping[str, Path], aligner: Aligner) -> None:
    """An MPI binding without MPI: "no torch fits" was the answer, with the right one there and with the wrong one."""
    for version, chosen in (("2.11.0", None), ("2.10.0", "2.11.0")):
        env = environment(tmp_path / version, wheels[version], "newer")
        site = next(env.glob("lib/python*/site-packages"))
        mpi = compile_library(tmp_path / f"mpi-{version}/libmpi.so.40", "", "-Wl,-soname,libmpi.so.40")
        compile_library(site / "mpi4py/MPI.abi3.so", 'extern "C" void PyInit_MPI() {}', "-Wl,--no-as-needed", mpi)
        alignment = aligner.plan(env)
        assert (alignment.chosen.version if alignment.chosen else None) == chosen
        report = aligner.apply(alignment)
        assert [extension.path for extension in report.extensions if extension.fails] == ["mpi4py/MPI.abi3.so"]


def test_an_environment_that_needs_no_torch_gets_none(tmp_path: Path, aligner: Aligner) -> None:
    """Two gigabytes of torch are no answer to a question that nobody asked."""
    (tmp_path / f"env/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages").mkdir(parents=True)
    assert aligner.plan(tmp_path / "env").chosen is None
