"""What a build is to do, and for which machine; and when an environment is still the one that was made."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envbuilder.binaries.known import MARKER
from envbuilder.build.assemble import is_intact
from envbuilder.build.interpreters import find_interpreter
from envbuilder.build.plan import chosen_machine, make_plan
from envbuilder.cli import main
from envbuilder.errors import ConfigurationError, UsageError
from envbuilder.layout import Layout
from envbuilder.locking.model import LockedFile, LockedWheel
from envbuilder.store.cache import Store
from envbuilder.targets.catalogue import find_target

if TYPE_CHECKING:
    from envbuilder.targets.model import Machine

ROOT = Path(__file__).parents[3]


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    return monkeypatch


@pytest.mark.parametrize(
    ("here", "asked", "machine"),
    [
        ("x86_64", None, "x86_64"),
        ("aarch64", None, "aarch64"),
        ("riscv64", None, "x86_64"),
        ("x86_64", "linux/aarch64", "aarch64"),
        ("aarch64", "linux/x86_64", "x86_64"),
        ("x86_64", "linux/x86_64", "x86_64"),
    ],
)
def test_a_target_of_two_platforms_is_built_for_this_machine_s_unless_another_is_asked_for(
    on: pytest.MonkeyPatch, here: str, asked: str | None, machine: str
) -> None:
    on.setattr(platform, "machine", lambda: here)
    assert chosen_machine(find_target("cuda")[0], asked) == machine


@pytest.mark.parametrize("asked", ["linux/riscv64", "aarch64", "linux/x86_64", ""])
def test_a_platform_that_the_target_has_not_is_wrong_usage_and_told_which_it_has(asked: str) -> None:
    with pytest.raises(UsageError, match=f"dgx-spark is not built for {asked}") as caught:
        chosen_machine(find_target("dgx-spark")[0], asked)
    assert "linux/aarch64" in caught.value.next


def test_the_command_refuses_a_platform_before_it_makes_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--target", "cpu", "--platform", "linux/aarch64", "--out", str(tmp_path / "out")]) == 2
    assert "Its platforms: linux/x86_64." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("here", "machine", "path"),
    [("x86_64", "x86_64", None), ("x86_64", "aarch64", "/usr/bin/python3.12"), ("aarch64", "x86_64", "/usr/bin/python3.12")],
)
def test_another_machine_s_environment_gets_the_python_that_the_target_names(
    on: pytest.MonkeyPatch, tmp_path: Path, here: str, machine: Machine, path: str | None
) -> None:
    on.setattr(platform, "machine", lambda: here)
    found = find_interpreter(find_target("cuda")[0], machine, store=Store(tmp_path))
    assert (found.machine, found.foreign) == (machine, path is not None)
    if path:
        assert (found.path, found.version) == (path, "3.12.3")


def test_a_target_without_a_cross_python_is_built_on_its_own_kind_of_machine_alone(on: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = find_target("cuda")[0].model_copy(update={"cross_python": None})
    on.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(ConfigurationError, match="for linux/aarch64 can only be built on such a machine"):
        find_interpreter(target, "aarch64", store=Store(tmp_path))


def test_the_plan_takes_the_files_of_the_machine_it_is_for(tmp_path: Path) -> None:
    """An x86_64 wheel in an environment for aarch64 installs without complaint, and fails when it is imported."""
    target, path = find_target("cuda")
    plans = {
        machine: make_plan(
            target, path, None, machine=machine, layout=Layout.of(tmp_path), store=Store(tmp_path), offline=True, smoke=False
        )
        for machine in target.machines
    }
    for machine, other in (("x86_64", "aarch64"), ("aarch64", "x86_64")):
        names = [wheel.file.filename for wheels in plans[machine].wheels.values() for wheel in wheels]  # type: ignore[index]
        assert plans[machine].interpreter.machine == machine  # type: ignore[index]
        assert [name for name in names if name.startswith("torch-") and name.endswith(f"{machine}.whl")]
        assert [name for name in names if name.endswith(f"{other}.whl")] == []


@pytest.mark.parametrize(("target", "vllm", "hint"), [("dgx-spark", "published", "--vllm source"), ("cpu", None, "Leave --verify out.")])
def test_verifying_what_is_not_compiled_is_wrong_usage(tmp_path: Path, target: str, vllm: str | None, hint: str) -> None:
    """Passed over in silence it would be taken for a wheel that was compared."""
    found, path = find_target(target)
    with pytest.raises(UsageError, match="--verify") as error:
        make_plan(
            found,
            path,
            None,
            machine=found.machines[0],
            layout=Layout.of(tmp_path),
            store=Store(tmp_path),
            offline=True,
            smoke=False,
            vllm=vllm,
            verify=True,
        )
    assert hint in error.value.next


# -- is it still there? ------------------------------------------------------------------------------------------

WHEEL = LockedWheel(name="six", version="1.0", file=LockedFile(filename="six-1.0-py3-none-any.whl", sha256="0" * 64, size=1))


@pytest.fixture
def made(tmp_path: Path) -> Layout:
    """An environment as a build leaves it: its Python is a link to one outside."""
    layout = Layout.of(tmp_path / "out")
    environment = layout.environment("serve")
    info = environment / "lib/python3.11/site-packages/six-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: six\nVersion: 1.0\n")
    (environment / MARKER).write_text(json.dumps({"identity": "abc"}))
    base = tmp_path / "base" / "python3.11"
    base.parent.mkdir()
    base.write_text("#!/bin/sh\n")
    base.chmod(0o755)
    (environment / "bin").mkdir()
    layout.python("serve").symlink_to(base)
    return layout


def intact(layout: Layout, *, foreign: bool = False, identity: str = "abc") -> bool:
    return is_intact(layout, "serve", identity, [WHEEL], foreign=foreign)


def test_an_environment_that_nobody_touched_is_intact(made: Layout) -> None:
    assert intact(made)
    assert not intact(made, identity="another one")


def test_an_environment_whose_base_python_is_gone_is_made_again(made: Layout, tmp_path: Path) -> None:
    """The link is still there, and nothing in the environment can run: a build that keeps it reports a success that is none."""
    (tmp_path / "base" / "python3.11").unlink()
    assert os.path.lexists(made.python("serve"))
    assert not intact(made)


def test_a_base_python_that_is_no_program_any_more_is_noticed(made: Layout, tmp_path: Path) -> None:
    (tmp_path / "base" / "python3.11").unlink()
    (tmp_path / "base" / "python3.11").mkdir()
    assert not intact(made)


def test_the_python_of_another_machine_was_never_here(made: Layout, tmp_path: Path) -> None:
    (tmp_path / "base" / "python3.11").unlink()
    assert intact(made, foreign=True)
    made.python("serve").unlink()
    assert not intact(made, foreign=True)


# -- what a build loads ------------------------------------------------------------------------------------------


def test_a_build_that_does_nothing_loads_no_client_and_no_cryptography() -> None:
    """It is to end in under a second; a client for HTTP alone takes a fifth of one."""
    code = """
import sys
import envbuilder.build.pipeline, envbuilder.build.plan, envbuilder.commands.build
print(sorted({"requests", "urllib3", "bs4", "pypi_simple", "cryptography", "docker", "zstandard", "elftools"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("given", ["0", "-3", "many", "1.5", ""])
def test_a_number_of_jobs_that_is_none_is_answered_in_words(capsys: pytest.CaptureFixture[str], given: str) -> None:
    """It said "invalid _positive value: '0'", which names a function of ours and not what is wanted."""
    assert main(["build", f"--jobs={given}"]) == 2
    shown = capsys.readouterr().err
    assert "must be a whole number of at least 1" in shown
    assert "_positive" not in shown
