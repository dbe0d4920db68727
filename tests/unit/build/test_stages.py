"""Nothing changed means nothing done; killed anywhere means resumed there; two at once do not disturb each other."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from envbuilder.build.stages import Chain, Stage, exclusive
from envbuilder.console import Console
from envbuilder.errors import GateError, StorageError
from envbuilder.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuilder.console import Step

ROOT = Path(__file__).parents[3]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.of(tmp_path / "out und ö")


class Work:
    """A stage's work that counts how often it is done."""

    def __init__(self) -> None:
        self.done = 0

    def __call__(self, step: Step) -> dict[str, Any]:
        self.done += 1
        step.detail = f"time {self.done}"
        return {"made": self.done}


def chain(layout: Layout, console: Console, *stages: Stage) -> Chain:
    """Run stages as one build would."""
    made = Chain(layout=layout, console=console)
    for stage in stages:
        made.run(stage)
    return made


# -- kept or done ------------------------------------------------------------------------------------------------


def test_an_unchanged_stage_is_kept_with_its_result_and_the_seconds_it_took(layout: Layout, console: Console) -> None:
    work = Work()
    stage = Stage(name="one", inputs={"a": 1}, run=work)
    first = chain(layout, console, stage).outcomes["one"]
    again = chain(layout, console, stage).outcomes["one"]
    assert work.done == 1
    assert (first.status, again.status) == ("done", "kept")
    assert (again.result, again.key, again.detail) == ({"made": 1}, first.key, "time 1")
    assert again.seconds == round(first.seconds, 2)


def test_a_kept_stage_says_nothing(layout: Layout, console: Console, said: io.StringIO) -> None:
    stage = Stage(name="one", inputs=1, run=Work())
    chain(layout, console, stage)
    said.truncate(0)
    chain(layout, console, stage)
    assert said.getvalue().strip("\0") == ""


@pytest.mark.parametrize("change", ["inputs", "revision", "before"])
def test_a_change_runs_the_stage_and_all_that_stand_on_it(layout: Layout, console: Console, change: str) -> None:
    """A stage that stands on another must notice through any number of links that something changed below it."""
    work = [Work(), Work(), Work(), Work()]

    def build(*, inputs: int = 1, revision: int = 1, before: int = 1) -> None:
        chain(
            layout,
            console,
            Stage(name="zero", inputs=before, run=work[0]),
            Stage(name="one", inputs=inputs, revision=revision, run=work[1], after=("zero",)),
            Stage(name="two", inputs="same", run=work[2], after=("one",)),
            Stage(name="apart", inputs="same", run=work[3]),
        )

    build()
    build(**{change: 2})  # type: ignore[arg-type]
    assert [it.done for it in work] == [2 if change == "before" else 1, 2, 2, 1]


def test_back_to_the_old_inputs_runs_again(layout: Layout, console: Console) -> None:
    """The output folder holds one result: that of the last inputs."""
    work = Work()
    for inputs in (1, 2, 1):
        chain(layout, console, Stage(name="one", inputs=inputs, run=work))
    assert work.done == 3


def test_an_output_that_is_gone_is_made_again(layout: Layout, console: Console, tmp_path: Path) -> None:
    work, output = Work(), tmp_path / "output"
    output.write_text("x")
    stage = Stage(name="one", inputs=1, run=work, intact=lambda result: output.exists() and result["made"] == 1)
    chain(layout, console, stage)
    chain(layout, console, stage)
    assert work.done == 1
    output.unlink()
    chain(layout, console, stage)
    assert work.done == 2


@pytest.mark.parametrize("record", ["", "{", "[]", "null", '{"key": 1}', '"text"', "\xff", '{"key": "K", "result": {}}'])
def test_a_record_that_cannot_be_read_means_run_again(layout: Layout, console: Console, record: str) -> None:
    work = Work()
    stage = Stage(name="one", inputs=1, run=work)
    key = chain(layout, console, stage).outcomes["one"].key
    (layout.stages / "one.json").write_bytes(record.replace("K", key).encode("latin-1"))
    chain(layout, console, stage)
    assert work.done == 2


def test_a_failure_leaves_no_record_and_the_next_build_goes_on_there(layout: Layout, console: Console, said: io.StringIO) -> None:
    first, fails = Work(), True

    def second(_: Step) -> dict[str, Any]:
        if fails:
            raise GateError("no")
        return {}

    stages = (Stage(name="one", inputs=1, run=first), Stage(name="two", inputs=1, run=second, after=("one",)))
    with pytest.raises(GateError):
        chain(layout, console, *stages)
    assert "✗ two" in said.getvalue()
    assert [path.name for path in layout.stages.iterdir()] == ["one.json"]
    fails = False
    outcomes = chain(layout, console, *stages).outcomes
    assert [outcomes[name].status for name in ("one", "two")] == ["kept", "done"]
    assert first.done == 1


def test_a_failed_run_over_an_old_result_does_not_leave_the_old_record(layout: Layout, console: Console) -> None:
    """The old output may be half replaced by then: the old record would vouch for a mixture."""

    def fails(_: Step) -> dict[str, Any]:
        raise GateError("no")

    work = Work()
    chain(layout, console, Stage(name="one", inputs=1, run=work))
    with pytest.raises(GateError):
        chain(layout, console, Stage(name="one", inputs=2, run=fails))
    chain(layout, console, Stage(name="one", inputs=1, run=work))
    assert work.done == 2


