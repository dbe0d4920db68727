"""The made wheel in the chain of stages: into the store and the plan, kept while nothing changes, compared on demand."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import zipfile
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from envbuilder.build import compile_stages
from envbuilder.build.compile_stages import CompileStages
from envbuilder.build.stages import Chain, Forecast, exclusive
from envbuilder.compile import isolation
from envbuilder.compile.making import Made
from envbuilder.errors import StepError, VerificationError
from envbuilder.files import remove_tree
from envbuilder.layout import Layout
from envbuilder.locking.model import LockedFile, LockedWheel
from envbuilder.store.cache import Store
from envbuilder.targets.catalogue import find_target

if TYPE_CHECKING:
    from pathlib import Path

    from envbuilder.console import Console

NAME = "vllm-0.23.0-1-cp38-abi3-manylinux_2_34_aarch64.whl"


@functools.cache
def _spec() -> Any:
    spec = find_target("dgx-spark")[0].releases["0.23.0"].compile
    assert spec is not None
    return spec


@dataclass
class FakeMaker:
    """Makes a wheel of a few bytes in a millisecond; a second one differs if told so."""

    kept: Path
    published: Path
    contents: tuple[bytes, ...] = (b"same", b"same")
    jobs: int = 4
    umasks: list[int] = field(default_factory=list)
    workspaces: list[Path | None] = field(default_factory=list)
    compilers: Any = field(default_factory=lambda: SimpleNamespace(identity={}))
    ccache: Any = "ccache"
    seen: list[tuple[int, Any]] = field(default_factory=list)

    way: str = "user-namespaces"
    looked: list[Path | None] = field(default_factory=list)

    def look_ahead(self, workspace: Path | None = None) -> int:
        self.looked.append(workspace)
        return 100

    @property
    def inputs(self) -> Any:
        spec = _spec()
        return SimpleNamespace(spec=spec, libraries=dict.fromkeys((*spec.cuda, "torch"), self.published), tools={})

    def make(self, goal: Path, *, log: Path, workspace: Path | None = None) -> Made:
        assert log.name.endswith(".log")
        goal.mkdir(parents=True)
        mask = os.umask(0o022)
        os.umask(mask)
        content = self.contents[min(len(self.seen), 1)]
        self.seen.append((self.jobs, self.ccache))
        self.umasks.append(mask)
        self.workspaces.append(workspace)
        with zipfile.ZipFile(goal / NAME, "w") as archive:
            archive.writestr(zipfile.ZipInfo("vllm/x.py"), content)
        data = (goal / NAME).read_bytes()
        document = {"units": [], "isolation": {"way": self.way, "root": "/build"}, "components": []}
        return Made(wheel=goal / NAME, sha256=hashlib.sha256(data).hexdigest(), size=len(data), document=document)


@pytest.fixture
def ground(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> Any:
    maker = FakeMaker(kept=tmp_path / "kept", published=tmp_path / "files/ab/published.whl")
    maker.kept.mkdir()
    monkeypatch.setattr(CompileStages, "_maker", lambda _: maker)
    # dataclasses.replace of the real Maker: the stand-in is changed in place.
    monkeypatch.setattr(compile_stages, "replace", replaced)
    return SimpleNamespace(maker=maker, layout=Layout.of(tmp_path / "out"), store=Store(tmp_path / "store"), console=console)


def replaced(thing: Any, **changes: Any) -> Any:
    new = thing if isinstance(thing, FakeMaker) else SimpleNamespace(**vars(thing))
    for name, value in changes.items():
        setattr(new, name, value)
    return new


def published() -> LockedWheel:
    return LockedWheel(name="vllm", version="0.23.0", file=LockedFile(filename="published.whl", sha256="0" * 64, size=1))


def plan_of(ground: Any, *, verify: bool) -> Any:
    torch = SimpleNamespace(name="torch", file=None)
    return SimpleNamespace(
        sources={},
        layout=ground.layout,
        store=ground.store,
        verify=verify,
        tools=(),
        wheels={"serve": (torch, published()), "quantize": ()},
    )


def run(ground: Any, *, verify: bool = False) -> tuple[Any, dict[str, str]]:
    plan = plan_of(ground, verify=verify)
    with exclusive(ground.layout, ground.console):
        chain = Chain(layout=ground.layout, console=ground.console)
        made = CompileStages(plan=plan, chain=chain, console=ground.console).run()
    return made, {name: outcome.status for name, outcome in chain.outcomes.items()}


def test_the_made_wheel_takes_the_published_one_s_place(ground: Any) -> None:
    plan, _ = run(ground)
    torch, vllm = plan.wheels["serve"]
    assert torch.name == "torch"
    assert vllm.file.filename == NAME
    stored = ground.store.path(vllm.file.sha256, NAME)
    assert stored.read_bytes() == (ground.layout.out / "wheels" / NAME).read_bytes()
    assert json.loads((ground.layout.out / "compile.json").read_bytes())["isolation"]["way"] == "user-namespaces"


def test_nothing_changed_compiles_nothing_even_where_the_store_was_cleaned(ground: Any) -> None:
    """`cache gc` removes what no lock names, so the made wheel too: that may not cost eighty minutes."""
    first, _ = run(ground)
    remove_tree(ground.store.root)
    second, status = run(ground)
    assert status["compile"] == "kept"
    assert len(ground.maker.seen) == 1
    file = second.wheels["serve"][1].file
    assert file == first.wheels["serve"][1].file
    assert ground.store.find(file.sha256, NAME, size=file.size)


@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_a_wheel_that_is_not_what_it_was_is_made_again(ground: Any, damage: str) -> None:
    run(ground)
    remove_tree(ground.store.root)
    path = ground.layout.out / "wheels" / NAME
    match damage:
        case "gone":
            path.unlink()
        case "cut":
            path.write_bytes(path.read_bytes()[:-1])
        case _:
            path.write_bytes(bytes([*path.read_bytes()[:-1], 7]))
    _, status = run(ground)
    assert status["compile"] == "done"


def test_a_verifying_build_is_from_scratch_elsewhere_and_without_a_cache(ground: Any) -> None:
    """A second build that shares a folder, a cache or the umask with the first proves nothing."""
    _, status = run(ground, verify=True)
    assert status["verify-compile"] == "done"
    assert ground.maker.seen == [(4, "ccache"), (3, None)]
    assert ground.maker.umasks[1] == 0o077 != ground.maker.umasks[0]
    assert ground.maker.workspaces[0] is None
    assert ground.maker.workspaces[1] is not None
    assert not ground.maker.workspaces[1].exists(), "what it built is not kept"


def test_a_verifying_build_that_was_killed_goes_on_where_it_was(ground: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another folder each time would start over, an hour's work, and leave gigabytes for each kill."""
    run(ground)
    real = FakeMaker.make

    def killed(self: FakeMaker, goal: Path, *, log: Path, workspace: Path | None = None) -> Made:
        assert workspace is not None
        self.workspaces.append(workspace)
        workspace.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeMaker, "make", killed)
    with pytest.raises(KeyboardInterrupt):
        run(ground, verify=True)
    monkeypatch.setattr(FakeMaker, "make", real)
    run(ground, verify=True)
    _, first, second = ground.maker.workspaces
    assert first == second == ground.maker.kept / first.name
    assert first.name.startswith("verify-"), "`cache gc` knows it by its name"
    assert not first.exists()


