"""--fix and --undo: nothing is deleted, everything comes back, and nothing outside of the environment is touched."""

from __future__ import annotations

import io
import shutil
from typing import TYPE_CHECKING

import pytest
from snapshots import SPARK, change, dist, with_dists

from envbuilder.cli import main
from envbuilder.console import Console
from envbuilder.doctor.examine import examine
from envbuilder.doctor.fixes import mend, plan
from envbuilder.doctor.mending import carry_out, undo_last
from envbuilder.errors import AbiError, StepError
from envbuilder.facts.environment import read_environment
from envbuilder.facts.model import CachedLibrary, Checkpoint, Toolkit
from envbuilder.facts.world import World

if TYPE_CHECKING:
    from pathlib import Path

    from envbuilder.facts.model import Snapshot


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVBUILDER_STATE", str(tmp_path / "state"))


def quiet() -> Console:
    return Console(stream=io.StringIO())


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def sick(tmp_path: Path) -> Snapshot:
    """An environment with pip's leftovers, a FlashInfer that does not match, and a neighbour that shares a folder."""
    site = tmp_path / "env/lib/python3.12/site-packages"
    files = {
        "~orch/__init__.py": "half",
        "torch/__init__.py": "whole",
        "flashinfer_cubin/cubins/a.cubin": "kernel",
        "shared/x.txt": "theirs",
        "flashinfer_cubin-0.6.13.dist-info/RECORD": "flashinfer_cubin/cubins/a.cubin,,6\nshared/x.txt,,6\n../../../../outside.txt,,1\n/etc/passwd,,1\nflashinfer_cubin-0.6.13.dist-info/RECORD,,\n",
        "other-1.dist-info/RECORD": "shared/x.txt,,6\n",
    }
    for name, text in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    cache = tmp_path / "home/.cache/flashinfer/0.6.8/121a"
    cache.mkdir(parents=True)
    (cache / "norm.so").write_text("kernel")
    snapshot = change(
        SPARK,
        environment__path=str(tmp_path / "env"),
        environment__site_packages=(str(site),),
        environment__leftovers=("~orch",),
        environment__jit_cache=(CachedLibrary(path=str(cache / "norm.so"), cudart="12"),),
    )
    return with_dists(snapshot, dist("flashinfer-python", "0.6.14"), dist("flashinfer-cubin", "0.6.13"))


def test_what_is_mended_is_set_aside_and_comes_back(sick: Snapshot, tmp_path: Path) -> None:
    before = tree(tmp_path)
    repairs = plan(sick, examine(sick))
    assert {repair.id for repair in repairs} == {"EB-ENV-006", "EB-FI-001", "EB-FI-002"}
    carry_out(repairs, quiet())
    site = tmp_path / "env/lib/python3.12/site-packages"
    assert not (site / "~orch").exists()
    assert not (site / "flashinfer_cubin").exists()
    assert not (tmp_path / "home/.cache/flashinfer").exists()
    assert (site / "torch/__init__.py").exists()
    assert (site / "shared/x.txt").exists(), "another distribution owns it too"
    assert undo_last(quiet()) == 0
    assert {name: text for name, text in tree(tmp_path).items() if not name.startswith("state/")} == before


def test_nothing_happens_without_a_yes(sick: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, stream = tree(tmp_path), io.StringIO()
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    result = examine(sick)
    assert mend(sick, result, Console(stream=stream), yes=False, again=lambda: pytest.fail("it was not asked to go on")) is result
    assert tree(tmp_path) == before
    assert "EB-FI-001" in stream.getvalue(), "the plan is shown all the same"


@pytest.mark.parametrize(("answer", "done"), [("y\n", True), ("YES\n", True), ("\n", False), ("n\n", False), ("", False)])
def test_a_person_is_asked_and_only_a_yes_is_one(
    answer: str,
    done: bool,  # noqa: FBT001
    sick: Snapshot,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer))
    stream = io.StringIO()
    mend(sick, examine(sick), Console(stream=stream), yes=False, again=lambda: examine(SPARK))
    assert "Go ahead? [y/N]" in stream.getvalue()
    assert (tmp_path / "env/lib/python3.12/site-packages/~orch").exists() is not done


def test_it_is_examined_again_afterwards(sick: Snapshot) -> None:
    healthy = examine(SPARK)
    assert mend(sick, examine(sick), quiet(), yes=True, again=lambda: healthy) is healthy


