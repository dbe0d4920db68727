from __future__ import annotations

import contextlib
import tomllib
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envbuilder.build import overlays
from envbuilder.errors import ConfigurationError, UnknownNameError
from envbuilder.targets.catalogue import find_target, lock_folder, target_files, user_folder
from envbuilder.targets.model import read_target

if TYPE_CHECKING:
    from pathlib import Path

TINY = """
schema = "envbuilder/target/1"
name = "tiny"
summary = "two small distributions"
platforms = ["linux/x86_64"]
glibc = "2.28"
python = ">=3.11,<3.14"
device = "cpu"
default-release = "1"

[releases."1"]
vllm = "published"

[releases."1".serve]
requires = ["iniconfig==2.1.0"]

[releases."1".quantize]
requires = ["pluggy"]
"""


def write(folder: Path, text: str = TINY, name: str = "tiny") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def faults(tmp_path: Path, old: str, new: str) -> str:
    assert old in TINY
    with pytest.raises(ConfigurationError) as caught:
        read_target(write(tmp_path, TINY.replace(old, new)))
    assert caught.value.exit_code == 2
    return caught.value.why


# -- what a file says --------------------------------------------------------------------------------------------


def test_a_target_is_read(tmp_path: Path) -> None:
    target = read_target(write(tmp_path))
    assert (target.name, target.machines, target.release(None)[0]) == ("tiny", ("x86_64",), "1")
    assert target.releases["1"].serve.requires == ("iniconfig==2.1.0",)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("glibc =", "glib =", "glib: unknown key; did you mean 'glibc'?"),
        ('requires = ["iniconfig', 'require = ["iniconfig', "releases.1.serve.require: unknown key; did you mean 'requires'?"),
        ("default-release", "default_release", "default_release: unknown key; did you mean 'default-release'?"),
        ("vllm =", "xyzzy = 1\nvllm =", "releases.1.xyzzy: unknown key"),
    ],
)
def test_an_unknown_key_is_answered_with_its_place_and_the_nearest(tmp_path: Path, old: str, new: str, said: str) -> None:
    """A silently ignored `exclude = …` would build something else than its author thinks."""
    assert said in faults(tmp_path, old, new).splitlines()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("linux/x86_64", "linux/riscv64", "platforms"),
        ('["linux/x86_64"]', "[]", "platforms"),
        ('"2.28"', '"3.0"', "glibc"),
        ('"2.28"', "2.28", "glibc"),
        (">=3.11,<3.14", "3.11 or so", "python"),
        ("iniconfig==2.1.0", "iniconfig = 2.1", "not a requirement"),
        ("iniconfig==2.1.0", "iniconfig @ https://host.invalid/iniconfig-2.1.0-py3-none-any.whl", "a lock names no host"),
        ('default-release = "1"', 'default-release = "2"', "'2' is not among the releases"),
        ('vllm = "published"', 'vllm = "magic"', "releases.1.vllm"),
        ('name = "tiny"', 'name = "../up"', "name"),
        ("envbuilder/target/1", "envbuilder/target/9", "schema"),
        ('requires = ["pluggy"]', 'requires = "pluggy"', "releases.1.quantize.requires"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_its_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert said in faults(tmp_path, old, new)


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    """One error per run would make mending a file a guessing game."""
    broken = TINY.replace("glibc =", "glib =").replace('"cpu"', '"abacus"').replace("iniconfig==", "iniconfig=")
    with pytest.raises(ConfigurationError) as caught:
        read_target(write(tmp_path, broken))
    text = caught.value.why
    assert all(word in text for word in ("glibc: Field required", "glib: unknown key", "device:", "releases.1.serve.requires.0:"))


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ('kind = "versoin"\nwhy = "x"', "version"),
        ('kind = "version"\ndistribution = "x"\nspecifier = "about 5"\nwhy = "x"', "specifier"),
        ('kind = "version"\ndistribution = "x"\nspecifier = ">=5"', "why"),
        ('kind = "torch-build"\nversion = "2"\ncuda = 13.0\nwhy = "x"', "cuda"),
    ],
)
def test_a_gate_that_is_none_is_refused(tmp_path: Path, gate: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_target(write(tmp_path, f'{TINY}\n[[releases."1".quantize.gates]]\n{gate}\n'))
    assert said in caught.value.why


@pytest.mark.parametrize("payload", [b"\xff\xfe", b"name = ", b"a = 1\na = 2"])
def test_what_is_no_toml_is_said_with_the_place(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "tiny.toml"
    path.write_bytes(payload)
    with pytest.raises(ConfigurationError, match="is not TOML"):
        read_target(path)


@pytest.mark.parametrize("make", ["missing", "folder"])
def test_what_cannot_be_read_is_said(tmp_path: Path, make: str) -> None:
    if make == "folder":
        (tmp_path / "tiny.toml").mkdir()
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_target(tmp_path / "tiny.toml")


VALUES: Any = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(key=st.sampled_from(["name", "glibc", "python", "releases", "device", "schema", "summary", "default-release"]), value=VALUES)
def test_no_value_ends_in_a_traceback(tmp_path: Path, key: str, value: object) -> None:
    """Whatever stands in the file, the answer is a target or an error that names the place."""
    data = {**tomllib.loads(TINY), key: value}
    path = write(tmp_path)
    with mock.patch("envbuilder.targets.model.tomllib.loads", return_value=data), contextlib.suppress(ConfigurationError):
        read_target(path)


# -- releases that extend one another ----------------------------------------------------------------------------

EXTENDED = (
    TINY
    + """
[releases."2"]
extends = "1"

[releases."2".serve]
requires = ["pluggy"]
variables = { A = "1" }

[releases."2".quantize]
"""
)


def test_a_release_that_extends_another_has_all_of_it_and_its_own(tmp_path: Path) -> None:
    target = read_target(write(tmp_path, EXTENDED))
    first, second = target.releases["1"], target.releases["2"]
    assert second.serve.requires == (*first.serve.requires, "pluggy")
    assert second.quantize == first.quantize
    assert second.vllm == first.vllm
    assert first.serve.variables == {}, "the one that is extended stays as it was"


@pytest.mark.parametrize("base", ['"3"', '"2"', "1", "[]", "{}"])
def test_extending_what_is_not_there_is_said(tmp_path: Path, base: str) -> None:
    with pytest.raises(ConfigurationError, match="release '2' extends"):
        read_target(write(tmp_path, EXTENDED.replace('extends = "1"', f"extends = {base}")))


# -- which targets there are -------------------------------------------------------------------------------------


def test_our_own_targets_are_found_by_name_and_can_be_read() -> None:
    names = target_files()
    assert {"cpu", "dgx-spark"} <= names.keys()
    for name in names:
        target, _ = find_target(name)
        for release in target.releases.values():
            for _, environment in release.environments():
                assert set(environment.overlays) <= set(overlays.names()), "an overlay that does not exist is found out at build time only"
                assert all(gate.why for gate in environment.gates)


def test_a_server_without_flashinfer_does_not_ask_for_its_sampler() -> None:
    """On CUDA vLLM imports FlashInfer for it unasked, and without a guard: 0.23.0-slim could not start a server."""
    seen = 0
    for name in target_files():
        for release in find_target(name)[0].releases.values():
            if "flashinfer-python" in {it.name for it in release.serve.excludes}:
                seen += 1
                assert release.serve.variables["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert seen, "a release without FlashInfer is among ours"


def test_a_user_adds_a_target_with_one_file() -> None:
    path = write(user_folder())
    assert target_files()["tiny"] == path
    assert find_target("tiny")[0].name == "tiny"


def test_a_users_target_comes_before_ours_of_the_same_name() -> None:
    path = write(user_folder(), TINY.replace('name = "tiny"', 'name = "cpu"'), "cpu")
    assert find_target("cpu")[1] == path


def test_a_target_may_be_named_by_its_path(tmp_path: Path) -> None:
    path = write(tmp_path / "täglich und mehr")
    assert find_target(str(path)) == (read_target(path), path)


def test_an_unknown_target_is_answered_with_the_nearest_and_where_was_looked() -> None:
    with pytest.raises(UnknownNameError) as caught:
        find_target("dgx-sparc")
    assert "Did you mean 'dgx-spark'?" in caught.value.next
    assert str(user_folder()) in caught.value.why
    assert caught.value.exit_code == 2


def test_a_release_that_is_not_there_is_answered_likewise(tmp_path: Path) -> None:
    target = read_target(write(tmp_path, TINY.replace('"1"', '"0.29.0"')))
    with pytest.raises(UnknownNameError, match=r"unknown release '0\.29'") as caught:
        target.release("0.29")
    assert "Did you mean '0.29.0'?" in caught.value.next


def test_a_file_that_calls_itself_otherwise_is_refused(tmp_path: Path) -> None:
    """`--target a` that locks `b` would write over b's locks."""
    with pytest.raises(ConfigurationError, match="calls itself 'tiny'") as caught:
        find_target(str(write(tmp_path, name="other")))
    assert "tiny.toml" in caught.value.next


def test_locks_lie_beside_a_users_file_and_with_envbuilder_for_ours(tmp_path: Path) -> None:
    target, path = find_target(str(write(tmp_path)))
    assert lock_folder(path, target, "1") == tmp_path / "lockfiles" / "tiny" / "1"
    cpu, path = find_target("cpu")
    assert (lock_folder(path, cpu, cpu.default_release) / "inputs.toml").is_file()


def test_a_link_to_a_users_file_finds_the_locks_of_the_real_one(tmp_path: Path) -> None:
    write(tmp_path / "real")
    link = tmp_path / "tiny.toml"
    link.symlink_to(tmp_path / "real" / "tiny.toml")
    target, path = find_target(str(link))
    assert lock_folder(path, target, "1") == tmp_path / "real" / "lockfiles" / "tiny" / "1"