def test_another_wheel_is_verified_anew_though_nothing_that_it_is_made_of_changed(ground: Any) -> None:
    """The old record would vouch for a wheel that nobody has compared."""
    run(ground, verify=True)
    (ground.layout.out / "wheels" / NAME).unlink()
    ground.maker.seen.clear()
    ground.maker.contents = (b"other", b"other")
    _, status = run(ground, verify=True)
    assert status["verify-compile"] == "done"


# -- before anything is fetched ----------------------------------------------------------------------------------


def look_ahead(ground: Any, *, verify: bool = False) -> tuple[Any, int]:
    with exclusive(ground.layout, ground.console):
        ahead = Forecast(layout=ground.layout, console=ground.console)
        return CompileStages(plan=plan_of(ground, verify=verify), chain=ahead, console=ground.console).look_ahead()


def allow(monkeypatch: pytest.MonkeyPatch, way: isolation.Way) -> None:
    chosen = SimpleNamespace(way=way, why="user-namespaces: not permitted")
    monkeypatch.setattr(isolation, "choose", lambda *_, **__: chosen)


def test_what_compiling_takes_is_known_beforehand_and_nothing_of_a_kept_wheel(ground: Any) -> None:
    """A build that compiles nothing may not fail for want of the room or the memory to compile."""
    assert look_ahead(ground)[1] == 100
    run(ground)
    ground.maker.looked.clear()
    plan, room = look_ahead(ground)
    assert (room, ground.maker.looked) == (0, [])
    assert plan.wheels["serve"][1].file.filename == NAME


def test_a_second_build_takes_as_much_again_until_it_is_verified(ground: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, isolation.Way.USER_NAMESPACES)
    assert look_ahead(ground, verify=True)[1] == 200
    run(ground)
    assert look_ahead(ground, verify=True)[1] == 100
    run(ground, verify=True)
    assert look_ahead(ground, verify=True)[1] == 0


def test_verifying_without_isolation_is_refused_beforehand_with_the_remedy(ground: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It compiles twice for hours, and then differs in every object by the path that stands in it."""
    allow(monkeypatch, isolation.Way.NONE)
    with pytest.raises(StepError, match="does not allow") as error:
        look_ahead(ground, verify=True)
    assert "not permitted" in error.value.why
    assert "sysctl" in error.value.next
    assert "docker" in error.value.next


def test_a_wheel_that_was_not_isolated_is_not_verified(ground: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolation was allowed since: the second build would be at another path than the kept wheel's."""
    ground.maker.way = "not-isolated"
    run(ground)
    allow(monkeypatch, isolation.Way.USER_NAMESPACES)
    with pytest.raises(StepError, match="compiled without isolation"):
        look_ahead(ground, verify=True)


def test_a_second_build_with_other_bytes_fails_and_says_where(ground: Any) -> None:
    ground.maker.contents = (b"one", b"two")
    with pytest.raises(VerificationError, match="another wheel") as error:
        run(ground, verify=True)
    assert "vllm/x.py" in error.value.why
    assert [row["member"] for row in json.loads((ground.layout.out / "verify-compile.json").read_bytes())] == ["vllm/x.py"]
    with pytest.raises(VerificationError):
        run(ground, verify=True)
