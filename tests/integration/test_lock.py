"""Locking against real indexes: what comes out is read by pip and by uv, names no host, and builds."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from tiny import TARGET, Tiny, make_wheel

from envbuilder.locking.model import read_lock
from envbuilder.targets.catalogue import find_target, lock_folder, target_files
from envbuilder.uv import uv_program

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_httpserver import HTTPServer

# This machine's way to the package index, as its owner set it.
OURS = {
    name: value
    for name, value in os.environ.items()
    if name.startswith(("PIP_", "UV_INDEX", "UV_DEFAULT", "SSL_", "REQUESTS_")) or name.lower().endswith("_proxy")
}


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path)


@pytest.fixture
def real(tiny: Tiny) -> Tiny:
    """A user whose target asks for two small distributions of the package index."""
    tiny.target.write_text(
        TARGET.replace('["beta"]', '["iniconfig==2.1.0"]').replace('"beta"', '"iniconfig"').replace("alpha==1.0", "pluggy>=1.5")
    )
    for name in ("PIP_NO_INDEX", "PIP_CONFIG_FILE", "UV_FIND_LINKS"):
        del tiny.variables[name]
    tiny.variables |= OURS
    return tiny


@pytest.mark.network
def test_a_target_of_the_package_index_is_locked_built_and_run(real: Tiny) -> None:
    done = real.run("lock", "--target", "tiny")
    assert done.returncode == 0, done.stderr
    for path in real.lock.iterdir():
        assert "://" not in path.read_text(), f"{path.name} names a host"
    lock = read_lock(real.lock)
    assert [(item.name, item.version) for item in lock.environments["serve"]] == [("iniconfig", "2.1.0")]
    assert all(file.size for items in lock.environments.values() for item in items for file in item.files)
    assert real.run("lock", "--target", "tiny", "--check").returncode == 0
    built = real.build()
    assert built.returncode == 0, built.stderr
    ran = real.run("run", "--out", real.out, "--", "python", "-c", "import iniconfig; print(iniconfig.__name__)")
    assert ran.stdout == "iniconfig\n"
    offline = real.run(
        "build", "--target", "tiny", "--no-smoke", "--offline", "--out", real.root / "again", PIP_INDEX_URL="http://127.0.0.1:9"
    )
    assert offline.returncode == 0, offline.stderr
    assert (real.root / "again" / "manifest.json").read_bytes() == (real.out / "manifest.json").read_bytes()


def test_locking_again_changes_no_byte(tiny: Tiny) -> None:
    tiny.run("lock", "--target", "tiny")
    before = {path.name: path.read_bytes() for path in tiny.lock.iterdir()}
    assert tiny.run("lock", "--target", "tiny").returncode == 0
    assert {path.name: path.read_bytes() for path in tiny.lock.iterdir()} == before
    assert before.keys() == {"inputs.toml", "serve.txt", "quantize.txt"}


@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_a_lock_is_installed_by_pip_and_by_uv_and_refused_when_a_file_differs(tiny: Tiny, tool: str) -> None:
    """A lock that only we can read would tie its users to us."""
    tiny.locked()
    goal = tiny.root / "installed"
    options = [
        "--require-hashes",
        "--no-index",
        "--find-links",
        str(tiny.wheels),
        "--target",
        str(goal),
        "-r",
        str(tiny.lock / "serve.txt"),
    ]
    install = (
        [uv_program(), "pip", "install", "--no-config"] if tool == "uv" else [sys.executable, "-m", "pip", "--isolated", "install", "-q"]
    )
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tiny.root), "UV_CACHE_DIR": str(tiny.root / "uv"), "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run([*install, *options], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (goal / "beta.py").exists()
    make_wheel(tiny.wheels, "beta", requires="alpha", code="other = 1\n")
    options[options.index(str(goal))] = str(tiny.root / "elsewhere")
    environment["UV_CACHE_DIR"] += "-empty"  # uv would take the right file from its cache
    refused = subprocess.run([*install, *options], env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode != 0, "a file with another hash was installed"


@pytest.mark.parametrize("spelling", ["relative", "absolute", "file address", "home"])
def test_a_folder_of_wheels_may_be_named_in_any_way(tiny: Tiny, spelling: str) -> None:
    """Uv takes a relative folder for a part of its project, which is a temporary one of ours."""
    folder = make_wheel(tiny.root / "home" / "w", "alpha").parent
    make_wheel(folder, "beta", requires="alpha")
    location = {"relative": "home/w", "absolute": str(folder), "file address": folder.as_uri(), "home": "~/w"}[spelling]
    done = tiny.run("lock", "--target", "tiny", UV_FIND_LINKS=None, PIP_FIND_LINKS=location)
    assert done.returncode == 0, done.stderr
    assert {item.name for item in read_lock(tiny.lock).environments["serve"]} == {"alpha", "beta"}


def test_known_files_stand_in_the_lock_also_where_a_folder_has_one_of_them(tiny: Tiny) -> None:
    """The fault that once cut a lock down to the locking machine's Python: the folder's file hid the other known ones."""
    have = tiny.wheels / "beta-1.0-py3-none-any.whl"
    mine = have.rename(tiny.wheels / "beta-1.0-cp311-cp311-manylinux_2_17_x86_64.whl")
    make_wheel(tiny.root, "beta", requires="alpha").rename(mine)
    known = [(11, hashlib.sha256(mine.read_bytes()).hexdigest()), (12, "2" * 64), (13, "3" * 64)]
    text = TARGET.replace('"linux/x86_64", "linux/aarch64"', '"linux/x86_64"').replace("<3.15", "<3.14") + "".join(
        f'\n[[releases."1".known-files]]\nfilename = "beta-1.0-cp3{minor}-cp3{minor}-manylinux_2_17_x86_64.whl"\nsha256 = "{digest}"\nsource = "x"\n'
        for minor, digest in known
    )
    tiny.target.write_text(text)
    done = tiny.run("lock", "--target", "tiny")
    assert done.returncode == 0, done.stderr
    [beta] = [item for item in read_lock(tiny.lock).environments["serve"] if item.name == "beta"]
    assert {file.sha256 for file in beta.files} == {digest for _, digest in known}
    assert {wheel.file.sha256 for wheel in read_lock(tiny.lock).wheels("serve", "3.12.1", "x86_64")} >= {"2" * 64}


def test_the_best_version_of_all_indexes_is_locked_as_pip_would(tiny: Tiny, httpserver: HTTPServer) -> None:
    """By uv's own rule the first index that knows a name hides all others: a mirror with an old alpha would win."""
    newer = make_wheel(tiny.root / "newer", "alpha", version="2.0")
    for folder, path in (("old", tiny.wheels / "alpha-1.0-py3-none-any.whl"), ("new", newer)):
        link = f'<a href="/files/{path.name}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}">{path.name}</a>'
        httpserver.expect_request(f"/{folder}/alpha/").respond_with_data(link, content_type="text/html")
        httpserver.expect_request(f"/files/{path.name}").respond_with_data(path.read_bytes())
    tiny.target.write_text(TARGET.replace('["beta"]', '["alpha"]').replace("alpha==1.0", "alpha").replace('"beta"', '"alpha"'))
    done = tiny.run(
        "lock",
        "--target",
        "tiny",
        PIP_NO_INDEX=None,
        UV_FIND_LINKS=None,
        PIP_INDEX_URL=httpserver.url_for("/old"),
        PIP_EXTRA_INDEX_URL=httpserver.url_for("/new"),
    )
    assert done.returncode == 0, done.stderr
    assert [item.version for item in read_lock(tiny.lock).environments["serve"]] == ["2.0"]


