"""The build of a target: a flat list of stages over one plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from envbuilder.binaries.abi import check_environment
from envbuilder.binaries.gpu_code import Way
from envbuilder.binaries.gpu_summary import summary
from envbuilder.build import gates, overlays
from envbuilder.build.assemble import assemble, is_intact
from envbuilder.build.install import Installer
from envbuilder.build.manifest import forget, write_manifest
from envbuilder.build.room import Need, imaging, require_room, unpacking
from envbuilder.build.smoke_stages import SmokeStages, in_manifest
from envbuilder.build.stages import Chain, Forecast, Result, Stage, exclusive
from envbuilder.errors import AbiError
from envbuilder.facts.site_packages import find_site, torch_build
from envbuilder.files import human_size
from envbuilder.store.cache import Wanted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from envbuilder.binaries.verdicts import AbiReport
    from envbuilder.build.plan import Plan
    from envbuilder.build.stages import Outcome
    from envbuilder.console import Console, Step
    from envbuilder.locking.model import LockedWheel
    from envbuilder.locking.source import LockedSource
    from envbuilder.targets.model import Environment, EnvironmentName


def build(plan: Plan, console: Console) -> list[Outcome]:
    """Carry out a plan; return how each stage ended. Raises EnvbuilderError at the first stage that fails."""
    with exclusive(plan.layout, console):
        pipeline = _Pipeline(plan=plan, console=console, chain=Chain(layout=plan.layout, console=console))
        pipeline.run()
    return list(pipeline.chain.outcomes.values())


@dataclass(frozen=True, kw_only=True)
class _Pipeline:
    plan: Plan
    console: Console
    chain: Chain

    def run(self) -> None:
        self._look_ahead()
        self._fetch()
        if self.plan.vllm == "source":
            from envbuilder.build.compile_stages import CompileStages  # noqa: PLC0415 - most builds compile nothing

            plan = CompileStages(plan=self.plan, chain=self.chain, console=self.console).run()
            replace(self, plan=plan).assemble_and_prove()
        else:
            self.assemble_and_prove()

    def _look_ahead(self) -> None:
        """Say before the first of gigabytes is fetched what this machine lacks: a compiler, memory, room on a disk."""
        plan, ahead, compiling = self.plan, Forecast(layout=self.plan.layout, console=self.console), 0
        missing = [item for item in self._all_wanted() if plan.store.find(item.sha256, item.filename, size=item.size) is None]
        if plan.vllm == "source":
            from envbuilder.build.compile_stages import CompileStages  # noqa: PLC0415 - see run()

            plan, compiling = CompileStages(plan=plan, chain=ahead, console=self.console).look_ahead()
        new = replace(self, plan=plan, chain=ahead).environments_to_make()
        fetching = Need(where=plan.store.root, what="to fetch", bytes=sum(item.size for item in missing))
        unpacked = unpacking(new, torch_backend=plan.release.torch_backend, store=plan.store, layout=plan.layout)
        # Where an environment is made anew, its layers may be too; one that is kept has had its images, unless none were asked for yet.
        written = not new and (plan.layout.out / "image").exists()
        images = [] if written else imaging(self._image_wheels(), store=plan.store, layout=plan.layout)
        require_room([fetching, *unpacked, Need(where=plan.store.root, what="to compile", bytes=compiling), *images])

    def _image_wheels(self) -> dict[str, int]:
        """Return the sizes of the wheels that images will hold, by sha256; none where no image is asked for."""
        if not self.plan.images or self.plan.target.images is None:
            return {}
        return {wheel.file.sha256: wheel.file.size for wheels in self.plan.wheels.values() for wheel in wheels}

    def environments_to_make(self) -> list[dict[str, int]]:
        """Return the sizes of the wheels, by sha256, of each environment that would not be kept. On a Forecast."""
        named = list(self.plan.release.environments())
        for name, environment in named:
            self._assemble(name, environment)
        made = [name for name, _ in named if self.chain.outcomes[f"assemble-{name}"].status != "kept"]
        return [{wheel.file.sha256: wheel.file.size for wheel in self.plan.wheels[name]} for name in made]

    def assemble_and_prove(self) -> None:
        for name, environment in self.plan.release.environments():
            self._assemble(name, environment)
        self._gates()
        self._abi()
        self._gpu_code()
        smoke = SmokeStages(plan=self.plan, chain=self.chain, console=self.console).run()
        self._manifest(in_manifest(smoke))
        self._images()

    def _images(self) -> None:
        if not self.plan.images:
            self.chain.skip("image", "--no-image was given")
            return
        from envbuilder.build.image_stage import ImageStage  # noqa: PLC0415 - what it needs is not loaded for --no-image

        ImageStage(plan=self.plan, chain=self.chain, console=self.console).run()

    # -- the environments ----------------------------------------------------------------------------------------

    def _wanted(self) -> list[Wanted]:
        plan = self.plan
        wheels = {wheel.file.sha256: wheel for name, _ in plan.release.environments() for wheel in plan.wheels[name]}
        wheels |= {wheel.file.sha256: wheel for wheel in plan.tools}
        return [Wanted(project=it.name, filename=it.file.filename, sha256=it.file.sha256, size=it.file.size) for it in wheels.values()]

    def _all_wanted(self) -> list[Wanted]:
        return [*self._wanted(), *map(_archive, self.plan.sources.values())]

    def _fetch(self) -> None:
        plan, wheels = self.plan, self._wanted()
        sdists = [_archive(source) for source in plan.sources.values() if not source.commit]
        commits = [(source.repository, source.commit, _archive(source)) for source in plan.sources.values() if source.commit]
        wanted = self._all_wanted()

        def run(step: Step) -> Result:
            from envbuilder.store.fetch import fetch  # noqa: PLC0415 - a build that fetches nothing need not load a client

            report = fetch(
                [*wheels, *sdists],
                store=plan.store,
                settings=plan.settings,
                console=self.console,
                offline=plan.offline,
                torch_backend=plan.release.torch_backend,
            )
            if commits:
                from envbuilder.store.git import fetch_commits  # noqa: PLC0415 - few builds ask for it

                fetch_commits(commits, store=plan.store, offline=plan.offline)
            step.detail = f"{len(wheels)} wheels, {human_size(report.added_bytes)} fetched, {report.present} in the store"
            return {"files": len(wanted), "bytes": sum(item.size for item in wanted)}

        def intact(_: Result) -> bool:
            return all(plan.store.find(item.sha256, item.filename, size=item.size) for item in wanted)

        self.chain.run(Stage(name="fetch", inputs=sorted(item.sha256 for item in wanted), run=run, intact=intact))

    def _assemble(self, name: EnvironmentName, environment: Environment) -> None:
        plan, wheels = self.plan, self.plan.wheels[name]
        inputs = {
            "wheels": sorted(wheel.file.sha256 for wheel in wheels),
            "overlays": {overlay: overlays.digest(overlay) for overlay in environment.overlays},
            "rules": [rule.model_dump() for rule in (*environment.shared_paths, *environment.expected_abi)],
            "python": [plan.interpreter.path, plan.interpreter.version, plan.interpreter.machine],
        }

        def run(step: Step) -> Result:
            forget(plan.layout)
            made = assemble(name, environment, wheels, installer=self._installer(), layout=plan.layout)
            step.detail = f"{_named(environment, wheels)}; {len(wheels)} distributions, {human_size(made.bytes)}"
            return {"made": made.identity, "bytes": made.bytes, "files": made.files}

        def intact(result: Result) -> bool:
            return is_intact(plan.layout, name, result["made"], wheels, foreign=plan.interpreter.foreign)

        self.chain.run(Stage(name=f"assemble-{name}", inputs=inputs, run=run, intact=intact))

    def _installer(self) -> Installer:
        plan = self.plan
        return Installer(
            target=plan.target,
            interpreter=plan.interpreter,
            store=plan.store,
            wheels=[wheel for wheels in plan.wheels.values() for wheel in wheels],
            console=self.console,
            scratch=plan.layout.scratch,
        )

    def _site(self, name: EnvironmentName) -> Path:
        site = find_site(self.plan.layout.environment(name))
        assert site is not None  # noqa: S101 - the stage before made it, or saw it intact
        return site

    # -- the proofs that need no run -----------------------------------------------------------------------------

    def _gates(self) -> None:
        named = list(self.plan.release.environments())

        def run(step: Step) -> Result:
            results = [result for name, environment in named for result in gates.check_gates(name, environment.gates, self._site(name))]
            gates.require(results)
            step.detail = f"{len(results)} of {len(results)} hold"
            return {"gates": [result.as_dict() for result in results]}

        inputs = {name: [gate.model_dump() for gate in environment.gates] for name, environment in named}
        self.chain.run(Stage(name="gates", inputs=inputs, after=("assemble-serve", "assemble-quantize"), run=run))

    def _abi(self) -> None:
        named = list(self.plan.release.environments())

        def run(step: Step) -> Result:
            reports = {name: check_environment(self._site(name), machine=self.plan.interpreter.machine) for name, _ in named}
            _require_abi(reports)
            count = sum(len(report.extensions) for report in reports.values())
            expected = sum(extension.expected is not None for report in reports.values() for extension in report.extensions)
            step.detail = f"{count} extension modules" + (f", {expected} of them known not to load" if expected else "")
            return {name: _abi_summary(report) for name, report in reports.items()}

        self.chain.run(Stage(name="abi", inputs={}, after=("assemble-serve", "assemble-quantize"), run=run))

    def _gpu_code(self) -> None:
        """Note what of the code runs on the target's GPU. Found by reading, and so on any machine; no fault fails the build here."""
        target = self.plan.target
        if target.device != "cuda":
            return
        named = [name for name, _ in self.plan.release.environments()]

        def run(step: Step) -> Result:
            found: Result = {name: summary(self._site(name), target.gpu) for name in named}
            verdicts = [row.get("verdict") for it in found.values() for row in it["files"]]
            fitting = sum(verdict != Way.NONE for verdict in verdicts)
            step.detail = f"{len(verdicts)} files with GPU code" + (
                f", {fitting} with some that runs on {target.gpu}" if target.gpu else ""
            )
            return found

        inputs = {"gpu": target.gpu}
        self.chain.run(Stage(name="gpu-code", inputs=inputs, after=("assemble-serve", "assemble-quantize"), run=run))

    # -- the record ----------------------------------------------------------------------------------------------

    def _manifest(self, smoke: dict[str, Any]) -> None:
        plan = self.plan

        def run(step: Step) -> Result:
            builds = {name: torch_build(self._site(name)) for name, _ in plan.release.environments()}
            outcomes = self.chain.outcomes
            compiled = {"compile": outcomes["compile"].result} if "compile" in outcomes else {}
            code = {"gpu_code": outcomes["gpu-code"].result} if "gpu-code" in outcomes else {}
            proofs = {**outcomes["gates"].result, "abi": outcomes["abi"].result, **code, "smoke": smoke, **compiled}
            digest = write_manifest(plan, builds, proofs=proofs)
            step.detail = f"sha256:{digest[:16]}…"
            return {"sha256": digest}

        inputs = {
            "target": plan.target.name,
            "release": [plan.release_name, plan.release.model_dump(mode="json")],
            "lock": plan.lock.digest,
            "vllm": plan.vllm,
            "interpreter": plan.interpreter.version,
        }
        after = tuple(self.chain.outcomes)
        there = plan.layout.manifest.is_file
        self.chain.run(Stage(name="manifest", inputs=inputs, after=after, run=run, intact=lambda _: there(), revision=2))


