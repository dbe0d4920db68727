"""The last stage of a build: its images, their bill of materials and their provenance, written into the output folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envbuilder import __version__
from envbuilder.build.image_inputs import ImageSource, lock_files, make_inputs, prove, python_of, settings_of, target_document
from envbuilder.build.papers import images_of, provenance_of, sbom_of, subjects_of, write_bill, write_provenance
from envbuilder.build.plan import chosen_machine
from envbuilder.build.stages import Stage
from envbuilder.errors import ConfigurationError, EnvbuilderError, UsageError
from envbuilder.facts.site_packages import find_site
from envbuilder.files import human_size, parse_json, vanishing
from envbuilder.images.layers import LayerStore
from envbuilder.images.provenance import statement
from envbuilder.images.write import write_images
from envbuilder.locking.model import read_lock
from envbuilder.store.settings import read_settings
from envbuilder.targets.catalogue import find_target, lock_folder

if TYPE_CHECKING:
    from pathlib import Path

    from envbuilder.build.plan import Plan
    from envbuilder.build.stages import Chain, Result
    from envbuilder.console import Console, Step
    from envbuilder.images.write import Written
    from envbuilder.layout import Layout
    from envbuilder.store.cache import Store
    from envbuilder.targets.model import Machine

NAME = "image"


@dataclass(frozen=True, kw_only=True)
class ImageStage:
    """Writes the images of a plan, unless they are there, or are not wanted."""

    plan: Plan
    chain: Chain
    console: Console

    def run(self) -> None:
        plan = self.plan
        if plan.target.images is None:
            self.chain.skip(NAME, f"target {plan.target.name} says nothing of images")
            return
        source = self._source()

        def run(step: Step) -> Result:
            written = make_images(source, plan.layout, self.console)
            made = len({digest for image in written for digest in image.made})
            largest = max(written, key=lambda image: image.size)
            step.detail = f"{', '.join(image.name for image in written)}; up to {human_size(largest.size)}, {made} layers new"
            return {"images": {image.name: image.descriptor.digest for image in written}}

        def intact(result: Result) -> bool:
            try:
                found = {image.name: image.descriptor.digest for image in images_of(plan.layout).images()}
            except EnvbuilderError:
                return False
            return found == result["images"] and provenance_of(plan.layout).is_file() and sbom_of(plan.layout).is_file()

        inputs = {
            "lock": plan.lock.digest,
            "images": settings_of(source).model_dump(mode="json"),
            "release": [plan.release_name, plan.release.model_dump(mode="json")],
            "envbuilder": __version__,  # stands in the images, and so does the target
            "target": target_document(source).decode(),
            "own": sorted(path.name for path in source.own_wheels),
        }
        self.chain.run(Stage(name=NAME, inputs=inputs, after=("gates", "abi"), run=run, intact=intact, revision=3))

    def _source(self) -> ImageSource:
        plan = self.plan
        known = plan.lock.hashes()
        own = {wheel.file.sha256: wheel.file for wheels in plan.wheels.values() for wheel in wheels if wheel.file.sha256 not in known}
        return ImageSource(
            target=plan.target,
            release_name=plan.release_name,
            release=plan.release,
            lock=plan.lock,
            lock_files=lock_files(plan.lock_folder),
            machine=plan.interpreter.machine,
            store=plan.store,
            settings=plan.settings,
            console=self.console,
            offline=plan.offline,
            own_wheels=tuple(plan.store.path(file.sha256, file.filename) for file in own.values()),
        )


@vanishing()
def make_images(source: ImageSource, layout: Layout, console: Console) -> list[Written]:
    """Prove what goes into the images, write them, and what is to be said of them beside them."""
    inputs = make_inputs(source, prove(source, fitting_sites(source, layout), layout.scratch))
    written = write_images(inputs, layers=LayerStore(source.store.root), layout=images_of(layout), console=console)
    write_bill(source, layout)
    write_provenance(statement(inputs, subjects_of(layout)), layout)
    return written


def fitting_sites(source: ImageSource, layout: Layout) -> dict[str, Path]:
    """Return the built environments that have the image's Python, and so the very same files."""
    python = settings_of(source).python
    sites = {name: find_site(layout.environment(name)) for name, _ in source.release.environments()}
    return {name: site for name, site in sites.items() if site and python_of(site) == python}


def source_of_build(layout: Layout, *, store: Store, console: Console, offline: bool, target: str | None = None) -> ImageSource:
    """Return the source of a finished build's images, from its manifest. Raises UsageError where there is no build.

    `target`: the target's file, where its name does not lead to it.
    """
    manifest = read_manifest(layout)
    try:
        named, path = find_target(target or manifest["target"])
        name, release = named.release(manifest["release"])
        machine: Machine = manifest["platform"].removeprefix("linux/")
        rows: list[dict[str, Any]] = [row for it in manifest["environments"].values() for row in it["distributions"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{layout.manifest} is not a build's manifest", why=f"{type(error).__name__}: {error}") from error
    folder = lock_folder(path, named, name)
    lock = read_lock(folder)
    if manifest.get("lock") != f"sha256:{lock.digest}":
        raise ConfigurationError(
            f"{layout.out} was built from another lock",
            why=f"It says {manifest.get('lock')}; the lock here is sha256:{lock.digest}.",
            next="Run `envbuilder build` again.",
        )
    known = lock.hashes()
    own = {row["sha256"]: row["file"] for row in rows if row["sha256"] not in known}
    return ImageSource(
        target=named,
        release_name=name,
        release=release,
        lock=lock,
        lock_files=lock_files(folder),
        machine=machine,
        store=store,
        settings=read_settings(),
        console=console,
        offline=offline,
        own_wheels=tuple(_own(layout, store, value, filename) for value, filename in own.items()),
    )


def source_of_lock(target: str, release: str | None, platform: str | None, *, store: Store, console: Console, offline: bool) -> ImageSource:
    """Return the source of a target's images where nothing was built: of its lock alone. Its own wheels, if it has any, are elsewhere."""
    named, path = find_target(target)
    name, chosen = named.release(release)
    folder = lock_folder(path, named, name)
    return ImageSource(
        target=named,
        release_name=name,
        release=chosen,
        lock=read_lock(folder),
        lock_files=lock_files(folder),
        machine=chosen_machine(named, platform),
        store=store,
        settings=read_settings(),
        console=console,
        offline=offline,
    )


def read_manifest(layout: Layout) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = parse_json(layout.manifest.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{layout.out} holds no finished build", why=f"{layout.manifest.name}: {error}", next="Run `envbuilder build` first."
        ) from error
    try:
        rows = [row for it in manifest["environments"].values() for row in it["distributions"]]
        sound = manifest["environments"].keys() <= {"serve", "quantize"} and isinstance(manifest["lock"], str) and all(map(_is_sound, rows))
        why = "" if sound else "It has an environment or a distribution without what a build writes of it."
    except (KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
    if why:
        raise UsageError(f"{layout.manifest} is not a build's manifest", why=why, next="Run `envbuilder build` again.")
    return manifest


def _is_sound(row: Any) -> bool:  # noqa: ANN401 - JSON of somebody's
    named = isinstance(row["name"], str) and re.fullmatch(r"[^/.\0][^/\0]*", row["file"])
    return bool(named and re.fullmatch(r"[0-9a-f]{64}", row["sha256"]))


def _own(layout: Layout, store: Store, sha256: str, filename: str) -> Path:
    path = layout.out / "wheels" / filename
    return path if path.is_file() else store.path(sha256, filename)
