"""Loads vLLM's extensions and says what they register; run by the Python of the machine they are for (emulated or real).

Usage: python compile_operators_inside.py SITE_OF_VLLM [--import]; prints one JSON document. A library that fails to
load is reported with the loader's words. Nothing is computed: no GPU is needed, a libcuda that only links will do.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path

import torch


def operators() -> dict[str, list[str]]:
    """Return each operator with the dispatch keys that have a kernel for it."""
    keys = ("CUDA", "CPU", "Meta", "CompositeImplicitAutograd", "CompositeExplicitAutograd")
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return {name: [key for key in keys if has(name, key)] for name in torch._C._dispatch_get_all_op_names()}


def load(path: Path) -> dict[str, object]:
    """Load one extension, as its kind is: by torch where it registers operators, as a module where it only is one."""
    before = operators()
    try:
        torch.ops.load_library(path)
        spec = importlib.util.spec_from_file_location(path.name.partition(".")[0], path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:  # noqa: BLE001 - whatever it says is the result
        return {"error": f"{type(error).__name__}: {error}"}
    after = operators()
    return {"operators": {name: after[name] for name in sorted(after.keys() - before.keys())}}


def main() -> None:
    site = Path(sys.argv[1])
    document = {"torch": torch.__version__, "cuda": torch.version.cuda, "extensions": {}}
    for path in sorted(site.glob("vllm/**/*.abi3.so")):
        document["extensions"][str(path.relative_to(site))] = load(path)
    if "--import" in sys.argv:
        sys.path.insert(0, str(site))
        try:
            document["vllm"] = importlib.import_module("vllm").__version__
            importlib.import_module("vllm._custom_ops")
        except Exception as error:  # noqa: BLE001 - whatever it says is the result
            document["vllm"] = f"{type(error).__name__}: {error}"
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
