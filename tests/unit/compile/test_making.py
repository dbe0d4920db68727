"""What is said before a build starts that cannot end well, and what is refused of what came out."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from envbuilder.build.plan import choose_vllm
from envbuilder.compile import making
from envbuilder.compile.building import known_units, object_of
from envbuilder.compile.making import Maker, require_native
from envbuilder.compile.workspace import Workspace
from envbuilder.errors import StepError, UsageError
from envbuilder.targets.catalogue import find_target

if TYPE_CHECKING:
    import io

    from envbuilder.console import Console


def maker(tmp_path: Path, console: Console) -> Maker:
    nothing = SimpleNamespace()
    return Maker(inputs=nothing, compilers=nothing, published=Path(), kept=tmp_path, jobs=1, console=console)  # type: ignore[arg-type]


def test_too_little_disk_is_said_before_anything_starts(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "free_bytes", lambda _: 1_000_000_000)
    with pytest.raises(StepError, match="not enough room") as error:
        maker(tmp_path, console)._require_room(Workspace(tmp_path / "w"))
    assert "1.0 GB are free" in error.value.why


def test_a_build_that_goes_on_needs_room_as_well(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nvcc's temporary files alone are hundreds of megabytes at a time."""
    (tmp_path / "w/obj").mkdir(parents=True)
    monkeypatch.setattr(making, "free_bytes", lambda _: 1_100_000_000)
    maker(tmp_path, console)._require_room(Workspace(tmp_path / "w"))
    monkeypatch.setattr(making, "free_bytes", lambda _: 900_000_000)
    with pytest.raises(StepError, match="not enough room"):
        maker(tmp_path, console)._require_room(Workspace(tmp_path / "w"))


def with_memory(monkeypatch: pytest.MonkeyPatch, *, total: int, free: int) -> None:
    monkeypatch.setattr(making, "total_memory", lambda: total << 30)
    monkeypatch.setattr(making, "available_memory", lambda: free << 30)


def test_too_little_memory_is_said_with_the_unit_that_needs_it(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel would kill it after two minutes, without a word from the compiler."""
    with_memory(monkeypatch, total=8, free=7)
    with pytest.raises(StepError, match="this machine has too little memory") as error:
        maker(tmp_path, console)._require_memory(Workspace(tmp_path / "w"))
    assert "scaled_mm_sm120_fp8.cu alone takes 9.5 GB" in error.value.why
    assert "8.6 GB" in error.value.why


def test_memory_that_others_hold_is_said_before_anything_starts(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Spark that serves a model has 128 GB and few of them free: compiling there takes it to a standstill."""
    with_memory(monkeypatch, total=119, free=8)
    with pytest.raises(StepError, match="too little memory is free") as error:
        maker(tmp_path, console)._require_memory(Workspace(tmp_path / "w"))
    assert "takes 9.5 GB; 8.6 GB of" in error.value.why
    assert "nvidia-smi" in error.value.next


def test_what_is_compiled_already_needs_no_memory(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that was killed after its largest units goes on beside a served model."""
    with_memory(monkeypatch, total=119, free=5)
    place = Workspace(tmp_path / "w")
    for unit in known_units(making._SHIPPED, ()).values():
        if unit.peak > 4 << 30:
            made = object_of(place.root, unit.name)
            made.parent.mkdir(parents=True, exist_ok=True)
            made.touch()
    maker(tmp_path, console)._require_memory(place)


def test_enough_of_both_passes(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "free_bytes", lambda _: 10**12)
    with_memory(monkeypatch, total=24, free=14)
    maker(tmp_path, console)._require_room(Workspace(tmp_path / "w"))
    maker(tmp_path, console)._require_memory(Workspace(tmp_path / "w"))


def test_one_build_at_a_time_in_a_workspace_and_the_second_says_that_it_waits(
    tmp_path: Path, console: Console, said: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builds into two folders share a workspace: two ninjas would write the same objects, and one's socket replace the other's."""
    inside, go_on, seen = threading.Event(), threading.Event(), []

    def make(_: Maker, place: Workspace, goal: Path, log: Path) -> str:
        seen.append(f"{goal} {log} in {place.root.name}")
        inside.set()
        assert go_on.wait(10)
        seen.append("ended")
        return "made"

    monkeypatch.setattr(Maker, "_make", make)
    it, place = maker(tmp_path, console), tmp_path / "compile/key"
    threads = [threading.Thread(target=lambda: it.make(Path("a"), log=Path("b"), workspace=place), daemon=True) for _ in range(2)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    deadline = time.monotonic() + 10
    while "waiting" not in said.getvalue() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert said.getvalue() == f"another build is compiling in {place}; waiting for it to end …\n"
    assert len(seen) == 1
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert seen == ["a b in key", "ended"] * 2


def test_host_code_alone_passes_the_check_of_gpu_code(tmp_path: Path) -> None:
    (tmp_path / "x.c").write_text("int f(void) { return 1; }")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "x.so", tmp_path / "x.c"], check=True)
    assert require_native({"x.so": tmp_path / "x.so"}, "12.1a").files[0].verdict == "host-only"


def test_a_release_without_a_compile_table_is_not_built_from_source() -> None:
    """It would build stock vLLM, which for 12.1a silently holds no sm_121a code."""
    target, _ = find_target("dgx-spark")
    release = target.releases["0.32.0"].model_copy(update={"compile": None})
    with pytest.raises(UsageError, match="source"):
        choose_vllm(release, "source")
    assert choose_vllm(release, "published") == "published"
    assert choose_vllm(target.releases["0.23.0"], "source") == "source"
