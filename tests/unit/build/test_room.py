"""What a build needs is looked at before it fetches: compilers, and room on every disk for all that it writes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from envbuilder.build import pipeline, room
from envbuilder.build.compile_stages import CompileStages
from envbuilder.build.pipeline import _Pipeline
from envbuilder.build.room import Need, imaging, require_room, unpacking
from envbuilder.build.stages import Chain, Stage
from envbuilder.errors import ProgramError, StorageError
from envbuilder.layout import Layout
from envbuilder.locking.model import LockedFile, LockedWheel
from envbuilder.store.cache import Store

if TYPE_CHECKING:
    from envbuilder.console import Console

GB = 1_000_000_000


def test_too_little_room_is_said_with_every_part_of_it(tmp_path: Path) -> None:
    """Fetched for an hour and then out of room: the numbers were known before."""
    needs = [
        Need(where=tmp_path / "store", what=what, bytes=size * GB) for what, size in (("to fetch", 4), ("to unpack", 9), ("to compile", 6))
    ]
    with pytest.raises(StorageError, match="not enough room") as error:
        require_room(needs, free=lambda _: 19 * GB)
    assert error.value.why == "4.0 GB to fetch, 9.0 GB to unpack, 6.0 GB to compile: 19.0 GB; 19.0 GB are free."
    require_room(needs, free=lambda _: 20 * GB)


def test_a_build_that_writes_nothing_needs_no_room(tmp_path: Path) -> None:
    require_room([Need(where=tmp_path, what="to fetch", bytes=0)], free=lambda _: 0)


@pytest.mark.parametrize(("backend", "factor"), [("cu130", 2), ("cpu", 4)])
def test_a_wheel_in_both_environments_is_unpacked_once(tmp_path: Path, backend: str, factor: int) -> None:
    """Counted for each environment, a disk that has room would be refused."""
    environments = [{"a": 3, "b": 1}, {"a": 3, "c": 2}]
    (need,) = unpacking(environments, torch_backend=backend, store=Store(tmp_path / "store"), layout=Layout.of(tmp_path / "out"))
    assert need.bytes == factor * (3 + 1 + 2)


def test_on_another_disk_every_environment_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hard link does not reach from one file system into another."""
    monkeypatch.setattr(room, "_device", lambda path: 1 if path.name == "store" else 2)
    environments = [{"a": 3, "b": 1}, {"a": 3, "c": 2}]
    needs = unpacking(environments, torch_backend="cu130", store=Store(tmp_path / "store"), layout=Layout.of(tmp_path / "out"))
    assert [(need.where.name, need.bytes) for need in needs] == [("store", 12), ("out", 18)]
    with pytest.raises(StorageError, match="out"):
        require_room(needs, free=lambda path: 0 if path.name == "out" else GB)


# -- in a build --------------------------------------------------------------------------------------------------


@pytest.fixture
def build(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A build of one environment of one wheel of 5 GB, whose stages do nothing."""
    wheel = LockedWheel(name="six", version="1", file=LockedFile(filename="six.whl", sha256="a" * 64, size=5 * GB))
    plan = SimpleNamespace(
        layout=Layout.of(tmp_path / "out"),
        store=Store(tmp_path / "store"),
        vllm="published",
        images=False,
        target=SimpleNamespace(images=object()),
        tools=(),
        sources={},
        wheels={"serve": (wheel,)},
        release=SimpleNamespace(environments=lambda: [("serve", None)], torch_backend="cu130"),
    )
    plan.layout.stages.mkdir(parents=True)

    def assemble(self: _Pipeline, name: str, _: None) -> None:
        self.chain.run(Stage(name=f"assemble-{name}", inputs=1, run=lambda _: {"made": name}))

    monkeypatch.setattr(_Pipeline, "_assemble", assemble)
    monkeypatch.setattr(_Pipeline, "_fetch", lambda _: pytest.fail("something was fetched"))
    return _Pipeline(plan=plan, console=console, chain=Chain(layout=plan.layout, console=console))  # type: ignore[arg-type]


def test_a_full_disk_is_said_before_anything_is_fetched(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "require_room", lambda needs: require_room(needs, free=lambda _: 15 * GB))
    with pytest.raises(StorageError) as error:
        build.run()
    assert error.value.why.startswith("5.0 GB to fetch, 10.0 GB to unpack: 15.0 GB;")


def test_room_for_images_is_asked_for_with_the_rest(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that ends with images was out of room at its very end."""
    monkeypatch.setattr(pipeline, "require_room", lambda needs: require_room(needs, free=lambda _: 20 * GB))
    build.plan.images = True
    with pytest.raises(StorageError) as error:
        build.run()
    assert error.value.why.startswith("5.0 GB to fetch, 10.0 GB to unpack, 6.0 GB for images: 21.0 GB;")
    build.plan.images = False
    build._look_ahead()


def test_images_on_another_disk_are_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store keeps the layers, whatever the output folder's disk."""
    monkeypatch.setattr(room, "_device", lambda path: 1 if path.name == "store" else 2)
    needs = imaging({"a": 10}, store=Store(tmp_path / "store"), layout=Layout.of(tmp_path / "out"))
    assert [(need.where.name, need.bytes) for need in needs] == [("store", 12), ("out", 12)]


def test_a_build_with_everything_kept_does_not_ask_for_room(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doing nothing on a full disk is no failure."""
    monkeypatch.setattr(pipeline, "require_room", lambda needs: require_room(needs, free=lambda _: 0))
    monkeypatch.setattr(Store, "find", lambda *_, **__: Path("there"))
    build._assemble("serve", None)
    build._look_ahead()


def test_a_missing_compiler_is_said_before_anything_is_fetched(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """4.3 GB later is too late."""

    def missing(_: CompileStages) -> None:
        raise ProgramError("g++ is not installed")

    build.plan.vllm = "source"
    monkeypatch.setattr(CompileStages, "_maker", missing)
    with pytest.raises(ProgramError, match="g\\+\\+"):
        build.run()


def test_images_that_were_not_asked_for_before_need_room_now(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `--no-image` the environments are kept and no layer is there: the build ran out of room at its very end."""
    monkeypatch.setattr(pipeline, "require_room", lambda needs: require_room(needs, free=lambda _: 0))
    monkeypatch.setattr(Store, "find", lambda *_, **__: Path("there"))
    build._assemble("serve", None)
    build.plan.images = True
    with pytest.raises(StorageError, match="not enough room") as error:
        build._look_ahead()
    assert error.value.why.startswith("6.0 GB for images")
    (build.plan.layout.out / "image").mkdir()
    build._look_ahead()