def test_a_mend_that_was_killed_halfway_can_be_taken_back(sick: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal comes before the first move."""
    before = tree(tmp_path)
    moves = 0
    rename = type(tmp_path).rename

    def dies(self: Path, goal: Path) -> Path:
        nonlocal moves
        moves += 1
        if moves == 3:
            raise KeyboardInterrupt
        return rename(self, goal)

    monkeypatch.setattr(type(tmp_path), "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        carry_out(plan(sick, examine(sick)), quiet())
    monkeypatch.undo()
    monkeypatch.setenv("ENVBUILDER_STATE", str(tmp_path / "state"))
    undo_last(quiet())
    assert {name: text for name, text in tree(tmp_path).items() if not name.startswith("state/")} == before


def test_undo_never_overwrites(sick: Snapshot, tmp_path: Path) -> None:
    carry_out(plan(sick, examine(sick)), quiet())
    new = tmp_path / "env/lib/python3.12/site-packages/~orch"
    new.mkdir()
    with pytest.raises(StepError, match="cannot put"):
        undo_last(quiet())
    assert list(new.iterdir()) == []


def test_without_a_journal_undo_has_nothing_to_do() -> None:
    stream = io.StringIO()
    assert undo_last(Console(stream=stream)) == 0
    assert "nothing" in stream.getvalue()


def test_the_page_offers_only_what_would_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "env/lib/python3.12/site-packages"
    installed(site, "torch", "2.11.0", {"torch/version.py": "__version__ = '2.11.0+cu130'\ncuda = '13.0'\n"})
    monkeypatch.setenv("HOME", str(tmp_path))
    main(["doctor", "--env", str(tmp_path / "env"), "--check", "EB-ENV-006"])
    assert "Can be mended" not in capsys.readouterr().out
    (site / "~orch").mkdir()
    main(["doctor", "--env", str(tmp_path / "env"), "--check", "EB-ENV-006"])
    assert "envbuilder doctor --fix (EB-ENV-006)" in capsys.readouterr().out


def test_a_healthy_machine_has_no_plan() -> None:
    assert plan(SPARK, examine(SPARK)) == []


def installed(site: Path, name: str, version: str, files: dict[str, str], *requires: str) -> None:
    """Install a distribution as an installer does: its files, its metadata, and a RECORD of them."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = "\n".join([f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {one}" for one in requires)])
    for path, text in {**files, f"{info}/METADATA": f"{metadata}\n\n", f"{info}/WHEEL": "Root-Is-Purelib: false\n"}.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    record = [f"{path},sha256=x,{len(text)}" for path, text in files.items()]
    (site / info / "RECORD").write_text("\n".join([*record, f"{info}/RECORD,,"]) + "\n")


def real(env: Path, base: Snapshot = SPARK, **fields: object) -> Snapshot:
    """Return a healthy Spark with the real environment at `env`, read as the doctor reads it; its extensions are taken as sound."""
    assert base.environment is not None
    found = read_environment(World(variables={}), env)
    return change(
        base, environment=change(found, extensions=base.environment.extensions, interpreter=base.environment.interpreter), **fields
    )


def faults(snapshot: Snapshot) -> set[str]:
    return {finding.check.id for finding in examine(snapshot).findings if finding.is_fault}


@pytest.fixture
def env(tmp_path: Path) -> Path:
    (site := tmp_path / "env/lib/python3.12/site-packages").mkdir(parents=True)
    (tmp_path / "env/pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.12.3\n")
    installed(
        site, "torch", "2.11.0", {"torch/version.py": "__version__ = '2.11.0+cu130'\ncuda = '13.0'\n", "torch/lib/libtorch_cuda.so": "x"}
    )
    return tmp_path / "env"


def settled(root: Path) -> dict[str, str]:
    return {name: text for name, text in tree(root).items() if not name.startswith("state/") and ".envbuilder-set-aside" not in name}


def test_libraries_of_another_cuda_are_taken_out_and_come_back(env: Path, tmp_path: Path) -> None:
    """Both majors share the folder nvidia/, and the one that stays keeps its part of it; what is asked for stays."""
    site = env / "lib/python3.12/site-packages"
    installed(site, "nvidia-cuda-runtime", "13.0.96", {"nvidia/cu13/lib/libcudart.so.13": "13"})
    installed(
        site,
        "nvidia-cuda-runtime-cu12",
        "12.8.90",
        {"nvidia/cuda_runtime/lib/libcudart.so.12": "12", "nvidia/cuda_runtime/__init__.py": ""},
    )
    installed(site, "nvidia-cublas", "13.1.0.3", {"nvidia/cu13/lib/libcublas.so.13": "13"})
    installed(site, "nvidia-cublas-cu12", "12.8.4.1", {"nvidia/cublas/lib/libcublas.so.12": "12"})
    installed(site, "wants-twelve", "1.0", {"wants_twelve.py": ""}, "nvidia-cublas-cu12>=12")
    before = settled(tmp_path)
    assert "EB-PKG-001" in faults(real(env))
    repairs = [repair for repair in plan(real(env), examine(real(env))) if repair.id == "EB-PKG-001"]
    assert [repair.what for repair in repairs] == ["take nvidia-cuda-runtime-cu12 out of the environment"], "the other one is asked for"
    carry_out(repairs, quiet())
    assert not (site / "nvidia/cuda_runtime").exists()
    assert (site / "nvidia/cu13/lib/libcudart.so.13").read_text() == "13"
    assert "nvidia-cuda-runtime-cu12" not in {one.name for one in real(env).environment.distributions}  # type: ignore[union-attr]
    undo_last(quiet())
    assert settled(tmp_path) == before


