"""Model files on this machine, and the project one stands in."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from pathlib import Path

from envbuilder import reading
from envbuilder.facts.model import Checkpoint, Project
from envbuilder.facts.site_packages import normalized

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from envbuilder.facts.world import World

_MOST_MODELS = 32
_AT_WORK_S = 3600  # an unfinished file that nobody has touched for longer was given up
_HEADER_LIMIT = 100 << 20  # safetensors' own limit for a header
_ARCHITECTURE = r"[\w.-]{1,80}"


def read_checkpoints(world: World, model: Path | None) -> tuple[Checkpoint, ...]:
    """Read the configurations of the models in Hugging Face's cache, and of `model` if one is named."""
    home = Path(world.variables.get("HF_HOME") or Path(world.variables.get("XDG_CACHE_HOME") or world.home / ".cache") / "huggingface")
    hub = world.at(world.variables.get("HF_HUB_CACHE") or home / "hub")
    folders: list[tuple[str, Path]] = [(model.name, world.at(model))] if model else []
    with contextlib.suppress(OSError):
        for entry in [name for name in reading.names(hub) if name.startswith("models--")][:_MOST_MODELS]:
            name = entry.removeprefix("models--").replace("--", "/")
            folders += [(name, snapshot) for snapshot in _snapshots(hub / entry)[-1:]]
    return tuple(_checkpoint(world, name, folder) for name, folder in folders if folder.is_dir())


def _snapshots(model: Path) -> list[Path]:
    """Return a cached model's snapshots, last the one that is loaded when no revision is named: that of refs/main."""
    main = reading.text(model / "refs/main", limit=200).strip()
    return sorted(model.glob("snapshots/*"), key=lambda snapshot: (snapshot.name == main, snapshot.name))


def _checkpoint(world: World, name: str, folder: Path) -> Checkpoint:
    config = _json(folder / "config.json")
    text_config = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    quantization = config.get("quantization_config")
    dims = [text_config.get(key) for key in ("head_dim", "global_head_dim")] if isinstance(text_config, dict) else []
    architectures = config.get("architectures")
    return Checkpoint(
        name=name,
        model_type=_word(config.get("model_type")),
        architectures=tuple(_word(item) for item in architectures[:4]) if isinstance(architectures, list) else (),
        quantization=_word(quantization.get("format") or quantization.get("quant_method")) if isinstance(quantization, dict) else "",
        head_dims=tuple(dim for dim in dims if isinstance(dim, int) and not isinstance(dim, bool)),
        broken=tuple(_broken_files(folder)),
        path=str(folder) if world.live else "",
        downloading=_downloading(folder),
    )


def _downloading(folder: Path) -> bool:
    """Whether the hub's library is at work: its unfinished files lie in the cache's blobs, or below the folder that was named."""
    blobs = folder.parent.parent / "blobs"
    with contextlib.suppress(OSError):
        unfinished = [*blobs.glob("*.incomplete"), *(folder / ".cache/huggingface/download").glob("**/*.incomplete")]
        return any(time.time() - path.stat().st_mtime < _AT_WORK_S for path in unfinished)
    return False


def _word(value: Any) -> str:  # noqa: ANN401 - from a file that anyone may have written
    return value if isinstance(value, str) and re.fullmatch(_ARCHITECTURE, value) else ""


def _json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(reading.data(path))
        return value if isinstance(value, dict) else {}
    return {}


def _broken_files(folder: Path) -> Iterator[str]:
    """Name the safetensors files that cannot be whole, and those that the index names and that are not there."""
    for path in sorted(folder.glob("*.safetensors")):
        reason = why_not_whole(path)
        if reason:
            yield f"{path.name}: {reason}"
    for index in folder.glob("*.safetensors.index.json"):
        weights = _json(index).get("weight_map")
        names = {name for name in weights.values() if isinstance(name, str)} if isinstance(weights, dict) else set()
        for name in sorted(names):
            if "/" not in name and not (folder / name).exists():
                yield f"{name}: named in {index.name}, not there"


