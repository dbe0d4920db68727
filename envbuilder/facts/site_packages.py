"""What an environment holds, read from its files alone: nothing is imported, so nothing can fail to load.

Works for an environment of any platform. `site` is a site-packages folder.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TorchBuild:
    """What torch/version.py says of itself: the version with its local part, and the CUDA it was built for (None: a CPU build)."""

    version: str
    cuda: str | None


def find_site(environment: Path) -> Path | None:
    """Return an environment's site-packages, or None if it is no environment."""
    return next(iter(sorted(environment.glob("lib/python3.*/site-packages"))), None)


def distributions(site: Path) -> dict[str, str]:
    """Return {canonical name: version} of what is installed, from the names of the dist-info folders (PEP 427)."""
    found = {}
    for entry in site.glob("*.dist-info"):
        name, _, version = entry.name.removesuffix(".dist-info").partition("-")
        found[str(canonicalize_name(name))] = version
    return dict(sorted(found.items()))


def torch_build(site: Path) -> TorchBuild | None:
    """Return which build of torch is installed. The wheel's name does not tell: `torch-2.11.0` may be +cu130 or +cpu."""
    values = _constants(site / "torch" / "version.py")
    version, cuda = values.get("__version__"), values.get("cuda")
    if not isinstance(version, str):
        return None
    return TorchBuild(version=version, cuda=cuda if isinstance(cuda, str) else None)


def vllm_module_of(site: Path, architecture: str) -> str | None:
    """Return the module in which vLLM implements a model architecture, or None if its registry does not know it.

    The registry (vllm/model_executor/models/registry.py) maps an architecture's name to (module, class).
    """
    models = site / "vllm" / "model_executor" / "models"
    tree = _parse(models / "registry.py")
    if tree is None:
        return None
    for node in ast.walk(tree):
        if not isinstance(node, ast.Dict):
            continue
        for key, value in zip(node.keys, node.values, strict=True):
            match key, value:
                case ast.Constant(value=str(name)), ast.Tuple(elts=[ast.Constant(value=str(module)), *_]) if name == architecture:
                    return module if (models / f"{module}.py").is_file() or (models / module).is_dir() else None
                case _:
                    pass
    return None


def attention_backends(site: Path) -> tuple[str, ...]:
    """Return what vLLM's server takes after `--attention-backend`; nothing where it has no such option.

    The option is added in vllm/engine/arg_utils.py; its values are the members of AttentionBackendEnum.
    """
    options, registry = (_parse(site / "vllm" / path) for path in ("engine/arg_utils.py", "v1/attention/backends/registry.py"))
    if options is None or registry is None:
        return ()
    if not any(isinstance(node, ast.Constant) and node.value == "--attention-backend" for node in ast.walk(options)):
        return ()
    members = [node.body for node in registry.body if isinstance(node, ast.ClassDef) and node.name == "AttentionBackendEnum"]
    return tuple(
        name.id
        for statement in (members[0] if members else ())
        if isinstance(statement, ast.Assign)
        for name in statement.targets
        if isinstance(name, ast.Name)
    )


@dataclass(frozen=True, kw_only=True)
class Installed:
    """What the RECORDs of an environment say: its files, their bytes, and the paths that several distributions own."""

    files: int
    bytes: int
    shared: dict[str, tuple[str, ...]]


def installed(site: Path) -> Installed:
    """Read every RECORD (PEP 376), compiled files left out; paths are relative to site-packages, owners canonical names.

    Rows are cut at their last two commas rather than read as CSV: an environment has 60,000 of them, and only a path
    may be quoted.
    """
    owner_of: dict[str, str] = {}
    shared: defaultdict[str, list[str]] = defaultdict(list)
    total = 0
    for record in sorted(site.glob("*.dist-info/RECORD")):
        name = str(canonicalize_name(record.parent.name.partition("-")[0]))
        for row in record.read_text(encoding="utf-8", errors="replace").splitlines():
            path, _, size = row.rpartition(",")
            path = path.rpartition(",")[0].strip('"')
            if not path or "__pycache__" in path:
                continue
            total += int(size) if size.isdigit() else 0
            if owner_of.setdefault(path, name) != name:
                shared[path].append(name)
    return Installed(files=len(owner_of), bytes=total, shared={path: (owner_of[path], *others) for path, others in shared.items()})


def _parse(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def _constants(path: Path) -> dict[str, object]:
    """Return the names that a module assigns constants to, at its top level."""
    tree = _parse(path)
    values: dict[str, object] = {}
    for node in tree.body if tree else ():
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value))
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=value))
            ):
                values[name] = value
            case _:
                pass
    return values
