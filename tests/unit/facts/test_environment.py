"""Reading an environment from its files: torch's real build, damage, hostile metadata, and what is none at all."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import spark

from envbuilder.facts.environment import read_environment
from envbuilder.facts.files_around import read_checkpoints, read_project, why_not_whole
from envbuilder.facts.site_packages import read_distributions
from envbuilder.facts.toolchain import cuda_release_of
from envbuilder.facts.world import World

if TYPE_CHECKING:
    from pathlib import Path


def world(root: Path, **variables: str) -> World:
    return World(root=root, variables=variables, directory=root, uid=1000, gids=(1000,))


def dist(site: Path, name: str, record: str = "", metadata: str = "", wheel: str = "") -> None:
    folder = site / f"{name}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Name: {name.rpartition('-')[0]}\n{metadata}\n\nbody\n")
    (folder / "RECORD").write_text(record)
    (folder / "WHEEL").write_text(wheel)


def site_of(root: Path) -> Path:
    site = root / "env/lib/python3.12/site-packages"
    site.mkdir(parents=True)
    return site


def test_the_torch_build_is_read_from_its_version_file_not_from_the_wheels_name(tmp_path: Path) -> None:
    build = spark(tmp_path).venv(torch="2.11.0+cu130", cuda="13.0")
    env = read_environment(build.world(), build.environment)  # type: ignore[arg-type]
    assert env.torch is not None
    assert (env.torch.version, env.torch.cuda, env.torch.cuda_library) == ("2.11.0+cu130", "13.0", True)
    assert (env.triton_ptxas, env.triton_ptxas_blackwell) == ("12.9", "13.0")
    assert env.interpreter is not None
    assert (env.interpreter.machine, env.interpreter.version, env.interpreter.headers) == ("aarch64", "3.12.3", True)
    assert "gemma4_unified" in env.model_types


@pytest.mark.parametrize(
    ("more", "faults"), [("", ("cooperative_topk",)), ("            and not current_platform.is_device_capability_family(120)\n", ())]
)
def test_a_kernel_that_a_gb10_cannot_start_is_found_in_vllms_source(more: str, faults: tuple[str, ...], tmp_path: Path) -> None:
    """Two builds of one version number may differ in it: nightly builds, forks with a patch."""
    path = site_of(tmp_path) / "vllm/model_executor/layers/sparse_attn_indexer.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "        use_cooperative_topk = (\n            current_platform.is_cuda()\n"
        f"            and current_platform.has_device_capability(90)\n{more}        )\n        family = is_device_capability_family(120)\n"
    )
    assert read_environment(World(variables={}), tmp_path / "env").vllm_faults == faults


def test_a_requirement_in_the_readme_is_none(tmp_path: Path) -> None:
    """METADATA's headers end at the first empty line; a readme may quote anything."""
    site = site_of(tmp_path)
    folder = site / "a-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        "Name: a\nVersion: 1\nRequires-Dist: b>=2\nRequires-Dist: c; extra == 'x'\n\nRequires-Dist: torch==0\n"
    )
    assert [entry.requires for entry in read_distributions(site)[0]] == [("b>=2",)]


