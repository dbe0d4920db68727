"""What vLLM's own source says it can do, read without importing it: `site` is a site-packages folder."""

from __future__ import annotations

import ast

from envbuilder import reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


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
        for pair in zip(node.keys, node.values, strict=True):
            match pair:
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


def _parse(path: Path) -> ast.Module | None:
    try:
        return ast.parse(reading.data(path))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