def test_a_distribution_that_shares_a_file_is_left_where_it_is(env: Path) -> None:
    """Of libcudnn.so.9 there is one, whoever brought it last: taking its owner out would take it from the other."""
    site = env / "lib/python3.12/site-packages"
    installed(site, "nvidia-cudnn-cu13", "9.19.0", {"nvidia/cudnn/lib/libcudnn.so.9": "13"})
    installed(site, "nvidia-cudnn-cu12", "9.10.2", {"nvidia/cudnn/lib/libcudnn.so.9": "12"})
    assert {"EB-PKG-001"} <= faults(real(env))
    assert plan(real(env), examine(real(env))) == []


def test_nothing_behind_a_link_out_of_the_environment_is_moved(env: Path, tmp_path: Path) -> None:
    """An editable checkout linked into site-packages is its owner's, whatever a RECORD says of files below it."""
    site = env / "lib/python3.12/site-packages"
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout/mine.py").write_text("mine")
    (tmp_path / "checkout/theirs.py").write_text("theirs")
    (site / "linked").symlink_to(tmp_path / "checkout")
    installed(site, "nvidia-cuda-runtime", "13.0.96", {"nvidia/cu13/lib/libcudart.so.13": "13"})
    installed(site, "nvidia-cuda-runtime-cu12", "12.8.90", {"linked/mine.py": "mine"})
    installed(site, "other", "1.0", {"linked/theirs.py": "theirs"})
    repairs = plan(real(env), examine(real(env)))
    assert [path.name for repair in repairs for path in repair.paths] == ["nvidia_cuda_runtime_cu12-12.8.90.dist-info"]


@pytest.mark.parametrize(("id", "name"), [("EB-TRI-001", "ptxas"), ("EB-TRI-002", "ptxas-blackwell")])
def test_a_toolkits_assembler_takes_the_place_of_tritons(id: str, name: str, env: Path, tmp_path: Path) -> None:
    """It is found there however the server is started: a variable would have to be set in every shell."""
    place = env / "lib/python3.12/site-packages/triton/backends/nvidia/bin" / name
    place.parent.mkdir(parents=True)
    place.write_bytes(b"\0Cuda compilation tools, release 12.8, V12.8.93\0")
    kits = []
    for release in ("12.6", "13.0"):
        path = tmp_path / f"cuda-{release}"
        (path / "bin").mkdir(parents=True)
        (path / "bin/ptxas").write_bytes(b"\0Cuda compilation tools, release " + release.encode() + b", V1\0")
        kits.append(Toolkit(path=str(path), release=release, nvcc=True, found_by=("/usr/local",)))
    assert id in faults(real(env, toolkits=tuple(kits)))
    assert plan(real(env, toolkits=()), examine(real(env))) == [], "without a toolkit there is nothing to put there"
    repairs = plan(real(env, toolkits=tuple(kits)), examine(real(env)))
    carry_out(repairs, quiet())
    assert place.readlink() == tmp_path / "cuda-13.0/bin/ptxas"
    assert id not in faults(real(env))
    undo_last(quiet())
    assert not place.is_symlink()
    assert b"12.8" in place.read_bytes()


def test_a_broken_model_file_goes_aside_with_its_blob(tmp_path: Path) -> None:
    """The hub's library links to a blob that is there without looking into it: the link alone would bring the same bytes again."""
    home = tmp_path / "hub/models--google--gemma"
    (home / "blobs").mkdir(parents=True)
    (home / "blobs/abc").write_text("half")
    (home / "blobs/def").write_text("whole")
    snapshot = home / "snapshots/1"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    (snapshot / "config.json").symlink_to("../../blobs/def")
    (snapshot / "outside.safetensors").symlink_to(tmp_path / "mine")
    (tmp_path / "mine").write_text("not the hub's")
    broken = ("model.safetensors: 4 of 9 bytes", "outside.safetensors: cut", "gone.safetensors: named in the index, not there")
    model = Checkpoint(
        name="google/gemma", model_type="", architectures=(), quantization="", head_dims=(), broken=broken, path=str(snapshot)
    )
    sick = change(SPARK, checkpoints=(model,))
    before = settled(tmp_path)
    carry_out(plan(sick, examine(sick)), quiet())
    assert not (snapshot / "model.safetensors").is_symlink()
    assert [path.name for path in (home / "blobs").iterdir()] == ["def"]
    assert (tmp_path / "mine").exists(), "what the hub's folder only links to is its owner's"
    undo_last(quiet())
    assert settled(tmp_path) == before
    assert (snapshot / "model.safetensors").read_text() == "half"


