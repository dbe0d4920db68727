"""A Python environment, read from its files: its interpreter is never run, and nothing of it is imported."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

from envbuilder import reading
from envbuilder.facts.model import CachedLibrary, Environment, Interpreter, Lock, Torch
from envbuilder.facts.site_packages import normalized, read_distributions, sites_of, torch_build
from envbuilder.facts.toolchain import cuda_release_of
from envbuilder.torch_version import parse_torch_version

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envbuilder.facts.world import World

_ELF_MACHINES = {0x3E: "x86_64", 0xB7: "aarch64", 0xF3: "riscv64"}
_SHADOWING = ("torch", "vllm", "transformers", "triton", "numpy", "flashinfer")
_MOST_CACHED = 64
_LIBRARY_LIMIT = 64 << 20


def read_environment(world: World, path: Path) -> Environment:
    """Read the environment at `path` (in the world's terms). What is no environment is said, not raised."""
    place = world.at(path)
    if not place.is_dir():
        return Environment(
            path=str(path), kind="none", valid=False, reason="it is no folder" if place.exists() else "there is no such folder"
        )
    sites = sites_of(place)
    config = _config(place)
    if not sites:
        reason = "a folder of a virtual environment without site-packages" if config else "no lib/pythonX.Y/site-packages below it"
        interpreter = _interpreter(world, place, config, "") if config else None
        return Environment(path=str(path), kind="venv" if config else "none", valid=False, reason=reason, interpreter=interpreter)
    first = sites[0]
    version = first.parent.name.removeprefix("python")
    found = [read_distributions(site) for site in sites]
    torch = _torch(first)
    triton = first / "triton/backends/nvidia/bin"
    system_site = config.get("include-system-site-packages", "").lower() == "true"
    return Environment(
        path=str(path),
        kind="venv" if config else "conda" if (place / "conda-meta").is_dir() else "prefix",
        valid=True,
        interpreter=_interpreter(world, place, config, version),
        site_packages=tuple(_named(world, site) for site in sites),
        system_site=system_site,
        shadowed=_shadowed(world, version, system_site=system_site),
        moved_from=_moved_from(place, world, path),
        leftovers=tuple(name for site in sites for name in _named_like(site, "~"))[:20],
        distributions=tuple(one for dists, _ in found for one in dists),
        owned_twice=tuple(one for _, shared in found for one in shared),
        torch=torch,
        torchvision_cuda=_torchvision_cuda(first),
        # 30 MB each to look through, which a CPU build never runs.
        triton_ptxas=cuda_release_of(triton / "ptxas") if torch is None or torch.cuda else "",
        triton_ptxas_blackwell=cuda_release_of(triton / "ptxas-blackwell") if torch is None or torch.cuda else "",
        extensions=None,
        vllm_variables=_vllm_variables(first),
        vllm_models=_named_like(first / "vllm/model_executor/models", "gemma4", end=".py"),
        vllm_faults=_vllm_faults(first),
        vllm_rust=bool(_named_like(first / "vllm", "_rust", end=".so")) or (first / "vllm/vllm-rs").exists(),
        model_types=tuple(name for name in _named_like(first / "transformers/models") if not name.startswith("_") and "." not in name),
        jit_cache=_jit_cache(world),
        lock=_lock(place),
    )


def _named(world: World, place: Path) -> str:
    return str(place) if world.live or not place.is_relative_to(world.root) else "/" + str(place.relative_to(world.root))


def _config(place: Path) -> dict[str, str]:
    lines = reading.text(place / "pyvenv.cfg").splitlines()
    return {key.strip().lower(): value.strip() for key, sign, value in (line.partition("=") for line in lines) if sign}


def _interpreter(world: World, place: Path, config: dict[str, str], version: str) -> Interpreter:
    stated = config.get("version") or config.get("version_info", "")
    home = config.get("home", "")
    short = version or ".".join(stated.split(".")[:2])
    path = place / "bin/python"
    if not config and not world.exists(_named(world, path)):
        # /usr/local: a Python of its own is not always called python, and Debian's, which installs to it, is in /usr.
        others = (place / f"bin/python{short}", Path(f"/usr/bin/python{short}"))
        path = next((other for other in others if world.exists(_named(world, other))), path)
    target = _resolved(world, path)
    base = Path(home).parent if home else path.parent.parent
    headers = [base / f"include/python{short}{suffix}/Python.h" for suffix in ("", "t")]
    return Interpreter(
        path=_named(world, path),
        version=".".join(stated.split(".")[:3]) or short,
        exists=target is not None,
        machine=_machine(target) if target else "",
        home=home,
        home_exists=not home or world.exists(home),
        headers=any(world.exists(_named(world, header)) for header in headers),
        free_threaded=version.endswith("t"),
    )


def _resolved(world: World, path: Path) -> Path | None:
    target = world.at(_named(world, path)) if not world.live else path
    try:
        return target.resolve() if target.exists() else None
    except (OSError, RuntimeError):
        return None


def _machine(path: Path) -> str:
    header = reading.data(path, limit=20)
    return _ELF_MACHINES.get(int.from_bytes(header[18:20], "little"), "other") if header[:4] == b"\x7fELF" else ""


def _shadowed(world: World, version: str, *, system_site: bool) -> tuple[str, ...]:
    """Return packages that come before the environment's own: from PYTHONPATH, and from the user's or the system's site."""
    folders = [folder for folder in world.variables.get("PYTHONPATH", "").split(":") if folder.startswith("/")]
    if system_site and not world.variables.get("PYTHONNOUSERSITE"):
        folders.append(str(world.home / f".local/lib/python{version}/site-packages"))
    return tuple(f"{folder}/{name}" for folder in folders for name in _SHADOWING if (world.at(folder) / name / "__init__.py").is_file())


def _moved_from(place: Path, world: World, path: Path) -> str:
    """Return the folder that the scripts in bin/ name, if it is not this one (a venv that was moved or copied)."""
    line = f"\n{reading.text(place / 'bin/activate')}".partition("\nVIRTUAL_ENV=")[2].partition("\n")[0]
    stated = line.replace('"', "'").removeprefix("'").partition("'")[0].partition("$")[0].rstrip("/")
    if not stated.startswith("/"):  # found out by the script itself
        return ""
    same = Path(stated) == path or world.at(stated) == place
    if world.live and not same:
        with contextlib.suppress(OSError):
            same = Path(stated).resolve() == place.resolve()
    return "" if same else stated


def _torch(site: Path) -> Torch | None:
    """Return torch's build as it says itself, and what lies beside it."""
    build = torch_build(site)
    if build is None:
        return None
    cmake = reading.text(site / "torch/share/cmake/Caffe2/Modules_CUDA_fix/upstream/FindCUDA/select_compute_arch.cmake")
    return Torch(
        version=build.version,
        cuda=build.cuda or "",
        hip=build.hip or "",
        cuda_library=(site / "torch/lib/libtorch_cuda.so").exists(),
        arch_rewrite="2.1(2.0)" in cmake,
    )


def _torchvision_cuda(site: Path) -> str | None:
    """Return the CUDA that torchvision was built for ("" for CPU), from its local version; None if it does not say."""
    build = parse_torch_version(reading.text(site / "torchvision/version.py"))
    label = build.version.partition("+")[2] if build else ""
    if label.startswith("cu") and label[2:].isdecimal():
        return f"{label[2:4]}.{label[4:]}"
    return "" if label == "cpu" else None


def _vllm_variables(site: Path) -> tuple[str, ...]:
    # No \b before it: a pattern that begins with plain text is looked for ten times faster.
    return tuple(sorted(set(re.findall(r"VLLM_[A-Z0-9_]+\b", reading.text(site / "vllm/envs.py")))))


def _vllm_faults(site: Path) -> tuple[str, ...]:
    """Return the faults that stand in vLLM's own source, where releases and nightly builds cannot be told by their versions.

    `cooperative_topk`: its launch is chosen by "9.0 or newer", without leaving out the family 12.x, which cannot start it.
    """
    source = reading.text(site / "vllm/model_executor/layers/sparse_attn_indexer.py")
    chosen = source.partition("use_cooperative_topk = (")[2].partition("\n        )")[0]
    return ("cooperative_topk",) if "has_device_capability(90)" in chosen and "is_device_capability_family(120)" not in chosen else ()


def _named_like(folder: Path, start: str = "", *, end: str = "") -> tuple[str, ...]:
    """Return the names in a folder that begin and end so, none where there is no such folder."""
    return tuple(name for name in reading.names(folder) if name.startswith(start) and name.endswith(end))


def _jit_cache(world: World) -> tuple[CachedLibrary, ...]:
    """Return FlashInfer's kept libraries and the CUDA runtime each one names (its soname stands as text in .dynstr)."""
    base = world.at(Path(world.variables.get("FLASHINFER_WORKSPACE_BASE") or world.home) / ".cache/flashinfer")
    return tuple(
        CachedLibrary(path=_named(world, path), cudart=match[1].decode())
        for path in (sorted(base.rglob("*.so"))[:_MOST_CACHED] if base.is_dir() else [])
        if (match := re.search(rb"libcudart\.so\.(\d+)\0", reading.data(path, limit=_LIBRARY_LIMIT)))
    )


def _lock(place: Path) -> Lock | None:
    """Read what the environment was locked to: a requirements file in it, or the manifest of the build that made it."""
    for name in ("lock.txt", "requirements.lock", "requirements.txt"):
        joined = reading.text(place / name).replace("\\\n", " ")
        pins = re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;]+)(.*)$", joined, re.MULTILINE) if joined else []
        if pins:
            return Lock(
                pins={normalized(pin): version for pin, version, _ in pins},
                unhashed=sum("--hash=" not in rest for _, _, rest in pins),
            )
    with contextlib.suppress(ValueError, AttributeError, TypeError, KeyError):
        manifest = json.loads(reading.text(place.parent.parent / "manifest.json") or "{}")
        value = manifest["environments"][place.name]
        pins_of = {normalized(entry["name"]): str(entry["version"]) for entry in value["distributions"]}
        left_out = tuple(sorted(map(normalized, value.get("left_out", {}))))
        return Lock(pins=pins_of, unhashed=0, left_out=left_out, platform=str(manifest.get("platform", "")))
    return None
