"""The commands as a script and a person meet them: documents, exit codes, bad input, colour."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cases import SPEAKS, examined
from simulated import spark
from snapshots import SPARK, change

from envbuilder.cli import main
from envbuilder.commands import doctor as command
from envbuilder.doctor.examine import examine
from envbuilder.doctor.registry import all_checks
from envbuilder.doctor.render import Style, examination
from envbuilder.facts import model
from envbuilder.facts.codec import to_json
from envbuilder.facts.snapshot import take
from envbuilder.files import write_json

STATIC = [check.id for check in all_checks().values() if check.judge is not None]
SCHEMAS = Path(__file__).parents[3] / "envbuilder/schemas"


def schema(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((SCHEMAS / f"{name}.json").read_text())
    return value


def saved(path: Path, snapshot: model.Snapshot) -> str:
    write_json(path, to_json(snapshot))
    return str(path)


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


@pytest.mark.parametrize("id", ["EB-DRV-006", "EB-TORCH-001", "EB-MEM-001", "EB-GPU-007"])
def test_the_document_is_valid_against_its_schema(id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--facts", saved(tmp_path / "facts.json", SPEAKS[id][1]), "--json"])
    document = printed(capsys)
    jsonschema.validate(document, schema("doctor"))
    assert code == int(any(finding["status"] in {"fail", "warn", "crash"} for finding in document["findings"]))
    assert next(finding for finding in document["findings"] if finding["id"] == id)["status"] == SPEAKS[id][0]


def test_the_document_holds_what_the_contract_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--facts", saved(tmp_path / "facts.json", SPARK), "--json"])
    finding = printed(capsys)["findings"][0]
    assert {"id", "name", "status", "severity", "evidence", "expected", "why", "fix", "refs"} <= set(finding)
    assert set(finding["fix"]) == {"text", "commands"}


def test_a_healthy_machine_is_exit_code_0_and_a_sick_one_1(tmp_path: Path) -> None:
    assert main(["doctor", "--facts", saved(tmp_path / "well.json", SPARK)]) == 0
    assert main(["doctor", "--facts", saved(tmp_path / "sick.json", SPEAKS["EB-DRV-006"][1])]) == 1


BAD = {
    "not there": None,
    "not JSON": b"\x00\xff{{{",
    "a list": b"[]",
    "another version": b'{"schema": "envbuilder/facts/99", "machine": "spark"}',
    "no schema": b"{}",
    "a field of the wrong kind": b'{"schema": "envbuilder/facts/1", "machine": 7}',
    "an unknown field": b'{"schema": "envbuilder/facts/1", "machine": "spark", "colour": "green"}',
    "a hole in a section": b'{"schema": "envbuilder/facts/1", "machine": "spark", "cpu": {"count": 3}}',
    "a boolean for a number": b'{"schema": "envbuilder/facts/1", "machine": "spark", "cpu": {"count": true, "model": ""}}',
    "a tower": b"[" * 100_000,
}


@pytest.mark.parametrize("name", BAD)
def test_nonsense_for_a_snapshot_is_wrong_usage_not_a_crash(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "facts.json"
    if BAD[name] is not None:
        path.write_bytes(BAD[name])
    assert main(["doctor", "--facts", str(path)]) == 2
    assert "error[configuration]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--fix", "--log", "x"],
        ["--yes"],
        ["--fix", "--facts", "x"],
        ["--target", "dgx-sparc"],
        ["--check", "EB-XXX-001"],
        ["--log", "x", "--save", "y"],
        ["--log", "x", "--facts", "y"],
        ["--log", "x", "--env", "y"],
        ["--log", "x", "--model", "y"],
        ["--log", "x", "--target", "cpu"],
        ["--facts", "x", "--env", "y"],
        ["--facts", "x", "--model", "y"],
        ["--facts", "x", "--save", "y"],
        ["--undo", "--fix"],
        ["--undo", "--check", "EB-DRV-001"],
        ["--list", "--undo"],
        ["--check", "EB-MEM-015"],
        ["--log", "x", "--check", "EB-MEM-004"],
    ],
)
def test_what_cannot_be_asked_is_exit_code_2(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that is passed over without a word lets its user believe in a result that nobody looked for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_text(json.dumps(to_json(SPARK)))
    assert main(["doctor", *arguments]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]


@pytest.mark.parametrize("place", ["folder", "file/a.json", "pipe", "/proc/none/a.json"])
def test_a_snapshot_that_cannot_be_written_is_wrong_usage_and_replaces_nothing(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written to a temporary name and renamed, it would take the place of a device; for root that was /dev/null."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    assert main(["doctor", "--save", place]) == 2
    assert "error[usage]: cannot write the snapshot" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_a_check_that_only_logs_can_answer_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """It passed, whatever the machine."""
    assert main(["doctor", "--check", "vllm-profile-overrun"]) == 2
    assert "doctor --log FILE --check EB-MEM-015" in capsys.readouterr().err


def test_a_log_is_asked_for_one_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "a.log"
    log.write_text("Failed to initialize NVML: Driver/library version mismatch\nModuleNotFoundError: No module named 'torch'\n")
    main(["doctor", "--log", str(log), "--json"])
    assert "EB-DRV-006" in {one["id"] for one in printed(capsys)["findings"]}
    assert main(["doctor", "--log", str(log), "--check", "EB-DRV-006", "--json"]) == 1
    assert [one["id"] for one in printed(capsys)["findings"]] == ["EB-DRV-006"]
    log.write_text("fine\n")
    assert main(["doctor", "--log", str(log), "--check", "EB-DRV-006"]) == 0
    assert "The log shows no failure that is known here. In 0." in capsys.readouterr().out


def test_a_failure_that_is_asked_for_is_shown_though_its_cause_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was folded under a finding that nobody saw: no failure on the page, and exit code 1."""
    log = tmp_path / "serve.log"
    log.write_text(
        "fatal error: Python.h: No such file or directory\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"
    )
    main(["doctor", "--log", str(log), "--json"])
    found = {row["id"]: row["explained_by"] for row in json.loads(capsys.readouterr().out)["findings"]}
    folded = next(id_ for id_, root in found.items() if root)
    assert main(["doctor", "--log", str(log), "--check", folded]) == 1
    page = capsys.readouterr().out
    assert folded in page
    assert "no failure" not in page


