"""manifest.json: what was built, exactly. The same inputs give the same bytes: no time, no path, no speed stands in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from envbuilder import __version__
from envbuilder.files import remove_tree, sha256_file, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuilder.build.plan import Plan
    from envbuilder.layout import Layout
    from envbuilder.targets.model import EnvironmentName
    from envbuilder.torch_version import TorchBuild

SCHEMA = "envbuilder/manifest/1"


def forget(layout: Layout) -> None:
    """Remove what tells of the earlier build, before an environment of it is replaced: what comes has yet to be proved.

    The images and their papers stay: they are made of the lock's own files, nothing in them changes with an environment, and
    each says of which lock it is.
    """
    for path in (layout.manifest, layout.smoke):
        remove_tree(path)


def write_manifest(plan: Plan, builds: Mapping[EnvironmentName, TorchBuild | None], *, proofs: Mapping[str, Any]) -> str:
    """Write the manifest of a finished build; return its sha256. `proofs` are its gates, ABI verdicts and smoke test."""
    document = {
        "schema": SCHEMA,
        "envbuilder": __version__,
        "target": plan.target.name,
        "release": plan.release_name,
        "platform": f"linux/{plan.interpreter.machine}",
        "python": plan.interpreter.version,
        "lock": f"sha256:{plan.lock.digest}",
        "vllm": plan.vllm,
        "environments": {name: _environment(plan, name, builds[name]) for name, _ in plan.release.environments()},
        **proofs,
    }
    write_json(plan.layout.manifest, document)
    return sha256_file(plan.layout.manifest)


def _environment(plan: Plan, name: EnvironmentName, build: TorchBuild | None) -> dict[str, Any]:
    environment = getattr(plan.release, name)
    return {
        "torch": None if build is None else {"version": build.version, "cuda": build.cuda},
        "variables": dict(environment.variables),
        "arguments": list(environment.arguments),
        "overlays": list(environment.overlays),
        "left_out": {exclusion.name: exclusion.reason for exclusion in environment.excludes},
        "distributions": [
            {"name": wheel.name, "version": wheel.version, "file": wheel.file.filename, "sha256": wheel.file.sha256}
            for wheel in plan.wheels[name]
        ],
    }
