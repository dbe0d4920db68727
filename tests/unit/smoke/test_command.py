"""`envbuilder smoke`: exit codes and the one document are a contract."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from envbuilder import smoke
from envbuilder.cli import main
from envbuilder.smoke.results import ANSWER, Device, Stage, Status

if TYPE_CHECKING:
    from pathlib import Path

    from envbuilder.smoke.results import QuantizeResult, ServeResult

# As a manifest has it.
TOLD = {
    "serve": {"variables": {"VLLM_A": "1"}, "arguments": ["--attention-backend", "TRITON_ATTN"]},
    "quantize": {"variables": {"B": "2"}, "arguments": []},
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A build's output folder whose environments are this test's own interpreter: no torch, no vLLM."""
    for name in ("serve", "quantize"):
        (tmp_path / "envs" / name / "bin").mkdir(parents=True)
        (tmp_path / "envs" / name / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "manifest.json").write_text(json.dumps({"environments": TOLD}))
    return tmp_path


def _document(text: str) -> dict[str, Any]:
    """Standard output must be this one document and nothing else; json.loads would refuse a second."""
    document: dict[str, Any] = json.loads(text)
    schema = json.loads(resources.files("envbuilder.schemas").joinpath("smoke.json").read_text(encoding="utf-8"))
    jsonschema.validate(document, schema)
    return document


def test_a_failure_is_one_document_and_code_1(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["smoke", "--out", str(out), "--json"]) == 1
    shown = capsys.readouterr()
    document = _document(shown.out)
    assert document == json.loads((out / "smoke.json").read_text())
    assert document["stages"]["quantize"]["status"] == "failed"
    assert document["stages"]["serve"]["status"] == "not-run"
    assert "error[smoke]" in shown.err
    assert "No module named 'torch'" in shown.err
    assert (out / ".smoke").exists()  # the replay line needs it


def test_a_pass_is_code_0_and_fits_80_columns(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, quantized: QuantizeResult, served: ServeResult
) -> None:
    monkeypatch.setattr(smoke, "quantize", lambda *_: quantized)
    monkeypatch.setattr(smoke, "serve", lambda *_: served)
    assert main(["smoke", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert max(map(len, (shown.out + shown.err).splitlines())) <= 80
    assert "reference kernel stood in" in " ".join(shown.err.split())
    assert _document((out / "smoke.json").read_text())["exact"]


def test_nonsense_from_the_server_is_code_1(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, quantized: QuantizeResult, served: ServeResult
) -> None:
    stage = Stage(status=Status.FAILED, reason="it differs from character 1 on")
    wrong = replace(served, decode=stage, decoded={"served": "Paris", "served_chat": ANSWER})
    monkeypatch.setattr(smoke, "quantize", lambda *_: quantized)
    monkeypatch.setattr(smoke, "serve", lambda *_: wrong)
    assert main(["smoke", "--out", str(out), "--json"]) == 1
    assert not _document(capsys.readouterr().out)["exact"]


def test_not_run_is_code_1_since_nothing_was_proved(out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that goes on after `envbuilder smoke &&` must not go on here."""
    monkeypatch.setattr(smoke, "look", lambda *_, **__: (Device.CUDA, "this machine has no NVIDIA GPU"))
    assert main(["smoke", "--out", str(out), "--json"]) == 1
    document = _document(capsys.readouterr().out)
    assert {stage["status"] for stage in document["stages"].values()} == {"not-run"}


def test_the_server_is_told_what_the_build_told_it(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, quantized: QuantizeResult, served: ServeResult
) -> None:
    """Without the target's word this command proved another server than the build, `envbuilder run` and the image."""
    asked: list[Any] = []
    monkeypatch.setattr(smoke, "quantize", lambda request, _: asked.append(request) or quantized)
    monkeypatch.setattr(smoke, "serve", lambda request, _: asked.append(request) or served)
    assert main(["smoke", "--out", str(out)]) == 0
    assert [request.variables for request in asked] == [{"B": "2"}, {"VLLM_A": "1"}]
    assert asked[1].arguments == ("--attention-backend", "TRITON_ATTN")
    assert "error" not in capsys.readouterr().err


def test_environments_without_a_manifest_are_no_finished_build(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the target tells its servers is not known then: a proof without it would be of something else."""
    (out / "manifest.json").unlink()
    assert main(["smoke", "--out", str(out)]) == 2
    assert "holds no finished build" in capsys.readouterr().err
    assert not (out / "smoke.json").exists()


def test_a_folder_without_a_build_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["smoke", "--out", str(tmp_path)]) == 2
    assert "envbuilder build" in capsys.readouterr().err
    assert not (tmp_path / "smoke.json").exists()
