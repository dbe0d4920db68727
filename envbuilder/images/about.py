"""What an image says of itself: image.json below opt/envbuilder, and labels for those who do not open it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from envbuilder import __version__
from envbuilder.binaries.fatbin import Arch, parse_arch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from envbuilder.images.inputs import EnvironmentInputs, ImageName, Inputs
    from envbuilder.images.wheels import Wheel

SCHEMA = "envbuilder/contents/1"
_WAYS = ("native", "family", "jit", "none")


def describe(image: ImageName, wheels: Sequence[Wheel], inputs: Inputs) -> dict[str, Any]:
    """Return image.json: what an image holds and where each part of it comes from. No time, no path of the builder."""
    environment = inputs.environment_of(image)
    above, rootfs = image != "base", inputs.rootfs
    return {
        "schema": SCHEMA,
        "name": f"{inputs.target}-{inputs.release}-{image}",
        "image": image,
        "target": inputs.target,
        "release": inputs.release,
        "platform": inputs.platform,
        "python": inputs.python,
        "envbuilder": __version__,
        "lock": f"sha256:{inputs.lock}",
        "compression": {"name": "zstd", "level": inputs.compression.level, "library": inputs.compression.library},
        "variables": dict(environment.variables) if above else {},
        "left_out": dict(environment.left_out),
        "asked": [name for name in environment.asked if above or name == "torch"],
        "distributions": [_distribution(wheel, environment) for wheel in wheels],
        "compiled": {wheel.name: environment.compiled[wheel.name] for wheel in wheels if wheel.name in environment.compiled},
        "overlays": [{"path": path, "sha256": value} for path, value in environment.overlay_hashes.items()] if above else [],
        "packages": [
            {"name": it.locked.name, "version": it.locked.version, "path": it.locked.path, "sha256": it.locked.sha256}
            for it in inputs.packages_of(image)
        ],
        "rootfs": {"image": rootfs.image, "digest": rootfs.digest, "layers": [it.digest for it in rootfs.layers]} if rootfs else None,
        **_proofs(environment.proofs, None if above else wheels),
    }


def _distribution(wheel: Wheel, environment: EnvironmentInputs) -> dict[str, str]:
    source = "compiled" if wheel.name in environment.compiled else "published"
    return {"name": wheel.name, "version": wheel.version, "file": wheel.filename, "sha256": wheel.sha256, "source": source}


def _proofs(proofs: Mapping[str, Any], wheels: Sequence[Wheel] | None) -> dict[str, Any]:
    """Return what was found out of an environment; with `wheels`, of those alone."""
    if wheels is None or not proofs:
        return dict(proofs)
    names = {wheel.name for wheel in wheels}
    paths = {path for wheel in wheels for path in wheel.members()}
    gpu_code = proofs.get("gpu_code")
    return {
        "gates": [row for row in proofs["gates"] if row["subject"] in {*names, "torch's build"}],
        "abi": [row for row in proofs["abi"] if row["path"] in paths],
        **({"gpu_code": {**gpu_code, "files": [row for row in gpu_code["files"] if row["path"] in paths]}} if gpu_code else {}),
    }


# -- labels ------------------------------------------------------------------------------------------------------


def labels(about: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of the image that `about` (image.json) describes."""
    versions = {row["name"]: row["version"] for row in about["distributions"]}
    return {
        "org.opencontainers.image.title": f"{about['target']}-{about['image']}",
        "org.opencontainers.image.version": about["release"],
        "envbuilder.image": about["image"],
        "envbuilder.lock": about["lock"],
        "envbuilder.target": about["target"],
        "envbuilder.release": about["release"],
        "envbuilder.python": about["python"],
        **{f"envbuilder.version.{name}": versions[name] for name in about["asked"]},
        "envbuilder.sources": _sources(about),
        **({"envbuilder.rootfs": f"{about['rootfs']['image']}@{about['rootfs']['digest']}"} if about["rootfs"] else {}),
        **({"envbuilder.abi": _abi(about["abi"])} if "abi" in about else {}),
        **({"envbuilder.gates": f"{len(about['gates'])} of {len(about['gates'])} hold"} if "gates" in about else {}),
        **(dict(_gpu_code(about["gpu_code"])) if "gpu_code" in about else {}),
    }


def _sources(about: Mapping[str, Any]) -> str:
    counts = Counter(row["source"] for row in about["distributions"])
    rootfs = f"root filesystem {about['rootfs']['image']}" if about["rootfs"] else f"{len(about['packages'])} Debian packages"
    parts = [f"{counts['published']} published wheels", rootfs]
    parts += [f"{counts['compiled']} compiled from source"] if counts["compiled"] else []
    parts += [f"{len(about['overlays'])} files of overlays"] if about["overlays"] else []
    return ", ".join(parts)


def _abi(rows: Sequence[Mapping[str, str]]) -> str:
    known = sum("expected" in row for row in rows)
    return f"{len(rows) - known} extension modules ok" + (f", {known} known not to load" if known else "")


def _gpu_code(gpu_code: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield a label for each package: in how many of its translation units the target's GPU finds which kind of code.

    Where the target has no one GPU, the archs that there is any code for.
    """
    gpu = gpu_code["arch"]
    if gpu:
        yield "envbuilder.gpu", gpu
    for package in sorted({row["path"].partition("/")[0] for row in gpu_code["files"]}):
        rows = [row for row in gpu_code["files"] if row["path"].startswith(f"{package}/")]
        units = Counter[str]()
        for row in rows:
            units.update(row.get("units", {}))
        archs = sorted({name for row in rows for name in (*row["cubins"], *row["ptx"])}, key=_order)
        ways = ", ".join(f"{units[way]} {way}" for way in _WAYS if units[way])
        yield f"envbuilder.gpu-code.{package}", f"{ways} of {units.total()} units for {gpu}" if gpu else " ".join(archs)


def _order(name: str) -> tuple[bool, Arch]:
    return name.startswith("compute_"), parse_arch(name) or Arch(0)
