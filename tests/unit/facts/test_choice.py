"""Which environment is judged where none is named, and that the page says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from simulated import HOME, spark
from snapshots import CPU, SPARK, change

from envbuilder.cli import main
from envbuilder.doctor.examine import examine
from envbuilder.doctor.render import Style, examination
from envbuilder.facts.codec import to_json
from envbuilder.facts.extensions import read_extensions
from envbuilder.facts.model import Choice
from envbuilder.facts.site_packages import sites_of
from envbuilder.facts.snapshot import find_environment, take
from envbuilder.facts.world import World
from envbuilder.files import write_json

if TYPE_CHECKING:
    from simulated import Builder

IN_FOLDER, BUILT = "found in this folder", "built in this folder"


def venv(build: Builder, path: str) -> None:
    build.file(f"{HOME}/{path}/pyvenv.cfg", "home = /usr/bin\n")


def found(build: Builder, target: str = "") -> tuple[str, str]:
    choice = find_environment(build.world(), target=target)
    return (choice.path.removeprefix(f"{HOME}/"), choice.why) if choice else ("", "")


def test_the_order_is_the_documented_one(tmp_path: Path) -> None:
    """Each one that is added comes before all that were there: else a page is about an environment that nobody meant."""
    build = spark(tmp_path).remove(f"{HOME}/.venv")
    assert found(build) == ("", "")
    build.file("/.dockerenv").file("/usr/local/lib/python3.12/dist-packages/vllm/__init__.py")
    assert found(build) == ("/usr/local", "the container's own")
    venv(build, ".venv")
    assert found(build) == (".venv", IN_FOLDER)
    venv(build, ".envbuilder/cpu/envs/serve")
    assert found(build) == (".envbuilder/cpu/envs/serve", BUILT)
    build.variables["CONDA_PREFIX"] = "/opt/conda"
    assert found(build) == ("/opt/conda", "CONDA_PREFIX")
    build.variables["VIRTUAL_ENV"] = "/srv/other"
    assert found(build) == ("/srv/other", "VIRTUAL_ENV")
    taken = take(build.world(), environment=Path("there"))
    assert taken.chosen == Choice(path=f"{HOME}/there", why="--env"), "a relative one is meant from here"


def test_of_several_builds_the_one_for_this_machine_is_meant_or_the_target_asked_for(tmp_path: Path) -> None:
    build = spark(tmp_path)
    for name in ("cpu", "cuda", "dgx-spark", "mine"):
        venv(build, f".envbuilder/{name}/envs/serve")
    assert found(build) == (".envbuilder/dgx-spark/envs/serve", BUILT)
    assert found(build, "mine") == (".envbuilder/mine/envs/serve", BUILT)


@pytest.mark.parametrize("python", ["/opt/venv/bin/python3", "/opt/conda/bin/python"])
def test_an_images_own_prefix_is_that_of_its_python(python: str, tmp_path: Path) -> None:
    build = spark(tmp_path).remove(f"{HOME}/.venv").file("/.dockerenv").file(python, mode=0o755)
    prefix = python.partition("/bin/")[0]
    build.variables["PATH"] = f"{prefix}/bin:/usr/bin"
    assert found(build) == ("", ""), "nothing in it serves"
    build.file(f"{prefix}/lib/python3.12/site-packages/torch/version.py")
    assert found(build) == (prefix, "the container's own")


def test_a_hosts_own_python_is_nobodys_environment(tmp_path: Path) -> None:
    build = spark(tmp_path).remove(f"{HOME}/.venv").file("/usr/local/lib/python3.12/dist-packages/torch/version.py")
    assert found(build) == ("", "")


@pytest.mark.parametrize("package", ["", "vllm", "torch"])
def test_the_launchers_private_environment_is_not_the_users(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a clone, `bin/envbuilder doctor` called the .venv that it had made for itself well. Where it serves too, it is meant."""
    own = tmp_path / ".venv"
    (own / "lib/python3.12/site-packages" / (package or "rich")).mkdir(parents=True)
    (own / "pyvenv.cfg").write_text("home = /usr/bin\n")
    monkeypatch.setattr(sys, "prefix", str(own))
    choice = find_environment(World(variables={}, directory=tmp_path))
    assert (choice is not None and choice.path == str(own)) == bool(package)
    active = find_environment(World(variables={"VIRTUAL_ENV": str(own)}, directory=tmp_path))
    assert active == Choice(path=str(own), why="VIRTUAL_ENV"), "who activated it means it"


def test_the_packages_that_serve_come_first(tmp_path: Path) -> None:
    """Below /usr/local lie those of several Pythons: torch, its ptxas and its extensions were looked for in the first one."""
    for name in ("python3.10/dist-packages/pip", "python3.11/site-packages/wheel", "python3.12/dist-packages/vllm"):
        (tmp_path / "lib" / name).mkdir(parents=True)
    assert sites_of(tmp_path)[0] == tmp_path / "lib/python3.12/dist-packages"
    (tmp_path / "lib/python3.12/dist-packages/vllm/_C.abi3.so").write_bytes(b"no library")
    assert [one["path"] for one in read_extensions(tmp_path)] == ["vllm/_C.abi3.so"]


def test_a_folder_that_was_removed_under_us_is_no_fault_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert find_environment(World(variables={})) is None


def test_the_page_names_what_was_judged_and_calls_nothing_well_that_was_not_there() -> None:
    """That nothing is wrong with a machine without an environment was read as: my environment is well."""
    page = examination(examine(change(SPARK, chosen=Choice(path="/srv/a", why="VIRTUAL_ENV"))), Style())
    assert "\nEnvironment: /srv/a (VIRTUAL_ENV)\n" in page
    assert "Nothing is wrong. " in page
    page = examination(examine(change(CPU, chosen=None, environment=None)), Style())
    assert "\nEnvironment: none found: name one with --env DIR\n" in page
    assert "Nothing is wrong with the machine. " in page


@pytest.mark.parametrize("choice", [Choice(path="/srv/a", why="CONDA_PREFIX"), None])
def test_a_replay_names_it_too(choice: Choice | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "a.json", to_json(change(SPARK, chosen=choice)))
    main(["doctor", "--facts", str(tmp_path / "a.json"), "--json"])
    assert SPARK.environment is not None
    expected = {"path": choice.path, "chosen_by": choice.why} if choice else {"path": SPARK.environment.path, "chosen_by": ""}
    assert json.loads(capsys.readouterr().out)["environment"] == expected
