"""A snapshot is judged as what it shows, wherever it is replayed: by its target, its machine and its Python, not by ours."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from cases import PASSES, SPEAKS, examined
from snapshots import CPU, SPARK, change, dist, with_dists

from envbuilder.cli import main
from envbuilder.doctor.checks.common import pin_of, target_of
from envbuilder.doctor.examine import examine
from envbuilder.facts import redact
from envbuilder.facts.codec import from_json, to_json
from envbuilder.facts.detect import Identity, Machine
from envbuilder.files import write_json

if TYPE_CHECKING:
    from pathlib import Path

    from envbuilder.facts.model import Snapshot


def saved(path: Path, snapshot: Snapshot) -> str:
    write_json(path, to_json(snapshot))
    return str(path)


def test_a_snapshot_is_replayed_for_the_target_that_it_was_taken_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page said "cpu" over findings for a Spark: who reads it takes the wrong ones for the right ones."""
    path = saved(tmp_path / "a.json", change(CPU, target="dgx-spark"))
    main(["doctor", "--facts", path, "--json"])
    assert json.loads(capsys.readouterr().out)["target"] == "dgx-spark"
    main(["doctor", "--facts", path, "--target", "cuda", "--json"])
    assert json.loads(capsys.readouterr().out)["target"] == "cuda"


@pytest.mark.parametrize("machine", Machine)
def test_every_kind_of_machine_has_one_target(machine: Machine) -> None:
    """What the doctor judges for and what `build` would build must be the same."""
    assert target_of(change(CPU, machine=machine.value)) == Identity(machine=machine, product="", evidence=()).target


@pytest.mark.parametrize(("python", "pin"), [("3.9.2", "==1.0"), ("3.12.3", "==2.0")])
def test_markers_are_read_for_the_environments_python(python: str, pin: str) -> None:
    """An environment of another Python than ours was judged by pins that do not hold in it."""
    lines = ('torch==1.0; python_version < "3.10"', 'torch==2.0; python_version >= "3.10"')
    s = with_dists(change(SPARK, environment__interpreter__version=python), dist("vllm", "0.23.0", *lines))
    assert s.environment is not None
    entry = next(one for one in s.environment.distributions if one.name == "vllm")
    assert pin_of(s, entry, "torch") == pin


@pytest.mark.parametrize("arch", ["aarch64", "x86_64"])
def test_markers_are_read_for_the_environments_machine(arch: str) -> None:
    """A Spark's snapshot is judged on any laptop: one of the two machines is not ours."""
    entry = dist("vllm", "0.23.0", 'torch==1.0; platform_machine == "aarch64"', 'torch==2.0; platform_machine != "aarch64"')
    assert pin_of(change(SPARK, host__arch=arch, environment__lock=None), entry, "torch") == ("==1.0" if arch == "aarch64" else "==2.0")


@pytest.mark.parametrize(
    "snapshot", [*(one for _, one in SPEAKS.values()), *PASSES.values()], ids=[*SPEAKS, *(f"{name} passes" for name in PASSES)]
)
def test_what_a_check_rests_on_is_saved(snapshot: Snapshot) -> None:
    """What redaction takes must decide no verdict: each check has a machine here where it speaks up."""
    again = from_json(json.loads(json.dumps(to_json(redact.tree(snapshot)))))
    seen, replayed = (
        [(one.check.id, one.status, one.explained_by) for one in which.findings] for which in (examined(snapshot), examine(again))
    )
    assert replayed == seen
