"""Whole simulated machines, from files and a compiled NVML to the finding that stands first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from simulated import MACHINES, SECRETS, spark

from envbuilder.doctor.document import document
from envbuilder.doctor.examine import examine
from envbuilder.doctor.model import Status
from envbuilder.doctor.render import Style, examination
from envbuilder.facts import redact
from envbuilder.facts.codec import load, to_json
from envbuilder.facts.snapshot import take
from envbuilder.files import write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulated import Machine

    from envbuilder.doctor.model import Examination
    from envbuilder.facts.model import Snapshot


class Seen(NamedTuple):
    machine: Machine
    snapshot: Snapshot
    result: Examination


@pytest.fixture(scope="module", params=MACHINES)
def seen(request: pytest.FixtureRequest, snapshot_of: Callable[[str], Snapshot]) -> Seen:
    snapshot = snapshot_of(request.param)
    return Seen(MACHINES[request.param], snapshot, examine(snapshot))


def test_there_are_at_least_15_machines() -> None:
    assert len(MACHINES) >= 15


def test_each_machine_is_known_and_its_fault_stands_first(seen: Seen) -> None:
    machine, snapshot, result = seen
    assert [reading for reading in snapshot.readers if reading.status != "ok"] == []
    assert (snapshot.machine, result.target) == (machine.kind, machine.target)
    faults = [finding for finding in result.findings if finding.is_fault and not finding.explained_by]
    assert {finding.check.id for finding in faults} == set(machine.roots), [(finding.check.id, finding.verdict) for finding in faults]
    assert not [finding for finding in result.findings if finding.status is Status.CRASH]
    informed = {finding.check.id for finding in result.findings if finding.status is Status.INFO}
    assert set(machine.notes) <= informed


def test_a_saved_snapshot_gives_the_same_findings_anywhere(seen: Seen, tmp_path: Path) -> None:
    """Whoever helps judges the saved file: another verdict, another cause or another fix there would lead both astray."""
    write_json(tmp_path / "saved.json", to_json(redact.tree(seen.snapshot)))
    assert unquoted(document(examine(load(tmp_path / "saved.json")))) == unquoted(document(seen.result))


def unquoted(value: dict[str, Any]) -> Any:
    """Return a document in which a command names nobody in one way: what stands for a name is quoted when a snapshot is replayed."""
    return json.loads(json.dumps(value).replace("'<user>'", "<user>"))


def test_nothing_that_names_a_person_or_a_machine_leaves(seen: Seen) -> None:
    """Serial numbers, user names, tokens, addresses, GPU ids: they stand in the files, and in nothing that is printed or saved."""
    result = seen.result
    texts = [json.dumps(to_json(redact.tree(seen.snapshot))), json.dumps(document(result)), examination(result, Style(), everything=True)]
    assert [(secret, text[:200]) for secret in SECRETS for text in texts if secret in text] == []


def test_the_findings_page_fits_80_columns(seen: Seen) -> None:
    """Commands alone may be longer: a broken command cannot be pasted."""
    for style in (Style(), Style(plain=True)):
        lines = examination(seen.result, style, everything=True).splitlines()
        assert [line for line in lines if len(line) > 80 and not line.startswith(" " * 10)] == []


def test_a_token_and_a_person_in_variables_do_not_leave(tmp_path: Path) -> None:
    build = spark(tmp_path)
    build.variables |= {
        "HF_TOKEN": SECRETS[2],
        "PIP_INDEX_URL": "https://alice:sesame-open@index.example/simple",
        "HF_HOME": "/home/alice/hf",
    }
    text = json.dumps(to_json(redact.tree(take(build.world(), environment=build.environment))))
    assert not any(secret in text for secret in (*SECRETS, "sesame-open"))


def test_a_gb10_answers_through_the_real_nvidia_ml_py(tmp_path: Path) -> None:
    """The child process, nvidia-ml-py and the C calls are the real ones: only the driver behind them is not."""
    build = spark(tmp_path)
    snapshot = take(build.world(), environment=build.environment)
    assert snapshot.nvml is not None
    assert (snapshot.nvml.status, snapshot.nvml.driver, snapshot.nvml.cuda) == ("ok", "580.173.02", "13.0")
    gpu = snapshot.nvml.gpus[0]
    assert (gpu.name, gpu.compute_capability, gpu.memory_total, gpu.sm_clock_mhz, gpu.power_w) == ("NVIDIA GB10", "12.1", None, 208, 4.5)


def test_a_real_h200_gave_no_alarm() -> None:
    """A snapshot that `doctor --save` wrote on a machine with an NVIDIA H200 and driver 580.159.04, and not a simulated one."""
    snapshot = load(Path(__file__).parents[2] / "machines/h200.json")
    result = examine(snapshot)
    assert (result.target, [finding for finding in result.findings if finding.is_fault]) == ("cuda", [])
    assert "NVIDIA H200" in result.host


def test_a_driver_that_hangs_is_a_finding_in_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envbuilder.facts.driver.NVML_LIMIT_S", 1.0)
    build = spark(tmp_path).nvml(HANG=1)
    result = examine(take(build.world(), environment=build.environment))
    assert result.findings[0].check.id == "EB-DRV-028"