def _named(environment: Environment, wheels: Sequence[LockedWheel]) -> str:
    """The versions of what the target asks for by name."""
    versions = {wheel.name: wheel.version for wheel in wheels}
    asked = [canonicalize_name(Requirement(text).name) for text in environment.requires]
    return ", ".join(f"{name} {versions[name]}" for name in asked)


def _require_abi(reports: dict[EnvironmentName, AbiReport]) -> None:
    faults = [(name, report) for name, report in reports.items() if not report.ok]
    if faults:
        raise AbiError(
            f"{sum(extension.fails for _, report in faults for extension in report.extensions)} extension modules would not load",
            why="\n".join(f"envs/{name}: {cause.text}" for name, report in faults for cause in report.causes),
            next="`envbuilder abi` on that environment shows every symbol and library.",
        )


def _abi_summary(report: AbiReport) -> dict[str, Any]:
    return {
        "torch": None if report.torch is None else {"version": report.torch.version, "cuda": report.torch.cuda},
        "extensions": [
            {"path": it.path, "verdict": it.verdict, **({"expected": it.expected} if it.expected else {})} for it in report.extensions
        ],
    }


def _archive(source: LockedSource) -> Wanted:
    return Wanted(project=source.name, filename=source.filename, sha256=source.sha256, size=source.size)
