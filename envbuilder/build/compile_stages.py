"""The stages that build vLLM itself: compile, and (with --verify) a second build from scratch that must give the same bytes.

The made wheel enters the store and takes the published one's place in the plan: what follows treats it like any other.
"""

from __future__ import annotations

import os
import platform
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from envbuilder.build.stages import Stage
from envbuilder.compile import isolation
from envbuilder.compile.building import default_jobs, find_ccache
from envbuilder.compile.making import Maker, recipe
from envbuilder.compile.packing import compressor
from envbuilder.compile.toolchain import find_compilers
from envbuilder.compile.workspace import Inputs, held
from envbuilder.errors import StepError, VerificationError
from envbuilder.files import human_size, remove_tree, sha256_file, write_json
from envbuilder.locking.model import LockedFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
        wheel = self.chain.run(self._compiling(maker))["wheel"]
        if self.plan.verify:
            self.chain.run(self._verifying(maker, wheel["sha256"]))
        return self._with(LockedFile(**wheel))

    def look_ahead(self) -> tuple[Plan, int]:
        """Return the plan, with the made wheel if one would be kept, and the bytes that compiling takes on the store's disk.

        On a Forecast. Raises ProgramError without a compiler, StepError without the memory, or without isolation
        where the wheel is to be verified.
        """
        maker, plan, room = self._maker(), self.plan, 0
        made = self.chain.run(self._compiling(maker))
        if made:
            plan = self._with(LockedFile(**made["wheel"]))
        else:
            room += maker.look_ahead()
        verified = bool(made) and self.plan.verify and bool(self.chain.run(self._verifying(maker, made["wheel"]["sha256"])))
        if self.plan.verify and not verified:
            self._require_isolation(made)
            room += maker.look_ahead(_verify_folder(maker, made["wheel"]["sha256"] if made else ""))
        return plan, room

    def _require_isolation(self, made: Result) -> None:
        layout = self.plan.layout
        place = layout.scratch / "isolation"
        place.mkdir(exist_ok=True)
        chosen = isolation.choose(place, log=layout.log("verify-compile"))
        if chosen.way is isolation.Way.NONE:
            raise StepError(
                "--verify needs an isolated compile, which this machine does not allow",
                why=f"Not isolated, each build is at its own path, and its objects hold that path. {chosen.why}",
                next=isolation.REMEDY,
            )
        if made and made["isolation"]["way"] == isolation.Way.NONE.value:
            raise StepError(
                "the wheel to be verified was compiled without isolation",
                why="Its objects hold the path that it was compiled at, which a second build does not have.",
                next=f"Remove {layout.out / 'wheels'}: the next build compiles it again, isolated.",
            )

    def _compiling(self, maker: Maker) -> Stage:
        return Stage(name="compile", inputs=self._inputs(maker), run=lambda step: self._compile(maker, step), intact=self._intact)

    def _verifying(self, maker: Maker, sha256: str) -> Stage:
        # The wheel is an input: compiled again with the same inputs, it may be another one.
        return Stage(
            name="verify-compile", inputs={"wheel": sha256}, after=("compile",), run=lambda step: self._verify(maker, sha256, step)
        )

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
        """Build again from scratch, without a cache, elsewhere, with another umask and another number of jobs.

        Killed, it goes on where it was; once there is a verdict, what it built is removed.
        """
        from envbuilder.compile.verify import compare  # noqa: PLC0415 - reads ELF sections; few builds ask for it

        layout = self.plan.layout
        first = next((layout.out / "wheels").glob("*.whl"))
        jobs = maker.jobs - 1 if maker.jobs > 3 else maker.jobs + 1
        folder = _verify_folder(maker, sha256)
        with _umask(0o077):
            again = replace(maker, jobs=jobs, ccache=None).make(
                layout.scratch / "verify", log=layout.log("verify-compile"), workspace=folder
            )
            differences = compare(first, again.wheel)
        with held(folder, self.console):
            remove_tree(folder)
        write_json(layout.out / "verify-compile.json", [difference.as_dict() for difference in differences])
        if differences:
            raise VerificationError(
                f"a second build gave another wheel: {len(differences)} differences",
                why="\n".join(map(str, differences[:20])),
                next=f"All of them: {layout.out / 'verify-compile.json'}",
            )
        step.detail = f"the same {human_size(again.size)}, sha256:{sha256[:16]}…"
        return {"sha256": again.sha256}


def _verify_folder(maker: Maker, sha256: str) -> Path:
    """Return the workspace of a second build; `cache gc` knows it by its name."""
    return maker.kept / f"verify-{sha256[:16]}"


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
