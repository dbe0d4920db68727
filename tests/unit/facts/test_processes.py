"""Serving processes as /proc shows them: named by their titles, cut by the kernel, left behind or under a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from envbuilder.facts import machine, toolchain
from envbuilder.facts.files_around import read_checkpoints
from envbuilder.facts.model import Process
from envbuilder.facts.world import World

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SERVE = ("/opt/env/bin/python", "/opt/env/bin/vllm", "serve", "google/gemma-4-12b")


@pytest.fixture
def world(tmp_path: Path) -> World:
    put(tmp_path, 1, "systemd", ["/sbin/init"])
    return World(root=tmp_path, directory=tmp_path)


def put(root: Path, pid: int, comm: str, arguments: Sequence[str], *, parent: int = 0) -> None:
    folder = root / "proc" / str(pid)
    folder.mkdir(parents=True)
    (folder / "comm").write_text(comm[:15] + "\n")  # TASK_COMM_LEN, linux/sched.h
    (folder / "cmdline").write_text("\0".join(arguments) + "\0")
    (folder / "status").write_text(f"Name:\t{comm[:15]}\nPPid:\t{parent}\n")


@pytest.mark.parametrize("collector", [(1, "systemd"), (900, "systemd")])
def test_an_engine_whose_server_died_is_left_behind(world: World, collector: tuple[int, str]) -> None:
    """The kernel keeps 15 characters of its title, and a session's own systemd collects orphans as the first process does."""
    pid, name = collector
    if pid != 1:
        put(world.root, pid, name, ["/usr/lib/systemd/systemd", "--user"], parent=1)
    put(world.root, 4711, "VLLM::EngineCore", ["VLLM::EngineCore"], parent=pid)
    assert machine.read_processes(world) == (Process(pid=4711, name="VLLM::EngineCore", orphan=True, flags=()),)


def test_an_engine_under_its_server_is_not(world: World) -> None:
    """Otherwise the doctor tells to kill what serves; nor is a server that systemd started an orphan."""
    put(world.root, 4700, "vllm", SERVE, parent=1)
    put(world.root, 4711, "VLLM::EngineCore", ["VLLM::EngineCore"], parent=4700)
    assert {(it.pid, it.orphan) for it in machine.read_processes(world)} == {(4700, False), (4711, False)}


def test_in_a_container_whose_first_process_is_the_server_nothing_is_left_behind(tmp_path: Path) -> None:
    put(tmp_path, 1, "vllm", SERVE)
    put(tmp_path, 20, "VLLM::EngineCore", ["VLLM::EngineCore"], parent=1)
    assert not any(it.orphan for it in machine.read_processes(World(root=tmp_path, directory=tmp_path)))


@pytest.mark.parametrize(
    ("comm", "arguments", "name"),
    [
        ("vllm", SERVE, "vllm"),
        ("python3", ("python3", "-m", "vllm.entrypoints.openai.api_server"), "vllm.entrypoints.openai.api_server"),
        ("python", ("/usr/bin/python", "-I", "-m", "sglang.launch_server"), "sglang.launch_server"),
        ("python3", ("python3", "/src/vllm/entrypoints/openai/api_server.py"), "api_server.py"),
        ("VLLM::Worker_TP", ("VLLM::Worker_TP0",), "VLLM::Worker_TP0"),
        ("raylet", ("/x/ray/core/raylet", "--port=1"), "raylet"),
    ],
)
def test_servers_are_known(world: World, comm: str, arguments: Sequence[str], name: str) -> None:
    put(world.root, 500, comm, arguments, parent=1)
    assert [it.name for it in machine.read_processes(world)] == [name]


