"""A snapshot of a real machine with an NVIDIA H200 and its Python environment, taken by tests/gpu/run.py, judged anew."""

from __future__ import annotations

from pathlib import Path

from envbuilder.doctor.examine import examine
from envbuilder.facts.codec import load

SNAPSHOT = Path(__file__).parents[2] / "fixtures" / "h200-snapshot.json"


def test_a_real_h200_has_its_target_and_gives_no_alarm() -> None:
    """A check that cries on a sound machine would be the first thing that its owner sees of us."""
    result = examine(load(SNAPSHOT))
    assert result.target == "cuda"
    assert "NVIDIA H200" in result.host
    assert [(finding.check.id, finding.status) for finding in result.findings if finding.is_fault] == []


def test_the_real_machines_facts_are_complete() -> None:
    """A reader that failed there must not come back as silence."""
    snapshot = load(SNAPSHOT)
    assert [reading for reading in snapshot.readers if reading.status != "ok"] == []
    assert snapshot.nvml is not None
    assert [gpu.compute_capability for gpu in snapshot.nvml.gpus] == ["9.0"]
    assert snapshot.environment is not None
    assert snapshot.environment.torch is not None