def test_a_model_in_a_folder_of_its_own_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("half")
    model = Checkpoint(
        name="mine", model_type="", architectures=(), quantization="", head_dims=(), broken=("model.safetensors: cut",), path=str(tmp_path)
    )
    sick = change(SPARK, checkpoints=(model,))
    assert plan(sick, examine(sick)) == []


def cpu_torch(env: Path) -> None:
    (env / "lib/python3.12/site-packages/torch/version.py").write_text("__version__ = '2.10.0+cpu'\ncuda = None\n")


def another(env: Path) -> None:
    """Do what `align` does: put another torch in the place of this one, with files of its own."""
    site = env / "lib/python3.12/site-packages"
    shutil.rmtree(site / "torch-2.11.0.dist-info")
    shutil.rmtree(site / "torch")
    version = "__version__ = '2.11.1+cu130'\ncuda = '13.0'\n"
    installed(site, "torch", "2.11.1", {"torch/version.py": version, "torch/new.py": "new", "torchgen/x.py": "new"})


def test_another_torch_comes_in_and_the_old_one_back(env: Path, tmp_path: Path) -> None:
    cpu_torch(env)
    before = settled(tmp_path)
    assert "EB-TORCH-001" in faults(real(env))
    stream = io.StringIO()
    result = mend(real(env), examine(real(env)), Console(stream=stream), yes=True, again=lambda: examine(real(env)), align=another)
    assert "EB-TORCH-001  give it the torch that its extensions need" in stream.getvalue()
    assert "EB-TORCH-001" not in {finding.check.id for finding in result.findings if finding.is_fault}
    undo_last(quiet())
    assert settled(tmp_path) == before


def test_where_no_extension_says_which_torch_is_meant_none_is_promised(env: Path) -> None:
    """`align` would leave the torch as it is, and the mend would say that it is done."""
    cpu_torch(env)
    alone = change(real(env), environment__extensions=())
    assert "EB-TORCH-001" in faults(alone)
    assert plan(alone, examine(alone), align=another) == []


def test_a_model_that_is_being_downloaded_is_left_alone(tmp_path: Path) -> None:
    """Beside one that is broken: what its downloader is about to link must stay where it is."""
    home = tmp_path / "hub/models--google--gemma/snapshots/1"
    home.mkdir(parents=True)
    (home / "model.safetensors").write_text("half")
    broken = Checkpoint(
        name="google/gemma",
        model_type="",
        architectures=(),
        quantization="",
        head_dims=(),
        broken=("model.safetensors: cut",),
        path=str(home),
    )
    both = change(SPARK, checkpoints=(change(broken, downloading=True), change(broken, path="", name="a/b")))
    assert "EB-CKPT-001" in faults(both)
    assert plan(both, examine(both)) == []


def test_a_torch_that_cannot_be_had_is_said_and_nothing_is_lost(env: Path, tmp_path: Path) -> None:
    def refuses(_: Path) -> None:
        raise AbiError("no torch that a lock names fits", why="none", next="build")

    cpu_torch(env)
    before, stream = settled(tmp_path), io.StringIO()
    mend(real(env), examine(real(env)), Console(stream=stream), yes=True, again=lambda: examine(real(env)), align=refuses)
    assert "could not be mended: no torch that a lock names fits" in stream.getvalue()
    assert settled(tmp_path) == before
    undo_last(quiet())
    assert settled(tmp_path) == before


def test_a_mend_killed_while_it_keeps_the_old_torch_leaves_it_in_its_place(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copies come before the exchange: a journal without all of them says that there was none."""
    cpu_torch(env)
    before = settled(tmp_path)

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copytree", dies)
    with pytest.raises(KeyboardInterrupt):
        carry_out(plan(real(env), examine(real(env)), align=another), quiet())
    monkeypatch.undo()
    monkeypatch.setenv("ENVBUILDER_STATE", str(tmp_path / "state"))
    undo_last(quiet())
    assert settled(tmp_path) == before