@pytest.mark.parametrize(
    ("comm", "arguments"),
    [
        ("python3", ("/home/alice/vllm/.venv/bin/python3", "/home/alice/vllm/.venv/bin/jupyter-lab", "--no-browser")),
        ("python3.12", ("/home/alice/vllm/.venv/bin/python3.12", "-m", "pip", "download", "vllm==0.23.0")),
        ("python3", ("python3", "-m", "pip", "install", "vllm")),
        ("python", ("/opt/vllm/bin/python", "-u", "train.py", "vllm")),
        ("bash", ("bash", "-c", "tail -f vllm.log")),
        ("vllm-notes", ("/usr/bin/vllm-notes",)),
    ],
)
def test_what_lies_beside_vllm_serves_nothing(world: World, comm: str, arguments: Sequence[str]) -> None:
    """A notebook in a folder called vllm made the doctor say that a model is being served."""
    put(world.root, 500, comm, arguments, parent=1)
    assert machine.read_processes(world) == ()


def test_flags_are_read_as_vllm_reads_them(world: World) -> None:
    """The server takes underscores too, and values after a space or an equals sign; what no check asks for may be a secret, and is not kept."""
    put(world.root, 500, "vllm", (*SERVE, "--gpu_memory_utilization", "0.9", "--load_format=fastsafetensors", "--api-key", "s3cret"))
    (server,) = machine.read_processes(world)
    assert server.flags == ("--gpu-memory-utilization=0.9", "--load-format=fastsafetensors", "model=gemma")


def test_a_package_on_hold_is_installed(world: World) -> None:
    """Who pinned a driver with `apt-mark hold` was told that no driver package is there."""
    status = world.root / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True)
    status.write_text(
        "Package: nvidia-driver-580-open\nStatus: hold ok installed\nVersion: 580.95.05-0ubuntu1\n\n"
        "Package: nvidia-container-toolkit\nStatus: hold ok installed\nVersion: 1.19.0-1\n\n"
        "Package: cuda-toolkit-12-6\nStatus: deinstall ok config-files\nVersion: 12.6.3-1\n"
    )
    assert toolchain.read_packages(world) == {"nvidia-driver-580-open": "580.95.05-0ubuntu1", "nvidia-container-toolkit": "1.19.0-1"}
    assert toolchain.read_containers(world).toolkit == "1.19.0"


@pytest.mark.parametrize("removed_first", [True, False])
def test_a_package_that_was_removed_for_another_architecture_is_still_installed_for_this_one(world: World, removed_first: bool) -> None:  # noqa: FBT001
    """Dpkg keeps a stanza for each architecture, under one name, and that of a removed one until it is purged."""
    stanzas = [
        "Package: libnvidia-compute-580\nStatus: deinstall ok config-files\nArchitecture: armhf\nVersion: 580.65.06-0ubuntu1\n\n",
        "Package: libnvidia-compute-580\nStatus: install ok installed\nArchitecture: arm64\nVersion: 580.95.05-0ubuntu1\n\n",
    ]
    status = world.root / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True)
    status.write_text("".join(stanzas if removed_first else reversed(stanzas)))
    assert toolchain.read_packages(world) == {"libnvidia-compute-580": "580.95.05-0ubuntu1"}


def test_the_snapshot_that_is_loaded_is_judged(tmp_path: Path) -> None:
    """A newer commit's name may sort before an older one's, whose files were removed: that one is no concern of a server's."""
    model = tmp_path / "hub/models--google--gemma-4-12b"
    for name, kind in (("0aaa", "gemma4_unified"), ("ffff", "gemma3")):
        (model / "snapshots" / name).mkdir(parents=True)
        (model / "snapshots" / name / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    (model / "refs").mkdir()
    (model / "refs/main").write_text("0aaa")
    assert [it.model_type for it in read_checkpoints(World(variables={"HF_HOME": str(tmp_path)}), None)] == ["gemma4_unified"]


@pytest.mark.parametrize("linked", [True, False])
def test_a_cdi_spec_is_named_once_wherever_run_lies(linked: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """/var/run is a link to /run, and named a spec twice; where it is missing, as in small images, the spec was missed."""
    (tmp_path / "run/cdi").mkdir(parents=True)
    (tmp_path / "run/cdi/nvidia.yaml").write_text("kind: nvidia.com/gpu\n")
    if linked:
        (tmp_path / "var").mkdir()
        (tmp_path / "var/run").symlink_to("/run")
    assert toolchain.read_containers(World(root=tmp_path, directory=tmp_path)).cdi_specs == ("/run/cdi/nvidia.yaml",)
