"""What goes wrong on real machines, end to end: a clear message, the right exit code, nothing half-made left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from tiny import TARGET, Tiny, make_wheel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_httpserver import HTTPServer

CLOSED = "http://me:s3cret@127.0.0.1:9/simple"


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path).locked()


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """Mount a small tmpfs: the only disk that a test may fill."""
    folder.mkdir(exist_ok=True)
    made = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"this user may not mount a tmpfs: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def check(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Check the exit code and what a person reads."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


# -- what is typed -----------------------------------------------------------------------------------------------


def test_an_unknown_target_is_answered_with_the_nearest(tiny: Tiny) -> None:
    check(tiny.run("build", "--target", "tyni"), 2, "error[unknown-name]: unknown target 'tyni'", "Did you mean 'tiny'?")


def test_an_unknown_release_is_answered_with_the_known_ones(tiny: Tiny) -> None:
    check(tiny.build("--release", "2"), 2, "unknown release '2'", "Known: 1.")


def test_an_unknown_key_is_answered_with_the_nearest(tiny: Tiny) -> None:
    tiny.target.write_text(TARGET.replace('requires = ["beta"]', 'require = ["beta"]'), encoding="utf-8")
    check(tiny.build(), 2, "releases.1.serve.require: unknown key; did you mean 'requires'?", "releases.1.serve.requires: Field required")
    assert not tiny.out.exists()


def test_with_json_a_failure_is_one_document_on_standard_output(tiny: Tiny) -> None:
    done = tiny.build("--json", PIP_FIND_LINKS=None, UV_FIND_LINKS=None)
    document = json.loads(done.stdout)
    assert document["schema"] == "envbuilder/error/1"
    assert document["error"]["reference"] == "fetch"
    assert done.returncode == 4


# -- locks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inputs.toml", "serve.txt", "quantize.txt"])
def test_a_lock_with_one_byte_changed_is_refused(tiny: Tiny, name: str) -> None:
    path = tiny.lock / name
    payload = bytearray(path.read_bytes())
    payload[len(payload) // 2] ^= 1
    path.write_bytes(payload)
    check(tiny.build(), 1, "error[lock]:", "envbuilder lock")
    assert not tiny.out.exists()


def test_a_stale_lock_is_refused(tiny: Tiny) -> None:
    tiny.target.write_text(TARGET.replace("alpha==1.0", "alpha>=1.0"), encoding="utf-8")
    check(tiny.build(), 1, "error[lock]: the lock of tiny 1 is stale", "envbuilder lock --target tiny --release 1")
    check(tiny.run("lock", "--check", "--target", "tiny"), 1, "is stale")


def test_a_missing_lock_names_the_command_that_writes_it(tiny: Tiny) -> None:
    shutil.rmtree(tiny.lock)
    check(tiny.build(), 1, "there is no lock in", "Run `envbuilder lock`")


# -- sources -----------------------------------------------------------------------------------------------------


def test_a_wheel_with_another_hash_is_never_installed(tiny: Tiny) -> None:
    make_wheel(tiny.wheels, "beta", requires="alpha", code="x = 'tampered with'\n")
    check(tiny.build(), 1, "error[hash-mismatch]: beta-1.0-py3-none-any.whl is not the file in the lock", str(tiny.wheels))
    assert tiny.stored() == ["alpha-1.0-py3-none-any.whl"]
    assert not (tiny.out / "envs").exists()
    assert not (tiny.out / ".scratch").exists()


def test_no_network_names_the_files_their_hashes_and_the_settings(tiny: Tiny) -> None:
    done = tiny.build(PIP_NO_INDEX=None, UV_FIND_LINKS=None, PIP_INDEX_URL=CLOSED)
    check(done, 4, "error[fetch]: no source has 2 files", "cannot be reached", "Connection refused", "PIP_FIND_LINKS", "sha256:")
    assert "s3cret" not in done.stderr
    assert tiny.stored() == []
    assert [path.name for path in (tiny.out / ".stages").iterdir()] == []


def test_no_network_is_no_obstacle_for_what_is_at_hand(tiny: Tiny) -> None:
    """An index that cannot be reached must not break a build that does not need it."""
    check(tiny.build(PIP_NO_INDEX=None, UV_DEFAULT_INDEX=CLOSED), 0)


def test_locking_without_a_network_is_not_called_a_contradiction(tiny: Tiny) -> None:
    done = tiny.run("lock", "--target", "tiny", PIP_NO_INDEX=None, UV_FIND_LINKS=None, PIP_INDEX_URL=CLOSED)
    check(done, 4, "error[step]: could not resolve", "Check the network")
    assert "s3cret" not in done.stderr
    check(tiny.run("lock", "--target", "tiny", "--check"), 0)


def test_what_cannot_be_resolved_is_explained_and_the_old_lock_stays(tiny: Tiny) -> None:
    tiny.target.write_text(TARGET.replace("alpha==1.0", "alpha==9"), encoding="utf-8")
    before = [path.read_bytes() for path in sorted(tiny.lock.iterdir())]
    check(tiny.run("lock", "--target", "tiny"), 1, "error[lock]: nothing fits", "alpha==9")
    assert [path.read_bytes() for path in sorted(tiny.lock.iterdir())] == before


@pytest.mark.parametrize("answer", ["404", "half", "nonsense"])
def test_an_index_that_fails_leaves_nothing_and_the_next_run_goes_on(tiny: Tiny, httpserver: HTTPServer, answer: str) -> None:
    for name in ("alpha", "beta"):
        wheel = tiny.wheels / f"{name}-1.0-py3-none-any.whl"
        link = f'<a href="/files/{wheel.name}">{wheel.name}</a>'
        page, status = {"404": ("", 404), "half": (link, 200), "nonsense": ("<html>please log in</html>", 200)}[answer]
        httpserver.expect_request(f"/simple/{name}/").respond_with_data(page, status=status, content_type="text/html")
        httpserver.expect_request(f"/files/{wheel.name}").respond_with_data(wheel.read_bytes()[: wheel.stat().st_size // 2])
    done = tiny.build(UV_FIND_LINKS=None, PIP_NO_INDEX=None, PIP_INDEX_URL=httpserver.url_for("/simple"))
    # Half a file, sent as if it were all, has another hash; where there is no file, there is nothing to hash.
    check(done, 1 if answer == "half" else 4, *(["it sent"] if answer == "half" else ["has no such file"]))
    assert tiny.stored() == []
    assert not (tiny.out / "envs").exists()
    check(tiny.build(), 0)


# -- the disk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["4k", "40k", "80k", "100k", "120k", "140k"])
def test_a_full_disk_is_said_and_more_room_is_all_that_is_needed(tiny: Tiny, size: str) -> None:
    """The disk fills at another moment with each size: making folders, the first environment, the second one, the manifest."""
    tiny.build()
    shutil.rmtree(tiny.out)
    with mounted(tiny.root / "small", "-o", f"size={size}") as disk:
        out = disk / "out"
        done = tiny.run("build", "--target", "tiny", "--no-smoke", "--out", out)
        if done.returncode == 0:
            pytest.skip(f"{size} are enough here")
        # What can be foreseen is said before anything is made, the rest where it happens.
        check(done, 4, "error[storage]: not enough room in" if size == "4k" else "error[storage]: the disk is full", "are free")
        assert not (out / ".scratch").exists(), "what was half-made still takes the room that is missing"
        assert not (out / "manifest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        check(tiny.run("build", "--target", "tiny", "--no-smoke", "--out", out), 0)


def test_a_full_disk_under_the_store_is_said_before_the_download(tiny: Tiny) -> None:
    with mounted(tiny.root / "small", "-o", "size=1m") as disk:
        check(tiny.build(ENVBUILDER_CACHE=str(disk / "cache")), 4, "error[storage]: not enough room in", "ENVBUILDER_CACHE")
        assert not list((disk / "cache").rglob("*.whl"))


def test_a_read_only_output_folder_is_said(tiny: Tiny) -> None:
    with mounted(tiny.root / "ro") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        done = tiny.run("build", "--target", "tiny", "--no-smoke", "--out", disk / "out")
        check(done, 4, "error[storage]: cannot write", "Read-only file system", "--out")


def test_a_read_only_store_is_said(tiny: Tiny) -> None:
    with mounted(tiny.root / "ro") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        check(tiny.build(ENVBUILDER_CACHE=str(disk / "cache")), 4, "error[storage]: cannot write", "ENVBUILDER_CACHE")


def test_an_output_folder_that_is_a_file_is_said(tiny: Tiny) -> None:
    tiny.out.write_text("")
    check(tiny.build(), 4, "error[storage]: cannot write", "--out")
    assert tiny.out.read_text() == ""


# -- the store ---------------------------------------------------------------------------------------------------


def test_a_wheel_that_was_changed_in_the_store_is_found_and_fetched_anew(tiny: Tiny) -> None:
    check(tiny.build(), 0)
    [stored] = (tiny.cache / "files").rglob("beta-*.whl")
    payload = bytearray(stored.read_bytes())
    payload[len(payload) // 2] ^= 1
    stored.write_bytes(payload)
    shutil.rmtree(tiny.out)
    shutil.rmtree(tiny.cache / "uv")
    check(tiny.build(), 1, "error[hash-mismatch]: beta-1.0-py3-none-any.whl in the store had other bytes than the lock names")
    check(tiny.build(), 0)


# -- surroundings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"HOME": None},
        {"HOME": "/nonexistent"},
        {"LANG": "C"},
        {"LC_ALL": "POSIX"},
        {"PYTHONPATH": "/nonexistent", "VIRTUAL_ENV": "/nonexistent", "PYTHONHOME": "/nonexistent"},
        {"UV_OFFLINE": "1", "UV_SYSTEM_PYTHON": "1", "UV_LINK_MODE": "nonsense", "UV_PYTHON": "3.7", "UV_CACHE_DIR": "/nonexistent"},
        {"PIP_TARGET": "/nonexistent", "PIP_REQUIRE_VIRTUALENV": "1"},
        {"TMPDIR": "{root}/a tmp ü"},
    ],
    ids=",".join,
)
def test_odd_surroundings_change_nothing(tiny: Tiny, changes: dict[str, str | None]) -> None:
    (tiny.root / "a tmp ü").mkdir()
    changes = {name: value and value.format(root=tiny.root) for name, value in changes.items()}
    check(tiny.build(**changes), 0)
    ran = tiny.run("run", "--out", tiny.out, "--", "python", "-c", "import sys, beta; print(sys.prefix, beta.x)", **changes)
    assert ran.stdout == f"{tiny.out}/envs/serve 1\n", ran.stderr


def test_a_narrow_umask_and_a_linked_output_folder_change_nothing(tiny: Tiny) -> None:
    (tiny.root / "real").mkdir()
    tiny.out.symlink_to("real")
    before = os.umask(0o077)
    try:
        check(tiny.build(), 0)
    finally:
        os.umask(before)
    check(tiny.build(), 0, "nothing to do")
    assert (tiny.root / "real" / "manifest.json").stat().st_mode & 0o777 == 0o644
