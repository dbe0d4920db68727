"""Every verdict of `abi` on the extensions of this interpreter's site-packages, against the loader's own."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

from common import NotRunError, report
from tool import envbuilder

_SHARDS = 8
_LOAD_BY_TORCH = """
import json, sys, torch
torch.ops.load_library(sys.argv[1])
print("ok")
"""


def loader_says(this: Any, files: list[str], *, timeout_s: float) -> dict[str, str]:
    """Return what the dynamic loader said of each file, opened as Python opens extensions, after torch; a child for each."""
    inside = Path(this.request["root"]) / "tests/integration/abi_loader_inside.py"
    work = Path(this.request["work"])
    running = []
    for number in range(_SHARDS):
        listing, goal = work / f"load-{number}.json", work / f"loaded-{number}.json"
        listing.write_text(json.dumps(files[number::_SHARDS]), encoding="utf-8")
        goal.unlink(missing_ok=True)
        running.append((goal, subprocess.Popen([sys.executable, str(inside), str(listing), str(goal)])))
    said: dict[str, str] = {}
    for goal, process in running:
        try:
            process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if goal.exists():
            said.update(json.loads(goal.read_text(encoding="utf-8"))["results"])
    return said


def main() -> None:
    this = report()
    site = Path(sysconfig.get_path("purelib"))
    document: dict[str, Any] = {}
    with this.check("abi reads the environment") as figures:
        _, document = envbuilder(this.request, "abi", str(site), timeout_s=120)
        figures.update(torch=document["torch"], verdicts=Counter(it["verdict"] for it in document["extensions"]))
        figures["refused"] = [
            {
                "path": it["path"],
                "verdict": it["verdict"],
                "missing": it["missing"][:4],
                "needed": [need["soname"] for need in it["needed"] if need["found"] is None],
            }
            for it in document["extensions"]
            if it["verdict"] != "ok"
        ][:60]
        assert document["extensions"]
    with this.check("each verdict is the loader's") as figures:
        extensions = {str(site / it["path"]): it for it in document["extensions"]}
        said = loader_says(this, sorted(extensions), timeout_s=150)
        figures.update(extensions=len(extensions), asked=len(said), loads=sum(opened(line) for line in said.values()))
        differing = [
            {"path": extensions[path]["path"], "abi": extensions[path]["verdict"], "loader": line[:300]}
            for path, line in sorted(said.items())
            if opened(line) != (extensions[path]["verdict"] == "ok")
        ]
        figures["differing"] = differing[:60]
        missed = [extensions[path]["path"] for path in extensions if path not in said]
        figures["not_asked"] = missed[:20]
        assert not differing, f"{len(differing)} of {len(said)} differ: {differing[:3]}"
        assert said, "nothing could be asked in the time"
    with this.check("libraries carried here load through torch as abi says") as figures:
        libraries = sorted((Path(this.request["carry"]) / "kernels").glob("*.so"))
        if not libraries:
            raise NotRunError("no libraries were carried")
        if not (site / "torch/lib/libtorch_cuda.so").exists():
            raise NotRunError("this torch has no CUDA part, which they were linked with")
        for path in libraries:
            _, one = envbuilder(this.request, "abi", str(path), "--torch", str(site), timeout_s=60)
            verdict = one["extensions"][0]["verdict"]
            done = subprocess.run(
                [sys.executable, "-c", _LOAD_BY_TORCH, str(path)], capture_output=True, text=True, check=False, timeout=60
            )
            figures[path.name] = {
                "abi": verdict,
                "load_library": "ok" if done.returncode == 0 else done.stderr.strip().splitlines()[-1][:300],
            }
        assert all((it["abi"] == "ok") == (it["load_library"] == "ok") for it in figures.values()), f"{figures}"


def opened(line: str) -> bool:
    """Whether the loader linked it. A library that ends its process in an initializer had been linked."""
    return line == "ok" or line.startswith("died")


main()