def test_the_page_documents_every_option() -> None:
    """docs/doctor.md is where an option is looked for that --help names in six words."""
    parser = argparse.ArgumentParser()
    command.configure(parser)
    text = (SCHEMAS.parents[1] / "docs/doctor.md").read_text()
    assert [
        one for action in parser._actions for one in action.option_strings if one.startswith("--") and one != "--help" and one not in text
    ] == []


def test_a_folder_that_is_no_environment_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    assert main(["doctor", "--env", str(tmp_path), "--check", "EB-ENV-001", "--json"]) == 1
    assert printed(capsys)["findings"][0]["status"] == "fail"


def test_save_then_facts_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "here.json"
    main(["doctor", "--save", str(path), "--json"])
    first = printed(capsys)
    jsonschema.validate(json.loads(path.read_text()), schema("facts"))
    main(["doctor", "--facts", str(path), "--json"])
    assert [(f["id"], f["status"]) for f in printed(capsys)["findings"]] == [(f["id"], f["status"]) for f in first["findings"]]


def test_the_facts_schema_names_every_field_of_the_model() -> None:
    """The schema is a file that others read; the model is what is written. They must not drift apart."""
    definitions = schema("facts")["$defs"]
    for name, kind in vars(model).items():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and name != "Snapshot":
            assert set(definitions[name]["properties"]) == {field.name for field in dataclasses.fields(kind)}, name
    assert set(schema("facts")["properties"]) == set(typing.get_type_hints(model.Snapshot))


def test_a_snapshot_of_a_simulated_spark_is_valid(tmp_path: Path) -> None:
    build = spark(tmp_path)
    jsonschema.validate(json.loads(json.dumps(to_json(take(build.world(), environment=build.environment)))), schema("facts"))


def test_explain_says_why_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "triton-python-h"]) == 0
    text = capsys.readouterr().out
    assert "Why it matters" in text
    assert "apt install python3.12-dev" in text
    assert main(["explain", "EB-TRI-003", "--json"]) == 0
    jsonschema.validate(printed(capsys), schema("explain"))


@pytest.mark.parametrize("id", list(all_checks()))
def test_every_explanation_fits_80_columns(id: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["explain", id])
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80 and not line.startswith("    ")] == []


def test_list_names_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--list", "--json"]) == 0
    document = printed(capsys)
    jsonschema.validate(document, schema("doctor-checks"))
    assert len(document["checks"]) == len(all_checks())


