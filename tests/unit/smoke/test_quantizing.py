"""The quantize stage around a child that fails: the result must say why, and how to try again by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envbuilder.smoke import children, quantizing
from envbuilder.smoke.quantizing import QuantizeRequest, quantize
from envbuilder.smoke.results import Control, Device, Status

if TYPE_CHECKING:
    from envbuilder.console import Console


def _request(tmp_path: Path, **changes: object) -> QuantizeRequest:
    given: dict[str, object] = {"python": Path(sys.executable), "work": tmp_path / "canary", "log": tmp_path / "logs" / "quantize.log"}
    return QuantizeRequest(**(given | changes))  # type: ignore[arg-type]


def test_an_environment_without_torch_is_told_by_its_cause(tmp_path: Path, console: Console) -> None:
    """A real child: this test's own interpreter has no torch."""
    request = _request(tmp_path, device=Device.CUDA)
    result = quantize(request, console)
    assert result.stage.status is Status.FAILED
    assert "No module named 'torch'" in result.stage.reason
    assert "Traceback" not in result.stage.reason
    assert f"Log: {request.log}" in result.stage.next
    assert "canary.py" in result.stage.next
    assert result.device is Device.CUDA
    assert result.measured is None


def test_the_cause_is_this_runs_and_not_an_earlier_ones(tmp_path: Path, console: Console) -> None:
    """One log holds several runs: an old error in it must not be given as the reason."""
    request = _request(tmp_path)
    request.log.parent.mkdir()
    request.log.write_text("ValueError: of an earlier run\n")
    assert "earlier" not in quantize(request, console).stage.reason


@pytest.mark.parametrize("left", ["", "{", "[]", '{"decoded": {}}'])
def test_a_child_that_ends_well_and_leaves_no_result_fails(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    script = tmp_path / "inside" / "canary.py"
    script.parent.mkdir()
    script.write_text(f"import pathlib; pathlib.Path('result.json').write_text({left!r})")
    monkeypatch.setattr(children, "INSIDE", script.parent)
    result = quantize(_request(tmp_path), console)
    assert result.stage.status is Status.FAILED
    assert "no result that can be read" in result.stage.reason


def test_a_child_that_hangs_is_stopped(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "canary.py").write_text("import time; time.sleep(600)")
    monkeypatch.setattr(children, "INSIDE", tmp_path)
    result = quantize(_request(tmp_path, timeout_s=0.5), console)
    assert "stopped after" in result.stage.reason


def test_what_an_earlier_run_left_is_removed_first(tmp_path: Path, console: Console) -> None:
    """Else an old result.json would be read as the new one."""
    old = tmp_path / "canary" / "result.json"
    old.parent.mkdir()
    old.write_text("{}")
    quantize(_request(tmp_path), console)
    assert not old.exists()


@pytest.mark.parametrize(
    ("control", "steps", "bos"),
    [
        (Control.NONE, quantizing._MOST_STEPS, True),
        (Control.RANDOM_WEIGHTS, 0, True),
        (Control.TEMPLATE_WITHOUT_BOS, quantizing._MOST_STEPS, False),
    ],
)
def test_the_controls_reach_the_child(tmp_path: Path, console: Console, control: Control, steps: int, bos: bool) -> None:  # noqa: FBT001
    quantize(_request(tmp_path, control=control), console)
    asked = (tmp_path / "canary" / "request.json").read_text()
    assert f'"steps": {steps},' in asked
    assert f'"bos": {str(bos).lower()}' in asked
    assert str(tmp_path) not in asked  # the folder can be moved, and its bytes are the same everywhere


def test_a_child_gets_no_path_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTHONPATH would load another torch than the one that was built; no bytecode would triple the server's start."""
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert not {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE"} & children.variables(Path(sys.executable)).keys()
    assert children.variables(Path(sys.executable), extra={"PYTHONPATH": "/plugin"})["PYTHONPATH"] == "/plugin"