def why_not_whole(path: Path) -> str:
    """Return why a safetensors file cannot be whole, "" if its header and its size agree.

    Format: 8 bytes little-endian length N, N bytes of JSON, then the tensors; the largest `data_offsets` end is their size.
    """
    try:
        with reading.opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8:
                return f"{size} bytes, too short for a header"
            if length > min(size - 8, _HEADER_LIMIT):
                start = file.read(40)
                return "a Git LFS pointer, not the file" if b"git-lfs" in b"version " + start else f"cut inside its header ({size} bytes)"
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except OSError as error:
        return error.strerror or "cannot be read"
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return "its header is not valid JSON"
    return f"{size} of {whole} bytes" if size < whole else ""


def read_project(world: World) -> Project:
    """Look at the folder one stands in."""
    here = world.at(world.directory)
    source = (here / "vllm").is_dir() and (here / "setup.py").is_file() and (here / "CMakeLists.txt").is_file()
    return Project(
        vllm_source=source,
        vllm_shadow=(here / "vllm/__init__.py").is_file() and not (here / "vllm/_version.py").is_file(),
        git=_git_state(here) if source else "",
        rust_channel=_channel(here) if source else "",
        sm120_only_guard=source and _has_guard(here),
        torch_source_transitive=_transitive_source(here),
        wheel_versions=_wheels(here),
        build_metadata_unknown=_unknown_commits(here),
    )


def _git_state(here: Path) -> str:
    """Return "sdist", "none", "shallow" or "full": what setuptools-scm will find."""
    if (here / "PKG-INFO").is_file():
        return "sdist"
    git = here / ".git"
    if not git.exists():
        return "none"
    return "shallow" if (git / "shallow").is_file() else "full"


def _channel(here: Path) -> str:
    match = re.search(r'^channel\s*=\s*"([^"]+)"', reading.text(here / "rust-toolchain.toml"), re.MULTILINE)
    return match[1] if match else ""


def _has_guard(here: Path) -> bool:
    files = sorted((here / "csrc").rglob("*scaled_mm*sm120*"))[:50] if (here / "csrc").is_dir() else []
    return any("enable_sm120_only" in reading.text(path) for path in files if path.is_file())


def _transitive_source(here: Path) -> bool:
    """Whether pyproject.toml gives torch a source that uv will not use, because torch is no direct dependency."""
    text = reading.text(here / "pyproject.toml")
    if "tool.uv.sources" not in text:
        return False
    import tomllib  # noqa: PLC0415 - only where there is such a file

    try:
        value = tomllib.loads(text)
        sources = value["tool"]["uv"]["sources"]
        direct = [*value.get("project", {}).get("dependencies", [])]
        for group in (*value.get("project", {}).get("optional-dependencies", {}).values(), *value.get("dependency-groups", {}).values()):
            direct += [item for item in group if isinstance(item, str)]
        return "torch" in sources and not any(re.match(r"torch\b(?![-\w])", item.strip()) for item in direct)
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError):
        return False


def _wheels(here: Path) -> dict[str, tuple[str, ...]]:
    """Return name → versions of the wheels in ./wheels, where there are several of one name."""
    versions: dict[str, set[str]] = {}
    if not (here / "wheels").is_dir():
        return {}
    for path in sorted((here / "wheels").glob("*.whl")):
        parts = path.name.split("-")
        if len(parts) >= 5:
            versions.setdefault(normalized(parts[0]), set()).add(parts[1])
    return {name: tuple(sorted(found)) for name, found in versions.items() if len(found) > 1}


def _unknown_commits(here: Path) -> tuple[str, ...]:
    text = reading.text(here / "build-metadata.yaml") or reading.text(here / "wheels/build-metadata.yaml")
    return tuple(re.findall(r"^\s*([\w-]*commit[\w-]*)\s*:\s*[\"']?unknown", text, re.MULTILINE)) if "unknown" in text else ()
