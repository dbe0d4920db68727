from __future__ import annotations

import os
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement

from envbuilder.cli import main
from envbuilder.errors import LockError
from envbuilder.files import digest_of
from envbuilder.locking import model
from envbuilder.locking.model import Lock, LockedFile, LockedRequirement, intent_of, read_lock, write_lock
from envbuilder.locking.resolve import pythons_of
from envbuilder.targets.catalogue import find_target, lock_folder, target_files

if TYPE_CHECKING:
    from envbuilder.targets.model import Machine

ROOT = Path(__file__).parents[3]
NAMES = ("inputs.toml", "quantize.txt", "serve.txt")
RELEASES = [
    pytest.param(target, release, id=f"{target.name}-{release}")
    for name in target_files()
    for target, path in [find_target(name)]
    for release in target.releases
    if (lock_folder(path, target, release) / "inputs.toml").is_file()
]


def wheel(filename: str, size: int = 10) -> LockedFile:
    return LockedFile(filename=filename, sha256=digest_of(filename), size=size)


def requirement(name: str, version: str, *filenames: str, marker: str = "") -> LockedRequirement:
    return LockedRequirement(name=name, version=version, marker=marker, files=tuple(map(wheel, filenames)))


@pytest.fixture
def lock() -> Lock:
    torch = requirement("torch", "2.13.0+cpu", *(f"torch-2.13.0+cpu-cp3{n}-cp3{n}-manylinux_2_28_x86_64.whl" for n in (11, 12)))
    back = requirement("tomli", "2.0", "tomli-2.0-py3-none-any.whl", marker='python_version < "3.12"')
    arm = requirement("armonly", "1", "armonly-1-py3-none-any.whl", marker='platform_machine == "aarch64"')
    return Lock(
        target="tiny",
        release="1",
        platforms=("linux/x86_64",),
        glibc="2.28",
        python=">=3.11,<3.13",
        resolver="uv 1.2.3",
        intent=digest_of("intent"),
        digest="",
        environments={"serve": (arm, back, torch), "quantize": (requirement("pluggy", "1.6.0", "pluggy-1.6.0-py3-none-any.whl"),)},
    )


@pytest.fixture
def folder(tmp_path: Path, lock: Lock) -> Path:
    write_lock(tmp_path / "lock", lock)
    return tmp_path / "lock"


# -- round trip --------------------------------------------------------------------------------------------------


def by_hash(lock: Lock) -> Lock:
    """Return a lock as it is read back: the files of a requirement stand in the order of their hashes, as pip-compile has them."""
    return replace(
        lock,
        environments={
            name: tuple(replace(item, files=tuple(sorted(item.files, key=lambda file: file.sha256))) for item in items)
            for name, items in lock.environments.items()
        },
    )


def test_what_is_written_is_what_is_read(tmp_path: Path, lock: Lock) -> None:
    written = write_lock(tmp_path, lock)
    assert written == replace(by_hash(lock), digest=written.digest) == read_lock(tmp_path)


def test_the_same_lock_has_the_same_bytes(tmp_path: Path, lock: Lock) -> None:
    """Otherwise every `envbuilder lock` would be a change in version control."""
    shuffled = replace(lock, environments={name: tuple(reversed(items)) for name, items in reversed(lock.environments.items())})
    for name, it in (("one", lock), ("two", shuffled)):
        write_lock(tmp_path / name, it)
    assert [(tmp_path / "one" / name).read_bytes() for name in NAMES] == [(tmp_path / "two" / name).read_bytes() for name in NAMES]


def test_every_line_is_a_requirement_with_hashes_that_pip_and_uv_read(folder: Path) -> None:
    lines = (folder / "serve.txt").read_text().replace("\\\n", "").splitlines()[1:]
    assert len(lines) == 3
    for line in lines:
        text, *hashes = line.split("--hash=")
        assert Requirement(text).specifier
        assert hashes
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", value) for value in hashes)


