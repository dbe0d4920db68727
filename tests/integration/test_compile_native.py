"""The same stage on aarch64 itself: an arm64 Debian with its own g++ and NVIDIA's own arm64 nvcc, emulated where it must be.

Configuring takes three minutes under emulation and a small unit with device code one and a half, so it is no part of CI.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from building import ROOT
from engines import arm64_emulated
from uv import find_uv_bin
from wheels_of_aarch64 import need

from envbuilder.binaries.elf import read_elf_path
from envbuilder.binaries.fatbin import parse_arch
from envbuilder.binaries.gpu_code import Way, check_gpu_code
from envbuilder.console import Console
from envbuilder.locking.model import read_lock
from envbuilder.store.cache import Store, Wanted, default_root
from envbuilder.store.fetch import fetch
from envbuilder.store.settings import read_settings
from envbuilder.targets.catalogue import find_target, lock_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.programs, pytest.mark.timeout(3600)]
UNIT = "CMakeFiles/_C_stable_libtorch.dir/csrc/libtorch_stable/permute_cols.cu.o"
PYTHON = "3.11.2"  # Debian 12's
INSIDE = Path(__file__).with_name("compile_native_inside.py")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root folder of arm64 Debian with compilers, this package, what it needs, and the locked files of a native build."""
    if os.getuid() != 0:
        pytest.skip("only root may change the root folder")
    root = tmp_path_factory.mktemp("native") / "root"
    packages = "python3.11,libpython3.11-stdlib,g++,libpython3-dev,dash,coreutils,sed,grep,gzip"
    command = [need("mmdebstrap"), "--quiet", "--variant=extract", "--architectures=arm64", f"--include={packages}", "bookworm", str(root)]
    subprocess.run(command, check=True, timeout=900)
    shutil.copytree(ROOT / "envbuilder", root / "envb/envbuilder", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "lockfiles", root / "envb/lockfiles")
    shutil.copyfile(INSIDE, root / INSIDE.name)
    install = [find_uv_bin(), "pip", "install", "--quiet", "--target", root / "site", "--no-deps", "--only-binary", ":all:"]
    install += ["--python-platform", "aarch64-manylinux_2_36", "--python-version", "3.11", "-r", ROOT / "lockfiles/envbuilder/tool.txt"]
    subprocess.run(install, check=True, timeout=900)
    _fill_store(Store(root / "store"))
    return root


def _fill_store(goal: Store) -> None:
    target, path = find_target("dgx-spark")
    spec = target.releases["0.23.0"].compile
    assert spec is not None
    assert spec.sdist is not None
    lock, store = read_lock(lock_folder(path, target, "0.23.0")), Store(default_root())
    libraries = [it for it in lock.wheels("serve", PYTHON, "aarch64") if it.name in {*spec.cuda, "torch"}]
    wanted = [
        Wanted(project=it.name, filename=it.file.filename, sha256=it.file.sha256, size=it.file.size)
        for it in (*lock.build_wheels(PYTHON, "aarch64"), *libraries)
    ]
    wanted.append(Wanted(project="vllm", **spec.sdist.model_dump()))
    fetch(wanted, store=store, settings=read_settings(), console=Console())
    for item in wanted:
        place = goal.path(item.sha256, item.filename)
        place.parent.mkdir(parents=True, exist_ok=True)  # nvcc's wheel is a tool and a library here
        shutil.copyfile(store.path(item.sha256, item.filename), place)


@contextlib.contextmanager
def mounted(root: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, command in (("dev", ["mount", "--bind", "/dev"]), ("proc", ["mount", "-t", "proc", "proc"])):
            (root / name).mkdir(exist_ok=True)
            subprocess.run([*command, root / name], check=True)
            stack.callback(subprocess.run, ["umount", root / name], check=True)
        yield


@pytest.fixture(scope="module")
def built(machine: Path) -> dict[str, Any]:
    command = ["chroot", machine, "/usr/bin/env", "-i", "PATH=/usr/bin:/bin", "HOME=/tmp", "LC_ALL=C.UTF-8", "PYTHONPATH=/envb:/site"]
    with arm64_emulated(), mounted(machine):
        done = subprocess.run(
            [*command, "/usr/bin/python3.11", f"/{INSIDE.name}", "/build", "spinloop", "cumem_allocator", UNIT],
            capture_output=True,
            text=True,
            timeout=3000,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_the_machine_s_own_compilers_build_the_same_units(built: dict[str, Any]) -> None:
    """On a Spark nothing is crossed: g++, nvcc, CMake and ninja are aarch64's, and the CUDA home is laid out for them."""
    assert (built["machine"], built["cross"]) == ("aarch64", False)
    assert [it["unit"] for it in built["units"] if it["status"] == 0] == [
        "_C_stable_libtorch/csrc/libtorch_stable/permute_cols.cu",
        "cumem_allocator/csrc/cumem_allocator.cpp",
        "spinloop/csrc/spinloop.cpp",
    ]


def test_its_device_code_is_sm_121a_s_and_its_extensions_are_aarch64_s(machine: Path, built: dict[str, Any]) -> None:
    assert built
    gpu = parse_arch("121a")
    assert gpu is not None
    report = check_gpu_code([machine / "build/obj" / UNIT], gpu)
    assert [(it.verdict, set(it.cubins), dict(it.ptx)) for it in report.files] == [(Way.NATIVE, {"sm_121a"}, {})]
    for name in ("spinloop", "cumem_allocator"):
        assert read_elf_path(machine / f"build/obj/{name}.abi3.so").machine == "aarch64"
