"""Every check: an explanation, a machine where it speaks up, and one where it passes. No alarm on a healthy machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cases import PASSES, SPEAKS, with_plugin
from snapshots import HEALTHY, SPARK, change

from envbuilder.doctor.examine import examine, run_check
from envbuilder.doctor.model import Check, Severity, Status, Verdict
from envbuilder.doctor.pages import family_pages, page
from envbuilder.doctor.registry import all_checks, find
from envbuilder.errors import UnknownNameError
from envbuilder.facts.model import Reading, Snapshot

STATIC = [check.id for check in all_checks().values() if check.judge is not None]


def status_of(id: str, snapshot: Snapshot) -> Verdict:
    return run_check(all_checks()[id], snapshot)


def test_there_are_at_least_100_checks() -> None:
    assert len(STATIC) >= 100


def test_every_failure_of_the_corpus_is_known_by_its_name() -> None:
    """90 failures collected from public threads: what one of them is called there is its name here."""
    corpus = (Path(__file__).parents[2] / "machines/corpus.txt").read_text().split()
    names = {check.name for check in all_checks().values()}
    assert len(corpus) == 90
    assert [name for name in corpus if name not in names] == []


def test_all_of_the_corpus_but_what_only_shows_at_run_time_is_found_without_a_log() -> None:
    """72 of the 90 leave a static trace by the collectors' own word; these nine show themselves while something runs, or not at all."""
    static = {check.name for check in all_checks().values() if check.judge is not None}
    corpus = (Path(__file__).parents[2] / "machines/corpus.txt").read_text().split()
    assert {name for name in corpus if name not in static} == {
        "flashinfer-tllmgen-unsupported",
        "fst-gds-warning",
        "rpc-sample-timeout",
        "tf-auto-multimodal-empty",
        "triton-smem-99k",
        "vllm-fp4-marlin-warning",
        "vllm-fp8-block-sm121",
        "vllm-profile-overrun",
        "vllm-wheel-platform-tag",
    }


def test_every_check_has_a_machine_where_it_speaks_and_none_is_for_a_check_that_is_gone() -> None:
    assert set(STATIC) == set(SPEAKS)


@pytest.mark.parametrize("id", STATIC)
def test_it_speaks_up_where_the_fault_is(id: str) -> None:
    expected, snapshot = SPEAKS[id]
    verdict = status_of(id, snapshot)
    assert verdict.status.value == expected, verdict
    if expected in {"fail", "warn"}:
        assert verdict.evidence
        assert verdict.expected, "a fault says what was expected instead"


@pytest.mark.parametrize("id", STATIC)
def test_it_passes_on_a_machine_without_the_fault(id: str) -> None:
    machines = [PASSES[id]] if id in PASSES else HEALTHY.values()
    assert Status.PASS in {status_of(id, snapshot).status for snapshot in machines}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_machine_gives_no_alarm(name: str) -> None:
    alarms = [(finding.check.id, finding.verdict) for finding in examine(HEALTHY[name]).findings if finding.is_fault]
    assert alarms == []


@pytest.mark.parametrize("id", list(all_checks()))
def test_every_id_is_explained_why_and_not_only_what_to_type(id: str) -> None:
    check, entry = all_checks()[id], page(id)
    assert entry.name == check.name
    assert len(entry.title) <= 80
    assert len(entry.why.split()) >= 12, "why it matters takes more than a few words"
    assert entry.fix
    assert not re.search(r"\b(sudo )?rm -rf /(?:\s|$)", " ".join(entry.commands))


def test_every_page_belongs_to_a_check() -> None:
    folder = Path(all_checks.__wrapped__.__code__.co_filename).parent / "pages"
    written = {key for path in folder.glob("*.md") for key in family_pages(path.stem.upper())}
    assert written == set(all_checks())


def test_names_and_ids_are_unique_and_what_they_follow_from_exists() -> None:
    checks = list(all_checks().values())
    assert len({check.name for check in checks}) == len(checks)
    assert {cause for check in checks for cause in check.after} <= set(all_checks())


def test_a_device_plugin_whose_log_only_root_may_read_is_not_called_sound() -> None:
    verdict = status_of("EB-CTR-018", with_plugin(SPARK, "", readable=False))
    assert verdict.status is Status.UNKNOWN
    assert "/var/log/pods" in verdict.note


def test_a_check_that_lacks_its_section_says_unknown_and_why() -> None:
    reading = Reading(name="memory", status="timeout", milliseconds=5000, error="no answer in 5 s")
    verdict = status_of("EB-MEM-001", change(SPARK, memory=None, readers=(reading,)))
    assert verdict.status is Status.UNKNOWN
    assert "no answer" in verdict.note


@pytest.mark.parametrize("id", STATIC)
def test_no_check_crashes_on_a_machine_that_tells_nothing(id: str) -> None:
    """A container without /proc, a reader that hung: a hole in the snapshot is no reason to fall over."""
    assert status_of(id, Snapshot(machine="cpu")).status in {Status.SKIP, Status.UNKNOWN, Status.PASS, Status.INFO}
    for section in ("host", "driver", "nvml", "pci", "environment", "memory", "variables", "packages", "toolkits", "project"):
        assert status_of(id, change(SPARK, **{section: None})).status is not Status.CRASH


def test_a_check_that_crashes_is_a_result() -> None:
    def judge(_: Snapshot) -> Verdict:
        raise ZeroDivisionError("boom")

    broken = Check(id="EB-ZZZ-999", name="broken", severity=Severity.INFO, judge=judge)
    verdict = run_check(broken, SPARK)
    assert verdict.status is Status.CRASH
    assert "boom" in verdict.evidence[0].value


def test_an_unknown_id_is_answered_with_the_nearest() -> None:
    assert find("nvml-driver-mismatch").id == "EB-DRV-006"
    assert find("eb-drv-006").id == "EB-DRV-006"
    with pytest.raises(UnknownNameError, match="unknown check"):
        find("EB-DRV-0006")


def test_explaining_one_id_imports_its_family_alone() -> None:
    """`explain` answers in a tenth of a second: fifteen modules of checks would take as long again."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from envbuilder.doctor.registry import all_checks, find; find('eb-tri-001')\n"
        "print(sorted(name.rpartition('.')[2] for name in sys.modules if name.startswith('envbuilder.doctor.checks.')))\n"
        "print([check.id for check in list(all_checks().values())[:2]])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code, Path(__file__).parents[3]], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['common', 'kernels']", "['EB-MACH-001', 'EB-MACH-002']"], "and the order of all stays"