def test_a_write_that_is_cut_off_is_a_lock_that_does_not_verify(folder: Path, lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seal is written last: new requirements under the old seal must not pass for a lock."""
    changed = replace(lock, environments={**lock.environments, "serve": lock.environments["quantize"]})
    real, written = model.write_atomic, list[str]()

    def cut_off(path: Path, data: str) -> None:
        if path.name == "inputs.toml":
            raise KeyboardInterrupt
        written.append(path.name)
        real(path, data)

    monkeypatch.setattr(model, "write_atomic", cut_off)
    with pytest.raises(KeyboardInterrupt):
        write_lock(folder, changed)
    assert written
    with pytest.raises(LockError, match="is not what was written"):
        read_lock(folder)


# -- nothing passes unnoticed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_any_one_changed_byte_is_noticed(folder: Path, name: str) -> None:
    """Every byte of all three files, each changed in several ways: a carriage return looks like a line's end to a careless reader."""
    path = folder / name
    original = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for place, byte in enumerate(original):
            for other in {byte ^ 1, 0x0D, 0x0A} - {byte}:
                os.pwrite(file.fileno(), bytes([other]), place)
                with pytest.raises(LockError):
                    read_lock(folder)
            os.pwrite(file.fileno(), bytes([byte]), place)
    assert path.read_bytes() == original
    read_lock(folder)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.sampled_from(NAMES), data=st.data())
def test_any_insertion_deletion_or_cut_is_noticed(folder: Path, name: str, data: st.DataObject) -> None:
    path = folder / name
    original = path.read_bytes()
    start = data.draw(st.integers(0, len(original)))
    end = data.draw(st.integers(start, len(original)))
    changed = original[:start] + data.draw(st.binary(max_size=20)) + original[end:]
    assume(changed != original)
    try:
        path.write_bytes(changed)
        with pytest.raises(LockError):
            read_lock(folder)
    finally:
        path.write_bytes(original)


