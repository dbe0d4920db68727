"""The run on a GPU machine: its harness must bound, isolate and report whatever a stage does, since nobody is there to look."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

GPU = Path(__file__).parents[1] / "gpu"


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(GPU))
    monkeypatch.syspath_prepend(str(GPU / "stages"))
    for name in ("run", "page", "common"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def run_module() -> ModuleType:
    return importlib.import_module("run")


def request(folder: Path, *, gpu: bool = False) -> Path:
    path = folder / "request.json"
    path.write_text(json.dumps({"gpu": gpu}))
    return path


def test_a_stage_that_hangs_is_stopped_with_its_children(tmp_path: Path) -> None:
    """Without it one kernel that never ends would cost the whole lease."""
    alive = tmp_path / "alive"
    child = f"import time, pathlib\nwhile True:\n    pathlib.Path({str(alive)!r}).write_text(str(time.time())); time.sleep(0.02)"
    parent = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\ntime.sleep(60)"
    assert run_module().run_child([sys.executable, "-c", parent], log=tmp_path / "log", limit_s=1.5) is None, "it ended by itself"
    assert alive.exists(), "the child had not started: this proved nothing"
    time.sleep(0.2)
    before = alive.read_text()
    time.sleep(0.3)
    assert alive.read_text() == before, "the stage's own child went on"


def test_a_stages_own_end_is_told(tmp_path: Path) -> None:
    assert run_module().run_child([sys.executable, "-c", "raise SystemExit(3)"], log=tmp_path / "log", limit_s=30) == 3


@pytest.mark.parametrize(
    ("statuses", "broken", "expected"),
    [
        (["passed", "not-run"], False, "passed"),
        (["passed", "failed"], False, "failed"),
        (["not-run"], False, "not-run"),
        ([], False, "not-run"),
        (["passed"], True, "failed"),
    ],
)
def test_what_a_stage_comes_to(statuses: list[str], broken: bool, expected: str) -> None:  # noqa: FBT001
    """A stage that died after its first check must not be called passed, nor one in which nothing ran."""
    assert run_module().status_of([{"status": status} for status in statuses], broken=broken) == expected


def test_a_check_never_raises_and_each_is_on_disk_at_once(tmp_path: Path) -> None:
    """What a stage had found before it was killed must be in the result."""
    common = importlib.import_module("common")

    report = common.Report(request(tmp_path))
    with report.check("fine") as figures:
        figures["n"] = 1
    assert [check["name"] for check in json.loads((tmp_path / "checks.json").read_text())] == ["fine"]
    with report.check("wrong"):
        raise AssertionError("off by one")
    with report.check("broken"):
        sys.exit("gone")
    with report.check("gpu"):
        report.require_gpu()
    checks = json.loads((tmp_path / "checks.json").read_text())
    assert [(check["status"], check["reason"]) for check in checks] == [
        ("passed", ""),
        ("failed", "off by one"),
        ("failed", "SystemExit: gone"),
        ("not-run", "no GPU here"),
    ]


def document(**stages: Any) -> dict[str, Any]:
    machine = {"gpus": ["NVIDIA H200"], "arch": "x86_64", "cpus": 16, "kernel": "6.18", "python": "3.12.3", "versions": {"torch": "2.11.0"}}
    return {"date": "2026-11-23", "machine": machine, "stages": stages}


def stage(status: str, **check: Any) -> dict[str, Any]:
    return {
        "status": status,
        "seconds": 1.5,
        "reason": "",
        "checks": [{"name": "one", "status": status, "reason": "", "figures": {}, **check}],
    }


def test_the_page_says_what_failed_and_takes_a_stage_from_its_last_run(tmp_path: Path) -> None:
    page = importlib.import_module("page")

    first = document(doctor=stage("failed", reason="a | b"), facts=stage("not-run", reason="no GPU here"))
    later = document(doctor=stage("passed", figures={"ratio": 0.93333, "layers": {"Linear": 3}}))
    alone = page.render(page.merged([first]))
    assert "- one: **failed** (a \\| b)" in alone
    both = page.render(page.merged([first, later]))
    assert "**failed**" not in both
    assert "  - ratio: 0.9333\n  - layers: Linear 3" in both
    assert "- one: not run (no GPU here)" in both


def test_the_page_keeps_its_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written by hand; rendering again must not lose them."""
    page = importlib.import_module("page")

    result, goal = tmp_path / "result.json", tmp_path / "page.md"
    result.write_text(json.dumps(document(doctor=stage("passed"))))
    goal.write_text("# old\n\n## Notes\n\nkept by hand\n")
    monkeypatch.setattr(sys, "argv", ["page.py", str(result), "--page", str(goal)])
    assert page.main() == 0
    assert goal.read_text().startswith("# A run on a real NVIDIA GPU")
    assert goal.read_text().endswith("## Notes\n\nkept by hand\n")