def test_a_source_without_hashes_is_said(tiny: Tiny, httpserver: HTTPServer) -> None:
    """A lock of hashes that nobody stated would have to be taken on trust."""
    for name in ("alpha", "beta"):
        path = tiny.wheels / f"{name}-1.0-py3-none-any.whl"
        httpserver.expect_request(f"/simple/{name}/").respond_with_data(f'<a href="/{path.name}">{path.name}</a>', content_type="text/html")
        httpserver.expect_request(f"/{path.name}").respond_with_data(path.read_bytes())
    done = tiny.run("lock", "--target", "tiny", PIP_NO_INDEX=None, UV_FIND_LINKS=None, PIP_INDEX_URL=httpserver.url_for("/simple"))
    if done.returncode == 0:  # a uv that hashes what it fetches is as good
        assert read_lock(tiny.lock)
    else:
        assert (done.returncode, "states a sha256" in done.stderr) == (1, True), done.stderr


def test_committed_locks_are_requirements_that_uv_reads(tmp_path: Path) -> None:
    for name in target_files():
        target, path = find_target(name)
        for release in target.releases:
            text = (lock_folder(path, target, release) / "serve.txt").read_text()
            for line in text.replace("\\\n", "").splitlines():
                if not line.startswith("#"):
                    assert Requirement(line.split("--hash")[0])
    cpu, path = find_target("cpu")
    serve = lock_folder(path, cpu, cpu.default_release) / "serve.txt"
    command = [
        uv_program(),
        "pip",
        "install",
        "--no-config",
        "--dry-run",
        "--no-deps",
        "--no-index",
        "--target",
        str(tmp_path),
        "-r",
        str(serve),
    ]
    done = subprocess.run(command, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert "No solution found" in done.stderr, "uv did not come as far as looking for files: it cannot read the lock"
