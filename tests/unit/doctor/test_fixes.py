"""--fix and --undo: nothing is deleted, everything comes back, and nothing outside of the environment is touched."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from snapshots import SPARK, change, dist, with_dists

from envbuilder.console import Console
from envbuilder.doctor.examine import examine
from envbuilder.doctor.fixes import carry_out, mend, plan, undo_last
from envbuilder.errors import StepError
from envbuilder.facts.model import CachedLibrary

if TYPE_CHECKING:
    from pathlib import Path

    from envbuilder.facts.model import Snapshot


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVBUILDER_STATE", str(tmp_path / "state"))


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def sick(tmp_path: Path) -> Snapshot:
    """An environment with pip's leftovers, a FlashInfer that does not match, and a neighbour that shares a folder."""
    site = tmp_path / "env/lib/python3.12/site-packages"
    files = {
        "~orch/__init__.py": "half",
        "torch/__init__.py": "whole",
        "flashinfer_cubin/cubins/a.cubin": "kernel",
        "shared/x.txt": "theirs",
        "flashinfer_cubin-0.6.13.dist-info/RECORD": "flashinfer_cubin/cubins/a.cubin,,6\nshared/x.txt,,6\n../../../../outside.txt,,1\n/etc/passwd,,1\nflashinfer_cubin-0.6.13.dist-info/RECORD,,\n",
        "other-1.dist-info/RECORD": "shared/x.txt,,6\n",
    }
    for name, text in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    cache = tmp_path / "home/.cache/flashinfer/0.6.8/121a"
    cache.mkdir(parents=True)
    (cache / "norm.so").write_text("kernel")
    snapshot = change(
        SPARK,
        environment__path=str(tmp_path / "env"),
        environment__site_packages=(str(site),),
        environment__leftovers=("~orch",),
        environment__jit_cache=(CachedLibrary(path=str(cache / "norm.so"), cudart="12"),),
    )
    return with_dists(snapshot, dist("flashinfer-python", "0.6.14"), dist("flashinfer-cubin", "0.6.13"))


def test_what_is_mended_is_set_aside_and_comes_back(sick: Snapshot, tmp_path: Path) -> None:
    before = tree(tmp_path)
    repairs = plan(sick, examine(sick))
    assert {repair.id for repair in repairs} == {"EB-ENV-006", "EB-FI-001", "EB-FI-002"}
    carry_out(repairs)
    site = tmp_path / "env/lib/python3.12/site-packages"
    assert not (site / "~orch").exists()
    assert not (site / "flashinfer_cubin").exists()
    assert not (tmp_path / "home/.cache/flashinfer").exists()
    assert (site / "torch/__init__.py").exists()
    assert (site / "shared/x.txt").exists(), "another distribution owns it too"
    assert undo_last(Console(stream=io.StringIO())) == 0
    assert {name: text for name, text in tree(tmp_path).items() if not name.startswith("state/")} == before


def test_nothing_happens_without_a_yes(sick: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, stream = tree(tmp_path), io.StringIO()
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    result = examine(sick)
    assert mend(sick, result, Console(stream=stream), yes=False, again=lambda: pytest.fail("it was not asked to go on")) is result
    assert tree(tmp_path) == before
    assert "EB-FI-001" in stream.getvalue(), "the plan is shown all the same"


def test_it_is_examined_again_afterwards(sick: Snapshot) -> None:
    healthy = examine(SPARK)
    assert mend(sick, examine(sick), Console(stream=io.StringIO()), yes=True, again=lambda: healthy) is healthy


def test_a_mend_that_was_killed_halfway_can_be_taken_back(sick: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal comes before the first move."""
    before = tree(tmp_path)
    moves = 0
    rename = type(tmp_path).rename

    def dies(self: Path, goal: Path) -> Path:
        nonlocal moves
        moves += 1
        if moves == 3:
            raise KeyboardInterrupt
        return rename(self, goal)

    monkeypatch.setattr(type(tmp_path), "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        carry_out(plan(sick, examine(sick)))
    monkeypatch.undo()
    monkeypatch.setenv("ENVBUILDER_STATE", str(tmp_path / "state"))
    undo_last(Console(stream=io.StringIO()))
    assert {name: text for name, text in tree(tmp_path).items() if not name.startswith("state/")} == before


def test_undo_never_overwrites(sick: Snapshot, tmp_path: Path) -> None:
    carry_out(plan(sick, examine(sick)))
    new = tmp_path / "env/lib/python3.12/site-packages/~orch"
    new.mkdir()
    with pytest.raises(StepError, match="cannot put"):
        undo_last(Console(stream=io.StringIO()))
    assert list(new.iterdir()) == []


def test_without_a_journal_undo_has_nothing_to_do() -> None:
    stream = io.StringIO()
    assert undo_last(Console(stream=stream)) == 0
    assert "nothing" in stream.getvalue()


def test_a_healthy_machine_has_no_plan() -> None:
    assert plan(SPARK, examine(SPARK)) == []
