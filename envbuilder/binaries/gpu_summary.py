"""Which GPU code the torch and the vLLM of an environment carry, as a build's manifest and its images say it."""

from __future__ import annotations

from envbuilder.binaries.fatbin import Arch, parse_arch
from envbuilder.binaries.gpu_code import Way, check_gpu_code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

_PACKAGES = ("torch", "vllm")


def summary(site: Path, gpu: str | None) -> dict[str, Any]:
    """Return which GPUs the code is for, file by file; and how it runs on the target's, where that is one."""
    arch = parse_arch(gpu) if gpu else None
    files = []
    for package in _PACKAGES:
        report = check_gpu_code([site / package], arch or Arch(0)) if (site / package).is_dir() else None
        for it in report.files if report else ():
            if it.verdict is not Way.HOST_ONLY:
                runs = {"units": it.units, "verdict": str(it.verdict)} if arch else {}
                files.append({"path": f"{package}/{it.path}", "cubins": it.cubins, "ptx": it.ptx, **runs})
    return {"arch": gpu, "files": sorted(files, key=lambda row: str(row["path"]))}