def test_what_follows_from_a_finding_is_folded_under_it() -> None:
    """A GPU that a torn driver lost: one root, and NVML's empty list only as its consequence."""
    sick = change(SPEAKS["EB-DRV-007"][1], nvml__gpus=())
    findings = {finding.check.id: finding for finding in examine(sick).findings}
    assert findings["EB-DRV-008"].explained_by == "EB-DRV-007"
    page = examination(examine(sick), Style())
    assert page.count("✗") == 1
    assert "EB-DRV-008 nvml-no-devices" in page


def test_a_page_with_a_fault_says_it_in_words_and_keeps_the_rest_short() -> None:
    """Read by a tired person, without colours: what failed, its fix, and what `--fix` could do; notes in one line."""
    sick = SPEAKS["EB-TORCH-001"][1]
    text = examination(examine(sick), Style(), mendable={"EB-TORCH-001", "EB-FI-001"})
    assert "✗ FAILED EB-TORCH-001 torch-cpu-wheel" in text
    assert "Can be mended, and taken back: envbuilder doctor --fix (EB-TORCH-001)" in text
    assert text.count("\ni EB-") == 0
    assert "EB-DRV-027" in text.partition("Only good to know")[2]
    assert "! WARNING EB-ENV-016" in examination(examine(SPEAKS["EB-ENV-016"][1]), Style())
    assert "\ni EB-DRV-027" in examination(examine(SPARK), Style()), "a healthy machine has nothing else to say"


@pytest.mark.parametrize("id", STATIC)
def test_every_finding_fits_80_columns_with_and_without_colour(id: str) -> None:
    snapshot = SPEAKS[id][1]
    alone = examine(snapshot, checks=[all_checks()[id]])  # with everything that passed beside it, test_machines.py looks at the page
    for result, everything in ((examined(snapshot), False), (alone, True)):
        plain, coloured = (examination(result, Style(colour=colour), everything=everything) for colour in (False, True))
        assert re.sub("\033\\[[0-9;]*m", "", coloured) == plain, "colours add nothing and take nothing away"
        assert [line for line in plain.splitlines() if len(line) > 80 and not line.startswith(" " * 10)] == []


def test_a_log_comes_from_standard_input_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.TextIOWrapper(io.BytesIO(b"fine\nFailed to initialize NVML: Driver/library version mismatch\n"))
    monkeypatch.setattr("sys.stdin", stream)
    assert main(["doctor", "--log", "-", "--json"]) == 1
    assert printed(capsys)["findings"][0]["evidence"][0]["source"] == "standard input:2"


def test_a_fault_of_our_own_is_exit_code_3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever runs it in a script must tell a sick machine (1) from a doctor that fell over (3)."""

    def falls(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("envbuilder.doctor.examine.examine", falls)
    assert main(["doctor", "--facts", saved(tmp_path / "well.json", SPARK)]) == 3


def test_colour_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    assert Style.of(Terminal()).colour  # type: ignore[arg-type]
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Style.of(Terminal()).colour  # type: ignore[arg-type]
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not Style.of(Terminal()).colour  # type: ignore[arg-type]
    assert "\033[" not in examination(examine(SPARK), Style(colour=False))
    assert "\033[31;1m" in examination(examine(SPEAKS["EB-DRV-006"][1]), Style(colour=True))


def test_a_terminal_without_unicode_gets_ascii() -> None:
    assert examination(examine(SPEAKS["EB-DRV-006"][1]), Style(plain=True)).isascii()


@pytest.mark.parametrize("arguments", [["doctor", "--help"], ["explain", "EB-DRV-006"]])
def test_answers_without_loading_what_is_slow_to_load(arguments: list[str]) -> None:
    """0.15 s is the promise; what breaks it is an import, so imports are what is looked at."""
    code = f"import sys; from envbuilder.cli import main; main({arguments!r}); print({{'rich', 'pydantic', 'requests', 'packaging', 'elftools'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SCHEMAS.parents[1])}
    )
    assert done.stdout.splitlines()[-1] == "set()"


def test_envs_diff_names_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = saved(tmp_path / "a.json", SPARK)
    other = saved(tmp_path / "b.json", SPEAKS["EB-TF-002"][1])
    assert main(["envs", "diff", one, one]) == 0
    assert main(["envs", "diff", one, other, "--json"]) == 1
    text = capsys.readouterr().out
    document = json.loads(text[text.index("{") :])
    jsonschema.validate(document, schema("envs-diff"))
    assert document["differences"] == [{"where": "environment.distributions.transformers", "first": "5.14.1", "second": "5.23.0"}]
