"""The made wheel in the chain of stages: into the store and the plan, kept while nothing changes, compared on demand."""

from __future__ import annotations

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
from envbuilder.build.stages import Chain, exclusive
from envbuilder.compile.making import Made
from envbuilder.errors import VerificationError
from envbuilder.files import remove_tree
from envbuilder.layout import Layout
from envbuilder.locking.model import LockedFile, LockedWheel
from envbuilder.store.cache import Store
from envbuilder.targets.catalogue import find_target

if TYPE_CHECKING:
    from pathlib import Path

    from envbuilder.console import Console

NAME = "vllm-0.23.0-1-cp38-abi3-manylinux_2_34_aarch64.whl"


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

    @property
    def inputs(self) -> Any:
        spec = find_target("dgx-spark")[0].releases["0.23.0"].compile
        assert spec is not None
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
        document = {"units": [], "isolation": {"way": "user-namespaces", "root": "/build"}, "components": []}
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


def run(ground: Any, *, verify: bool = False) -> tuple[Any, dict[str, str]]:
    torch = SimpleNamespace(name="torch", file=None)
    plan = SimpleNamespace(
        sources={},
        layout=ground.layout,
        store=ground.store,
        verify=verify,
        tools=(),
        wheels={"serve": (torch, published()), "quantize": ()},
    )
    with exclusive(ground.layout, ground.console):
        chain = Chain(layout=ground.layout, console=ground.console)
        made = CompileStages(plan=plan, chain=chain, console=ground.console).run()  # type: ignore[arg-type]
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


def test_a_second_build_with_other_bytes_fails_and_says_where(ground: Any) -> None:
    ground.maker.contents = (b"one", b"two")
    with pytest.raises(VerificationError, match="another wheel") as error:
        run(ground, verify=True)
    assert "vllm/x.py" in error.value.why
    assert [row["member"] for row in json.loads((ground.layout.out / "verify-compile.json").read_bytes())] == ["vllm/x.py"]
    with pytest.raises(VerificationError):
        run(ground, verify=True)