def reseal(folder: Path, name: str, old: str, new: str) -> None:
    """Change a lock and put a fitting digest on it, as one who knows how would."""
    path = folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    head, seal, _ = (folder / "inputs.toml").read_text().rpartition('digest = "sha256:')
    texts = {environment: (folder / f"{environment}.txt").read_text() for environment in ("serve", "quantize")}
    (folder / "inputs.toml").write_text(f'{head}{seal}{model._digest(head, texts)}"\n')  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("inputs.toml", "envbuilder/lock/1", "envbuilder/lock/9", "of another kind"),
        ("inputs.toml", 'release = "1"', "release = ", "cannot be read"),
        ("inputs.toml", 'release = "1"', "", "cannot be read"),
        ("inputs.toml", "[files]", "[flies]", "cannot be read"),
        ("serve.txt", "tomli==2.0", "tomli>=2.0", "not a pinned, hashed requirement"),
        ("serve.txt", "tomli==2.0", "tomli==2.0,==2.1", "not a pinned, hashed requirement"),
        ("serve.txt", "tomli==2.0 ", "tomli @ https://host.invalid/x ", "not a pinned, hashed requirement"),
        ("serve.txt", digest_of("tomli-2.0-py3-none-any.whl"), "0" * 64, "has no file name"),
        ("serve.txt", "tomli==2.0", "tomli = = 2", "cannot be read"),
    ],
)
def test_nonsense_under_a_fitting_seal_is_an_error_not_a_traceback(folder: Path, name: str, old: str, new: str, said: str) -> None:
    reseal(folder, name, old, new)
    with pytest.raises(LockError, match=said):
        read_lock(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named_with_the_command_that_writes_it(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(LockError, match="there is no lock") as caught:
        read_lock(folder)
    assert name in caught.value.why
    assert "envbuilder lock" in caught.value.next


def test_a_file_that_cannot_be_read_is_said(folder: Path) -> None:
    (folder / "serve.txt").unlink()
    (folder / "serve.txt").mkdir()
    with pytest.raises(LockError, match="cannot be read"):
        read_lock(folder)


# -- what an interpreter gets ------------------------------------------------------------------------------------


def names(lock: Lock, python: str, machine: Machine = "x86_64") -> set[str]:
    return {wheel.file.filename for wheel in lock.wheels("serve", python, machine)}


def test_each_python_gets_its_own_file_and_markers_are_those_of_the_built_environment(lock: Lock) -> None:
    """The markers must be answered for the environment's Python, not for the one that runs envbuilder."""
    torch = "torch-2.13.0+cpu-cp3{}-cp3{}-manylinux_2_28_x86_64.whl"
    assert names(lock, "3.11.2") == {torch.format(11, 11), "tomli-2.0-py3-none-any.whl"}
    assert names(lock, "3.12.9") == {torch.format(12, 12)}


def test_markers_are_those_of_the_targets_machine(lock: Lock) -> None:
    with pytest.raises(LockError, match="no file of torch"):
        names(lock, "3.11.2", "aarch64")
    without = replace(lock, environments={**lock.environments, "serve": lock.environments["serve"][:1]})
    assert names(without, "3.11.2", "aarch64") == {"armonly-1-py3-none-any.whl"}


def test_a_python_without_a_file_is_told_what_there_is(lock: Lock) -> None:
    with pytest.raises(LockError, match=r"no file of torch 2\.13\.0\+cpu for CPython 3\.13\.1") as caught:
        names(lock, "3.13.1")
    assert "cp312" in caught.value.why
    assert ">=3.11,<3.13" in caught.value.next


# -- the locks that we ship --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "release"), RELEASES)
def test_a_committed_lock_is_whole_and_current(target: object, release: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lock", "--target", target.name, "--release", release, "--check"]) == 0, capsys.readouterr().err  # type: ignore[attr-defined]


@pytest.mark.parametrize(("target", "release"), RELEASES)
def test_a_committed_lock_has_a_file_for_every_python_and_machine_of_its_target(target: object, release: str) -> None:
    found, path = find_target(target.name)  # type: ignore[attr-defined]
    lock = read_lock(lock_folder(path, found, release))
    for major, minor in pythons_of(found.python):
        for machine in found.machines:
            for environment in ("serve", "quantize"):
                wheels = lock.wheels(environment, f"{major}.{minor}.5", machine)
                assert "torch" in {wheel.name for wheel in wheels}
                assert len({wheel.name for wheel in wheels}) == len(wheels), "a distribution stands twice"


@pytest.mark.parametrize("path", sorted((ROOT / "lockfiles").rglob("*.t*")), ids=lambda path: "/".join(path.parts[-3:]))
def test_no_lock_names_a_host(path: Path) -> None:
    """A mirror, a folder of wheels or a private index must serve as well as the one that the locking machine used."""
    text = path.read_text()
    assert "://" not in text
    assert " @ " not in text
    assert "--index" not in text
    assert "--find-links" not in text


def test_a_changed_target_makes_its_lock_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, path = find_target("cpu")
    shutil.copy(path, tmp_path / "cpu.toml")
    locks = lock_folder(path, found, found.default_release)
    shutil.copytree(locks, tmp_path / "lockfiles" / "cpu" / found.default_release)
    arguments = ["lock", "--check", "--target", str(tmp_path / "cpu.toml")]
    assert main(arguments) == 0
    (tmp_path / "cpu.toml").write_text(path.read_text().replace("transformers==5.14.1", "transformers==5.14.0"))
    assert main(arguments) == 1
    assert "is stale" in capsys.readouterr().err


def test_what_does_not_reach_the_resolver_does_not_make_a_lock_stale() -> None:
    """A better reason for a gate must not force everybody to lock again; a changed requirement must."""
    target, path = find_target("cpu")
    release = target.releases[target.default_release]
    data = tomllib.loads(path.read_text())["releases"][target.default_release]
    kind = type(release)
    same = [
        {**data, "serve": {**data["serve"], "gates": []}},
        {**data, "serve": {**data["serve"], "overlays": []}},
        {**data, "serve": {**data["serve"], "requires": data["serve"]["requires"][::-1]}},
    ]
    other = [
        {**data, "serve": {**data["serve"], "requires": data["serve"]["requires"][1:]}},
        {**data, "serve": {**data["serve"], "excludes": []}},
        {**data, "known-files": []},
        {**data, "serve": {**data["serve"], "constraints": ["six<2"]}},
    ]
    intent = intent_of(target, release)
    assert all(intent_of(target, kind.model_validate(it)) == intent for it in same)
    assert all(intent_of(target, kind.model_validate(it)) != intent for it in other)
    assert intent_of(target.model_copy(update={"glibc": "2.35"}), release) != intent
