"""The stages that build vLLM itself: compile, and (with --verify) a second build from scratch that must give the same bytes.

The made wheel enters the store and takes the published one's place in the plan: what follows treats it like any other.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envbuilder.build.stages import Stage
from envbuilder.compile.building import default_jobs, find_ccache
from envbuilder.compile.making import Maker, recipe
from envbuilder.compile.packing import compressor
from envbuilder.compile.toolchain import find_compilers
from envbuilder.compile.workspace import Inputs
from envbuilder.errors import VerificationError
from envbuilder.files import human_size, remove_tree, sha256_file, write_json
from envbuilder.locking.model import LockedFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuilder.build.plan import Plan
    from envbuilder.build.stages import Chain, Result
    from envbuilder.compile.making import Made
    from envbuilder.console import Console, Step
    from envbuilder.locking.model import LockedWheel


@dataclass(frozen=True, kw_only=True)
class CompileStages:
    """Runs the stages and returns the plan with the wheel that was made."""

    plan: Plan
    chain: Chain
    console: Console

    def run(self) -> Plan:
        maker = self._maker()
        result = self.chain.run(
            Stage(name="compile", inputs=self._inputs(maker), run=lambda step: self._compile(maker, step), intact=self._intact)
        )
        if self.plan.verify:
            self.chain.run(
                Stage(
                    name="verify-compile",
                    inputs={},
                    after=("compile",),
                    run=lambda step: self._verify(maker, result["wheel"]["sha256"], step),
                )
            )
        return self._with(LockedFile(**result["wheel"]))

    def _maker(self) -> Maker:
        plan = self.plan
        spec = plan.release.compile
        assert spec is not None  # noqa: S101 - the plan was made for a source build
        wheels = {wheel.name: self._path(wheel) for wheel in plan.wheels["serve"]}
        return Maker(
            inputs=Inputs(
                spec=spec,
                commit=plan.sources["vllm"].commit,
                sources={name: plan.store.path(it.sha256, it.filename) for name, it in plan.sources.items()},
                tools={wheel.name: self._path(wheel) for wheel in plan.tools},
                libraries=wheels,
            ),
            compilers=find_compilers(plan.interpreter.machine, here=platform.machine()),
            published=wheels["vllm"],
            kept=plan.store.root / "compile",
            jobs=min(plan.jobs or default_jobs(), default_jobs()),  # more than one for each core only takes memory
            console=self.console,
            ccache=find_ccache(),
        )

    def _path(self, wheel: LockedWheel) -> Path:
        return self.plan.store.path(wheel.file.sha256, wheel.file.filename)

    def _inputs(self, maker: Maker) -> dict[str, Any]:
        """All that the wheel's bytes depend on. How many jobs, how much memory and which cache are no part of it."""
        spec = maker.inputs.spec
        return {
            "spec": spec.model_dump(),
            "sources": {name: it.sha256 for name, it in self.plan.sources.items()},
            "tools": sorted(wheel.file.sha256 for wheel in self.plan.tools),
            "libraries": sorted(maker.inputs.libraries[name].parent.name for name in (*spec.cuda, "torch")),
            "published": maker.published.parent.name,
            "compilers": maker.compilers.identity,
            "compressor": compressor(),
            "recipe": recipe(),
        }

    def _compile(self, maker: Maker, step: Step) -> Result:
        layout = self.plan.layout
        made = maker.make(layout.scratch / "wheel", log=layout.log("compile"))
        self._keep(made)
        write_json(layout.out / "compile.json", made.document)
        units = made.document["units"]
        step.detail = f"{made.wheel.name}, {human_size(made.size)}; {len(units)} units, {made.document['isolation']['way']}"
        wheel = {"filename": made.wheel.name, "sha256": made.sha256, "size": made.size}
        return {"wheel": wheel, "isolation": made.document["isolation"], "components": made.document["components"]}

    def _keep(self, made: Made) -> None:
        """Put the wheel into wheels/ and into the store, from which environments are assembled."""
        kept = self.plan.layout.out / "wheels"
        remove_tree(kept)
        kept.mkdir()
        made.wheel.replace(kept / made.wheel.name)
        self._admit(kept / made.wheel.name, made.sha256)

    def _admit(self, wheel: Path, sha256: str) -> None:
        with self.plan.store.incoming(sha256) as partial:
            shutil.copyfile(wheel, partial)
            self.plan.store.admit(partial, sha256, wheel.name)

    def _intact(self, result: Result) -> bool:
        """Whether the wheel is still there; a store that was cleaned gets it again from wheels/."""
        wheel = LockedFile(**result["wheel"])
        kept = self.plan.layout.out / "wheels" / wheel.filename
        if not kept.is_file() or kept.stat().st_size != wheel.size:
            return False
        if self.plan.store.find(wheel.sha256, wheel.filename, size=wheel.size) is None:
            if sha256_file(kept) != wheel.sha256:
                return False
            self._admit(kept, wheel.sha256)
        return True

    def _with(self, file: LockedFile) -> Plan:
        """Return the plan with the made wheel in the published one's place."""
        wheels = tuple(replace(wheel, file=file) if wheel.name == "vllm" else wheel for wheel in self.plan.wheels["serve"])
        return replace(self.plan, wheels={**self.plan.wheels, "serve": wheels})

    # -- --verify ------------------------------------------------------------------------------------------------

    def _verify(self, maker: Maker, sha256: str, step: Step) -> Result:
        """Build again from scratch, without a cache, elsewhere, with another umask and another number of jobs."""
        from envbuilder.compile.verify import compare  # noqa: PLC0415 - reads ELF sections; few builds ask for it

        layout = self.plan.layout
        first = next((layout.out / "wheels").glob("*.whl"))
        jobs = maker.jobs - 1 if maker.jobs > 3 else maker.jobs + 1
        with tempfile.TemporaryDirectory(prefix="verify-", dir=maker.kept) as folder, _umask(0o077):
            again = replace(maker, jobs=jobs, ccache=None).make(
                Path(folder) / "wheel", log=layout.log("verify-compile"), workspace=Path(folder) / "elsewhere"
            )
            differences = compare(first, again.wheel)
        write_json(layout.out / "verify-compile.json", [difference.as_dict() for difference in differences])
        if differences:
            raise VerificationError(
                f"a second build gave another wheel: {len(differences)} differences",
                why="\n".join(map(str, differences[:20])),
                next=f"All of them: {layout.out / 'verify-compile.json'}",
            )
        step.detail = f"the same {human_size(again.size)}, sha256:{sha256[:16]}…"
        return {"sha256": again.sha256}


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
