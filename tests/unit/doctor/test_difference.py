"""`envs diff`: what differs is named, what is only elsewhere or a moment older is not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from simulated import HOME, spark
from snapshots import SPARK, change, dist, with_dists

from envbuilder.cli import main
from envbuilder.doctor.difference import differences
from envbuilder.facts.codec import to_json
from envbuilder.facts.model import Choice, DriverLibrary, Toolkit
from envbuilder.facts.snapshot import take
from envbuilder.files import write_json

if TYPE_CHECKING:
    from envbuilder.facts.model import Snapshot


def where(first: Snapshot, second: Snapshot) -> list[str]:
    return [one.where for one in differences(first, second)]


def test_toolkits_are_compared() -> None:
    """They begin as `tool` does, which says who took the snapshot, and were left out with it."""
    kit = Toolkit(path="/usr/local/cuda-12.6", release="12.6", nvcc=True, found_by=("PATH",))
    assert where(SPARK, change(SPARK, toolkits=(*SPARK.toolkits, kit))) == [
        f"toolkits./usr/local/cuda-12.6.{name}" for name in ("release", "nvcc", "found_by")
    ]
    assert where(SPARK, change(SPARK, tool="9.9", readers=(), chosen=Choice(path="/a", why="--env"))) == []


def test_an_environment_that_lies_elsewhere_is_the_same(tmp_path: Path) -> None:
    """Two copies differed in the path of their interpreter, and in every path that begins with their folder."""
    build = spark(tmp_path)
    there = tmp_path / "srv/copy"
    shutil.copytree(tmp_path / HOME.lstrip("/") / ".venv", there, symlinks=True)
    (there / "bin/activate").write_text("VIRTUAL_ENV=/srv/copy\n")
    first, second = (take(build.world(), environment=Path(path)) for path in (f"{HOME}/.venv", "/srv/copy"))
    assert where(first, second) == []
    shutil.rmtree(there / "lib/python3.12/site-packages/triton-3.6.0.dist-info")
    assert where(first, take(build.world(), environment=Path("/srv/copy"))) == ["environment.distributions.triton"]


def test_a_folder_whose_name_begins_alike_is_another() -> None:
    first = change(SPARK, environment__path="/srv/a", environment__shadowed=("/srv/ab/torch",))
    assert where(first, change(first, environment__path="/srv/ab")) == ["environment.shadowed"]


def test_what_has_nothing_but_a_name_and_what_is_there_twice_is_compared() -> None:
    assert SPARK.driver is not None
    library = DriverLibrary(path="/opt/lib/libcuda.so.1", version="")
    assert where(SPARK, change(SPARK, driver__libraries=(*SPARK.driver.libraries, library))) == ["driver.libraries./opt/lib/libcuda.so.1"]
    twice = with_dists(SPARK, dist("numpy", "2.0"), dist("numpy", "2.1"))
    assert [one.second for one in differences(with_dists(SPARK, dist("numpy", "2.1")), twice)] == ["2.0, 2.1"]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_folder_without_an_environment_is_not_compared(reverse: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: FBT001
    """Two empty folders had "no difference"."""
    write_json(tmp_path / "a.json", to_json(SPARK))
    (tmp_path / "empty").mkdir()
    arguments = [str(tmp_path / "empty"), str(tmp_path / "a.json")]
    assert main(["envs", "diff", *(arguments[::-1] if reverse else arguments)]) == 2
    assert "is no environment" in capsys.readouterr().err


def test_a_person_s_name_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that was saved has lost it; the machine that it is compared with has not."""
    monkeypatch.setattr("envbuilder.facts.redact._people", lambda: frozenset({"alice"}))
    one = change(SPARK, variables={"HF_HOME": "/data/alice/hf"})
    assert where(one, dataclasses.replace(one, variables={"HF_HOME": "/data/<user>/hf"})) == []
    assert json.dumps([dataclasses.asdict(row) for row in differences(one, change(one, variables={}))]).count("alice") == 0