def test_what_is_not_run_is_said_and_changes_the_keys_of_what_follows(layout: Layout, console: Console, said: io.StringIO) -> None:
    """A manifest made without the smoke test must not be kept for a build that ran it."""
    work = Work()
    skipped = Chain(layout=layout, console=console)
    skipped.skip("smoke", "--no-smoke")
    skipped.run(Stage(name="manifest", inputs=1, run=work, after=("smoke",)))
    chain(layout, console, Stage(name="smoke", inputs=1, run=Work()), Stage(name="manifest", inputs=1, run=work, after=("smoke",)))
    assert work.done == 2
    assert skipped.outcomes["smoke"].status == "not-run"
    assert "not run  --no-smoke" in said.getvalue()


# -- one at a time, and after a kill -----------------------------------------------------------------------------

CHILD = """
import sys, time
from pathlib import Path
from envbuilder.build.stages import Chain, Stage, exclusive
from envbuilder.console import Console
from envbuilder.layout import Layout

out, marks, hang = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
layout, console = Layout(out), Console()

def work(name):
    def run(step):
        (layout.scratch / name).write_text("half")
        with (marks / name).open("a") as mark:
            mark.write("ran\\n")
        if name == hang:
            (marks / "hanging").write_text("now")
            time.sleep(300)
        (out / name).write_text(name)
        return {"made": name}
    return run

with exclusive(layout, console):
    chain = Chain(layout=layout, console=console)
    for name in ("a", "b", "c"):
        chain.run(Stage(name=name, inputs=name, run=work(name), intact=lambda result: (out / result["made"]).exists()))
print("finished")
"""


@pytest.fixture
def build(layout: Layout, tmp_path: Path) -> Callable[[str], subprocess.Popen[str]]:
    (tmp_path / "marks").mkdir()

    def start(hang: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, str(layout.out), str(tmp_path / "marks"), hang]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not come"
        time.sleep(0.02)


@pytest.mark.parametrize("stage", ["a", "b", "c"])
def test_a_build_killed_in_a_stage_goes_on_in_that_stage(layout: Layout, tmp_path: Path, build: Any, stage: str) -> None:
    """A real process, a real SIGKILL: no handler runs, and the next build needs no cleaning up by hand."""
    first = build(stage)
    wait_for(tmp_path / "marks" / "hanging")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert (layout.scratch / stage).exists(), "the kill came too late to prove anything"
    printed, said = build().communicate(timeout=30)
    assert printed == "finished\n", said
    ran = {name: (tmp_path / "marks" / name).read_text().count("ran") for name in "abc"}
    assert ran == {name: 2 if name == stage else 1 for name in "abc"}
    assert not layout.scratch.exists(), "what the killed build left is gone"


def test_the_second_build_waits_says_so_and_then_does_nothing_twice(layout: Layout, tmp_path: Path, build: Any) -> None:
    first = build("b")
    wait_for(tmp_path / "marks" / "hanging")
    second = build()
    line = second.stderr.readline()
    assert line == f"another build is at work in {layout.out}; waiting for it to end …\n"
    assert second.poll() is None
    first.kill()
    first.communicate()
    printed, _ = second.communicate(timeout=30)
    assert printed == "finished\n"
    assert (tmp_path / "marks" / "a").read_text().count("ran") == 1


def test_another_output_folder_waits_for_nobody(layout: Layout, tmp_path: Path, console: Console, said: io.StringIO) -> None:
    with exclusive(layout, console), exclusive(Layout.of(tmp_path / "other"), console):
        assert said.getvalue() == ""


def test_the_folder_is_free_again_after_a_failure(layout: Layout) -> None:
    with contextlib.suppress(GateError), exclusive(layout, Console(stream=io.StringIO())):
        raise GateError("no")
    entered = threading.Event()

    def enter() -> None:
        with exclusive(layout, Console(stream=io.StringIO())):
            entered.set()

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    assert entered.wait(5)
    thread.join()


def test_what_lies_in_scratch_is_never_taken_over(layout: Layout, console: Console) -> None:
    layout.scratch.mkdir(parents=True)
    (layout.scratch / "half an environment").write_text("x")
    with exclusive(layout, console):
        assert list(layout.scratch.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "dangling link", "below a file"])
def test_an_output_folder_that_cannot_be_made_is_said(tmp_path: Path, console: Console, kind: str) -> None:
    """`--out` with the name of a file is a slip of the finger, not a bug of envbuilder."""
    out = tmp_path / "out"
    if kind == "dangling link":
        out.symlink_to(tmp_path / "none" / "none")
    else:
        out.write_text("")
    place = out / "deeper" if kind == "below a file" else out
    with pytest.raises(StorageError, match="cannot write") as caught, exclusive(Layout.of(place), console):
        pass
    assert "--out" in caught.value.next


def test_a_linked_output_folder_is_the_folder_itself(tmp_path: Path, console: Console) -> None:
    """Two names of one folder are one folder: the second build must wait."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with exclusive(Layout.of(tmp_path / "link"), console):
        assert (tmp_path / "real" / ".lock").exists()
        chain(Layout.of(tmp_path / "link"), console, Stage(name="one", inputs=1, run=Work()))
    assert json.loads((tmp_path / "real" / ".stages" / "one.json").read_bytes())["result"] == {"made": 1}
