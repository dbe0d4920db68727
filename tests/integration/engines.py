"""Container engines from Debian's packages, started by hand, as a machine without an init system has them.

Each has its own socket and data below a folder of the test, touches no firewall rule, and leaves no mount, process or
data behind: a mount that stays makes pytest's own clean-up of its temporary folders fail, three sessions later.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envbuilder.images.engines import DockerEngine, EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envbuilder.images.oci import Layout as ImageLayout

_START_S = 60
_BINFMT = Path("/proc/sys/fs/binfmt_misc")


@contextlib.contextmanager
def docker_engine(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a Docker engine, and name it in DOCKER_HOST meanwhile; skip where there is none, or the kernel has not what it needs."""
    _need("dockerd", "docker.io")
    _need_overlay(folder)
    argv = ["dockerd", "--iptables=false", "--ip6tables=false", "--ip-masq=false", "--ip-forward=false", "--bridge=none", "-s", "overlay2"]
    argv += ["--data-root", str(folder / "data"), "--exec-root", str(folder / "exec"), "--pidfile", str(folder / "pid")]
    address = f"unix://{folder}/sock"
    with pytest.MonkeyPatch.context() as patched, (folder / "log").open("wb") as log:
        patched.setenv("DOCKER_HOST", address)
        process = subprocess.Popen([*argv, "-H", address], stdout=log, stderr=log)
        try:
            _wait_for(process, folder)
            yield process
        finally:
            process.terminate()
            process.wait()
            _end_containerd(folder / "exec/containerd/containerd.pid")
            clear(folder)


def _wait_for(process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        # Asked before it listens, Docker's client leaves a socket open, which Python complains of in some later test.
        if _listens(folder / "sock"):
            with contextlib.suppress(EngineError):
                DockerEngine.connect().client.close()
                return
        if process.poll() is not None:
            pytest.skip(f"dockerd does not start on this machine: {(folder / 'log').read_text().splitlines()[-1]}")
        time.sleep(0.1)
    pytest.fail((folder / "log").read_text())


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _end_containerd(pid: Path) -> None:
    """Where dockerd was killed, containerd may still be there."""
    with contextlib.suppress(OSError, ValueError):
        os.kill(int(pid.read_text()), signal.SIGKILL)


@contextlib.contextmanager
def buildah_storage(folder: Path) -> Iterator[Path]:
    """Give buildah a storage of its own below a folder; skip where there is no buildah."""
    _need("buildah", "buildah")
    _need_overlay(folder)
    settings = folder / "storage.conf"
    settings.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n')
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CONTAINERS_STORAGE_CONF", str(settings))
        patched.setenv("BUILDAH_ISOLATION", "chroot")  # the other ways need cgroups and privileges that a machine may not give
        try:
            yield folder
        finally:
            clear(folder)


@contextlib.contextmanager
def arm64_emulated() -> Iterator[None]:
    """Have the kernel start arm64 programs through qemu, in containers too; skip where it does not.

    qemu is opened when it is registered (binfmt_misc's flag F), so that a container need not hold it. What was not on before is
    switched off again.
    """
    if platform.machine() == "aarch64":
        yield
        return
    _need("qemu-aarch64-static", "qemu-user-static")
    _need("update-binfmts", "binfmt-support")
    mounted = (_BINFMT / "register").exists()
    if not mounted:
        _or_skip(["mount", "-t", "binfmt_misc", "binfmt_misc", _BINFMT], "this machine has no binfmt_misc")
    registered = (_BINFMT / "qemu-aarch64").exists()
    try:
        if not registered:
            _or_skip(["update-binfmts", "--enable", "qemu-aarch64"], "qemu cannot be registered")
        assert "F" in (_BINFMT / "qemu-aarch64").read_text().partition("flags: ")[2].splitlines()[0]
        yield
    finally:
        if not registered:
            subprocess.run(["update-binfmts", "--disable", "qemu-aarch64"], check=False)
        if not mounted:
            subprocess.run(["umount", _BINFMT], check=True)


def _or_skip(command: Sequence[str | Path], otherwise: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{otherwise}: {done.stderr.strip()}")


def buildah_container(layout: ImageLayout, image: str, *options: str) -> str:
    """Return the name of a working container of an image of ours.

    The layout is named from its own folder: buildah makes the image's name of the path, and takes no capital letter or space.
    """
    command = ["buildah", "from", "--pull-never", *options, f"oci:{layout.root.name}:{image}"]
    done = subprocess.run(command, cwd=layout.root.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def buildah_root(image: str) -> Path:
    """Return the folder where the files of an image in buildah's storage are."""

    def said(*command: str) -> str:
        return subprocess.run(["buildah", *command], capture_output=True, text=True, check=True).stdout.strip()

    return Path(said("mount", said("from", "--pull-never", image)))


def _need(program: str, package: str) -> None:
    if shutil.which(program) is None or os.geteuid():
        pytest.skip(f"needs {program} (Debian: apt install {package}) and root")


def _need_overlay(folder: Path) -> None:
    """Skip where the kernel mounts no overlay over this disk, for an engine would copy every layer for every image; and in a chroot."""
    if "/" not in _mounts():
        pytest.skip("this is a chroot, whose / is no mount: an engine cannot set itself apart")
    parts = {name: folder / f"overlay-{name}" for name in ("lower", "upper", "work", "goal")}
    for part in parts.values():
        part.mkdir()
    options = f"lowerdir={parts['lower']},upperdir={parts['upper']},workdir={parts['work']}"
    tried = subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", parts["goal"]], capture_output=True, text=True, check=False)
    subprocess.run(["umount", parts["goal"]], capture_output=True, check=False)
    for part in parts.values():
        shutil.rmtree(part)
    if tried.returncode:
        pytest.skip(f"this machine mounts no overlay: {tried.stderr.strip()}")


def clear(folder: Path) -> None:
    """Unmount whatever is mounted below a folder, deepest first, and remove what is in it."""
    for place in sorted((it for it in _mounts() if it.startswith(f"{folder}/")), key=len, reverse=True):
        subprocess.run(["umount", "--lazy", place], check=True)
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _mounts() -> list[str]:
    return [line.split()[4].replace("\\040", " ") for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