def test_a_library_cut_short_or_gone_is_seen(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    (site / "vllm").mkdir()
    (site / "vllm/_C.abi3.so").write_bytes(b"\x7fELF" + bytes(96))
    (site / "vllm/_moe_C.abi3.so").write_bytes(bytes(50))
    dist(
        site,
        "vllm-0.23.0",
        "vllm/_C.abi3.so,sha256=x,100\nvllm/_moe_C.abi3.so,sha256=x,200\nvllm/gone.so.1.2,sha256=x,5\nvllm/x.py,sha256=x,1\n",
    )
    entry = read_distributions(site)[0][0]
    assert entry.short_files == ("vllm/_moe_C.abi3.so (50 of 200 bytes)",)
    assert entry.missing_files == ("vllm/gone.so.1.2",)


def test_a_library_that_was_stripped_is_not_cut_short(tmp_path: Path) -> None:
    """Debian's python3-yaml is half the size that its RECORD names, and whole: `doctor --env /usr` called it damaged."""
    site = site_of(tmp_path)
    source = tmp_path / "x.c"
    source.write_text("int answer(void) { return 42; }\n")
    place = site / "x.so"
    subprocess.run(["gcc", "-g3", "-shared", "-fPIC", "-o", place, source], check=True)
    dist(site, "x-1", f"x.so,sha256=x,{place.stat().st_size}\n")
    recorded = place.stat().st_size
    subprocess.run(["gcc", "-s", "-shared", "-fPIC", "-o", place, source], check=True)
    stripped = place.read_bytes()
    assert len(stripped) < recorded
    assert read_distributions(site)[0][0].short_files == ()
    for size in (len(stripped) - 1, len(stripped) // 2, 63, 10):
        place.write_bytes(stripped[:size])
        assert read_distributions(site)[0][0].short_files == (f"x.so ({size} of {recorded} bytes)",)


def test_a_library_that_two_brought_is_named_with_both_and_is_not_cut_short(tmp_path: Path) -> None:
    """The one that was installed last is there: its size is no damage of the other's, and only other bytes count."""
    site = site_of(tmp_path)
    (site / "triton").mkdir()
    (site / "triton/libtriton.so").write_bytes(bytes(50))
    same = "triton/plugin.so,sha256=z,7\n"
    (site / "triton/plugin.so").write_bytes(bytes(7))
    dist(site, "triton-3.6.0", f"triton/libtriton.so,sha256=x,50\n{same}")
    dist(site, "pytorch_triton-3.5.0", f"triton/libtriton.so,sha256=y,80\n{same}")
    distributions, shared = read_distributions(site)
    assert [(one.path, one.owners) for one in shared] == [("triton/libtriton.so", ("pytorch-triton 3.5.0", "triton 3.6.0"))]
    assert [one.short_files for one in distributions] == [(), ()]
    (site / "triton/libtriton.so").write_bytes(bytes(49))
    assert [one.short_files for one in read_distributions(site)[0]] == [
        ("triton/libtriton.so (49 of 80 bytes)",),
        ("triton/libtriton.so (49 of 50 bytes)",),
    ], "shorter than both is cut short"


def test_a_hostile_record_is_not_followed(tmp_path: Path) -> None:
    """Paths of a RECORD come from a wheel: none outside of the environment may even be looked at."""
    site = site_of(tmp_path)
    dist(
        site,
        "evil-1.0",
        "/etc/ld.so,x,1\n../../../../../x.so,x,1\n../../../lib/libfine.so,x,0\n"
        + "a/" * 5000
        + "b.so,x,1\n\0.so,x,1\n.so,x,"
        + "9" * 400
        + "\n",
    )
    (tmp_path / "env/lib/libfine.so").write_bytes(b"")
    entry = read_distributions(site)[0][0]
    assert entry.record_escapes == 3
    assert "../../../lib/libfine.so" not in entry.missing_files


@given(st.binary(max_size=3000))
def test_no_record_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    site = tmp_path_factory.mktemp("site", numbered=True)
    folder = site / "x-1.dist-info"
    folder.mkdir()
    for name in ("RECORD", "METADATA", "WHEEL"):
        (folder / name).write_bytes(data)
    assert len(read_distributions(site)[0]) == 1


def test_pipes_and_links_in_circles_do_not_hang(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    folder = site / "pipe-1.dist-info"
    folder.mkdir()
    os.mkfifo(folder / "METADATA")
    os.mkfifo(folder / "RECORD")
    (tmp_path / "env/bin").mkdir()
    (tmp_path / "env/bin/python").symlink_to("python")
    (tmp_path / "env/pyvenv.cfg").write_text("home = /nowhere\n")
    env = read_environment(world(tmp_path), tmp_path / "env")
    assert not env.valid or env.interpreter is None or not env.interpreter.exists


@pytest.mark.parametrize("content", ["nothing", "file", "empty"])
def test_what_is_no_environment_is_said_not_raised(content: str, tmp_path: Path) -> None:
    if content == "file":
        (tmp_path / "env").write_text("I am a file")
    elif content == "empty":
        (tmp_path / "env").mkdir()
    env = read_environment(World(variables={}), tmp_path / "env")
    assert not env.valid
    assert env.reason


def test_a_release_is_found_in_a_programs_bytes_across_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envbuilder.facts.toolchain._CHUNK", 64)
    path = tmp_path / "ptxas"
    path.write_bytes(b"\0" * 50 + b"Cuda compilation tools, release 12.8, V12.8.93" + b"\0" * 200)
    assert cuda_release_of(path) == "12.8"
    assert cuda_release_of(tmp_path / "none") == ""


def safetensors(path: Path, *, keep: int | None = None) -> Path:
    header = b'{"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "__metadata__": {"a": "b"}}'
    data = len(header).to_bytes(8, "little") + header + bytes(16)
    path.write_bytes(data[:keep] if keep is not None else data)
    return path


def test_a_truncated_safetensors_file_is_told_from_a_whole_one(tmp_path: Path) -> None:
    assert why_not_whole(safetensors(tmp_path / "whole.safetensors")) == ""
    for keep, reason in ((0, "too short"), (7, "too short"), (20, "cut inside its header"), (-1, "of")):
        assert reason in why_not_whole(safetensors(tmp_path / "cut.safetensors", keep=keep))


def test_a_git_lfs_pointer_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n")
    assert "Git LFS" in why_not_whole(path)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_look_into_a_model_file(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("m", numbered=True) / "x.safetensors"
    path.write_bytes(data)
    assert isinstance(why_not_whole(path), str)


def test_models_of_the_cache_are_read_and_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "hf/hub/models--google--gemma-4/snapshots/abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        '{"model_type": "gemma4_unified", "architectures": ["A"], "text_config": {"head_dim": 256, "global_head_dim": 512}}'
    )
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "m-1.safetensors", "b": "../../etc/passwd"}}')
    found = read_checkpoints(World(variables={"HF_HOME": str(tmp_path / "hf")}), None)
    assert [(model.name, model.model_type, model.head_dims) for model in found] == [("google/gemma-4", "gemma4_unified", (256, 512))]
    assert found[0].broken == ("m-1.safetensors: named in model.safetensors.index.json, not there",)


def test_a_vllm_source_tree_is_recognised(tmp_path: Path) -> None:
    for name, text in {
        "vllm/__init__.py": "",
        "setup.py": "",
        "CMakeLists.txt": "",
        "rust-toolchain.toml": '[toolchain]\nchannel = "1.95"\n',
        ".git/shallow": "abc",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    project = read_project(World(variables={}, directory=tmp_path))
    assert (project.vllm_source, project.vllm_shadow, project.git, project.rust_channel) == (True, True, "shallow", "1.95")


@pytest.mark.parametrize(("dependencies", "expected"), [('["vllm"]', True), ('["torch>=2"]', False), ('["torchvision"]', True)])
def test_uv_ignores_a_source_of_what_is_no_direct_dependency(dependencies: str, expected: bool, tmp_path: Path) -> None:  # noqa: FBT001
    (tmp_path / "pyproject.toml").write_text(
        f'[project]\nname = "x"\ndependencies = {dependencies}\n[tool.uv.sources]\ntorch = {{ index = "cu130" }}\n'
    )
    assert read_project(World(variables={}, directory=tmp_path)).torch_source_transitive is expected
