"""The world: links stay inside their root, reads are bounded, readers that fail or hang are facts, secrets go."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

import pytest

from envbuilder.facts import machine, snapshot, toolchain
from envbuilder.facts.kernel_log import read_kernel_log
from envbuilder.facts.world import World


def world(root: Path, **variables: str) -> World:
    return World(root=root, variables=variables, directory=root, uid=1000, gids=(1000,))


def test_links_of_a_simulated_machine_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "usr/local/cuda-13.0").mkdir(parents=True)
    (tmp_path / "usr/local/cuda-13.0/version.txt").write_text("CUDA Version 13.0.88")
    (tmp_path / "usr/local/cuda").symlink_to("/usr/local/cuda-13.0")
    (tmp_path / "out").symlink_to("../../../../etc/passwd")
    assert world(tmp_path).text("/usr/local/cuda/version.txt") == "CUDA Version 13.0.88"
    assert world(tmp_path).at("/out") == tmp_path / "etc/passwd"
    assert world(tmp_path).text("/out") == ""


def test_links_in_circles_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("/b")
    (tmp_path / "b").symlink_to("/a")
    assert world(tmp_path).text("/a") == ""


def test_reads_are_bounded_and_pipes_do_not_block(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 100_000)
    os.mkfifo(tmp_path / "pipe")
    assert len(world(tmp_path).data("/big", limit=1000)) == 1000
    assert world(tmp_path).data("/pipe") == b""


def test_a_reader_that_fails_is_a_fact_and_the_others_go_on() -> None:
    def broken() -> None:
        raise PermissionError(13, "Permission denied", "/proc/1/environ")

    values, readings = snapshot.read_all([snapshot.Reader(name="a", read=broken), snapshot.Reader(name="b", read=lambda: 7)])
    assert values == {"b": 7}
    assert [(reading.name, reading.status) for reading in readings] == [("a", "failed"), ("b", "ok")]
    assert "Permission denied" in readings[0].error


def test_a_reader_that_hangs_is_left_behind_in_time() -> None:
    """A dead network mount blocks its reader in the kernel: nothing can end it, and nobody may wait for it."""
    release = threading.Event()
    values, readings = snapshot.read_all(
        [snapshot.Reader(name="hangs", read=release.wait, limit_s=0.1), snapshot.Reader(name="b", read=lambda: 7)]
    )
    release.set()
    assert values == {"b": 7}
    assert readings[0].status == "timeout"


def test_where_no_thread_and_no_child_can_be_had_the_work_is_done_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's limit on processes is one of the faults that the doctor is called for: it must not fall over it."""

    def refused(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    def forbidden() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    (tmp_path / "env/lib/python3.12/site-packages").mkdir(parents=True)
    monkeypatch.setattr(threading.Thread, "start", refused)
    monkeypatch.setattr(os, "fork", forbidden)
    taken = snapshot.take(world(tmp_path), environment=Path("/env"))
    assert {reading.name for reading in taken.readers if reading.status == "ok"} >= {"host", "variables", "environment", "extensions"}


def test_a_machine_without_anything_is_read_without_an_error(tmp_path: Path) -> None:
    taken = snapshot.take(world(tmp_path))
    assert taken.machine == "cpu"
    assert {reading.name for reading in taken.readers if reading.status != "ok"} == {"cpu", "memory"}


@pytest.mark.parametrize(
    ("file", "text", "variables", "expected"),
    [
        ("/.dockerenv", "", {}, "docker"),
        ("/run/.containerenv", "engine=podman", {}, "podman"),
        ("/x", "", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ("/proc/1/cgroup", "0::/kubepods.slice/kubepods-burstable.slice/x", {}, "kubernetes"),
        ("/proc/1/cgroup", "12:cpuset:/docker/0123456789ab", {}, "docker"),
        ("/proc/1/cgroup", "0::/machine.slice/libpod-abc.scope", {}, "podman"),
        ("/run/systemd/container", "lxc\n", {}, "lxc"),
        ("/proc/1/cgroup", "0::/init.scope", {}, ""),
    ],
)
def test_the_inside_of_a_container_is_known(file: str, text: str, variables: dict[str, str], expected: str, tmp_path: Path) -> None:
    """Fixes differ inside: a driver cannot be installed there, and the GPU comes with how the container was started."""
    path = tmp_path / file.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert machine.read_host(world(tmp_path, **variables)).container == expected


def test_wsl_and_a_remote_shell_are_known(tmp_path: Path) -> None:
    path = tmp_path / "proc/sys/kernel/osrelease"
    path.parent.mkdir(parents=True)
    path.write_text("6.6.87.2-microsoft-standard-WSL2\n")
    host = machine.read_host(world(tmp_path, SSH_CONNECTION="198.51.100.7 50000 198.51.100.8 22"))
    assert (host.wsl, host.remote_shell) == (True, True)
    path.write_text("6.17.0-1032-nvidia\n")
    host = machine.read_host(world(tmp_path))
    assert (host.wsl, host.remote_shell) == (False, False)


def test_unclean_boots_are_counted_from_wtmp(tmp_path: Path) -> None:
    record = struct.Struct("hi32s4s32s256shhiii16s20s")

    def entry(kind: int, user: bytes) -> bytes:
        return record.pack(kind, 0, b"~", b"~~", user, b"", 0, 0, 0, 0, 0, b"", b"")

    boot, down = entry(2, b"reboot"), entry(1, b"shutdown")
    (tmp_path / "var/log").mkdir(parents=True)
    (tmp_path / "var/log/wtmp").write_bytes(boot + down + boot + entry(7, b"alice") + boot + down + boot)
    host = machine.read_host(world(tmp_path))
    assert (host.boots, host.unclean_boots) == (3, 1)


def test_the_kernel_log_is_that_of_this_boot_without_time_and_host(tmp_path: Path) -> None:
    (tmp_path / "var/log").mkdir(parents=True)
    (tmp_path / "var/log/kern.log").write_text(
        "2026-11-20T09:00:00.1+00:00 spark-7 kernel: NVRM: Xid (PCI:000f:01:00): 79, old boot\n"
        "2026-11-20T10:00:00.1+00:00 spark-7 kernel: [    0.000000] Linux version 6.17.0\n"
        "Nov 20 10:00:05 spark-7 kernel: [    5.1] NVRM: Xid (PCI:000f:01:00): 31, this boot\nNov 20 10:00:05 spark-7 kernel: [ 6.0] usb 1-1: boring\n"
    )
    log = read_kernel_log(world(tmp_path))
    assert log is not None
    assert log.lines == ("NVRM: Xid (PCI:000f:01:00): 31, this boot",)


def test_the_device_plugin_of_kubernetes_is_known_by_its_newest_log(tmp_path: Path) -> None:
    """The kubelet keeps a log for each start of a container; a log that only root may read is said to be there."""
    pod = tmp_path / "var/log/pods/kube-system_nvidia-device-plugin-daemonset-x7k2p_11111111-2222-3333-4444-555555555555"
    folder = pod / "nvidia-device-plugin-ctr"
    folder.mkdir(parents=True)
    assert toolchain.read_containers(world(tmp_path)).device_plugin is None
    refused = "2026-11-20T10:00:00.1Z stderr F E1120 main.go:123] error starting plugins: error getting device memory: Not Supported"
    (folder / "9.log").write_text("2026-11-19T10:00:00.1Z stderr F I1119 Registered device plugin for 'nvidia.com/gpu' with Kubelet\n")
    (folder / "10.log").write_text(f"2026-11-20T10:00:00.0Z stderr F I1120 Starting OS watcher.\n{refused}\n")
    os.utime(folder / "9.log", (1, 1))
    plugin = toolchain.read_containers(world(tmp_path)).device_plugin
    assert plugin is not None
    assert (plugin.readable, plugin.line) == (True, refused)
    assert plugin.log.endswith("/10.log")
    (folder / "10.log").unlink()
    os.mkfifo(folder / "10.log")
    plugin = toolchain.read_containers(world(tmp_path)).device_plugin
    assert plugin is not None
    assert (plugin.readable, plugin.line) == (False, "")


def test_only_variables_that_matter_are_kept_and_of_secrets_only_that_they_are_set(tmp_path: Path) -> None:
    kept = toolchain.read_variables(
        world(tmp_path, HF_TOKEN="hf_abcdefghijklmnop", MAX_JOBS="4", LS_COLORS="x", UV_INDEX_CU_PASSWORD="p", HOME="/home/alice")
    )
    assert kept == {"HF_TOKEN": "<set>", "MAX_JOBS": "4", "UV_INDEX_CU_PASSWORD": "<set>"}
