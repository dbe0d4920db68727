"""`gpu-code` against cuobjdump, file by file: the same architectures, the same number of pieces."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import NotRunError, report
from tool import envbuilder

_WORKERS = 12
_ONE_S = 150
_ALL_S = 200


def listed(program: str, path: Path) -> dict[str, Counter[str]]:
    """Return cuobjdump's own list by number. Before CUDA 13.2 it writes sm_90 for sm_90a too, so the letter is left out."""
    done = subprocess.run([program, "--list-elf", "--list-ptx", str(path)], capture_output=True, text=True, check=False, timeout=_ONE_S)
    return {
        "cubins": Counter(re.findall(r"^ELF file .*\.sm_(\d+)[af]?\.cubin$", done.stdout, re.MULTILINE)),
        "ptx": Counter(re.findall(r"^PTX file .*\.(?:sm|compute)_(\d+)[af]?\.ptx$", done.stdout, re.MULTILINE)),
    }


def ours(entry: dict[str, Any]) -> dict[str, Counter[str]]:
    found = {"cubins": Counter[str](), "ptx": Counter[str]()}
    for kind, counted in found.items():
        for name, count in entry[kind].items():
            counted[re.sub(r"\D", "", name)] += count
    return found


def main() -> None:
    this = report()
    site = Path(sysconfig.get_path("purelib"))
    kernels = Path(this.request["carry"]) / "kernels"
    document: dict[str, Any] = {"files": []}
    with this.check("gpu-code reads the environment") as figures:
        folders = [str(folder) for folder in (site, kernels) if folder.is_dir()]
        _, document = envbuilder(this.request, "gpu-code", *folders, "--arch", "sm_90", timeout_s=180)
        with_code = [it for it in document["files"] if it["cubins"] or it["ptx"]]
        figures.update(files=len(document["files"]), with_code=len(with_code), verdicts=Counter(it["verdict"] for it in document["files"]))
        figures["found"] = [{key: it[key] for key in ("path", "cubins", "ptx", "verdict")} for it in with_code][:80]
    with this.check("the kernels carried here are native code for this GPU") as figures:
        mine = [it for it in document["files"] if Path(it["path"]).name.startswith("vllm_")]
        if not mine:
            raise NotRunError("no libraries were carried")
        figures.update({Path(it["path"]).name: {"verdict": it["verdict"], "cubins": it["cubins"], "ptx": it["ptx"]} for it in mine})
        # vLLM asks for PTX beside the machine code of its bf16 Marlin unit (9.0+PTX).
        assert all(it["verdict"] == "native" for it in mine)
    with this.check("the same as cuobjdump, file by file") as figures:
        program = shutil.which("cuobjdump")
        if program is None:
            raise NotRunError("there is no cuobjdump here")
        # cuobjdump looks into .nv_fatbin alone.
        compare(figures, program, [it for it in document["files"] if (it["cubins"] or it["ptx"]) and not it["outside"]], [site, kernels])


def compare(figures: dict[str, Any], program: str, entries: list[dict[str, Any]], roots: list[Path]) -> None:
    deadline = time.monotonic() + _ALL_S
    figures["cuobjdump"] = (
        subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]
    )

    def one(entry: dict[str, Any]) -> tuple[str, dict[str, Counter[str]] | None]:
        path = next((root / entry["path"] for root in roots if (root / entry["path"]).exists()), Path(entry["path"]))
        if time.monotonic() > deadline:
            return entry["path"], None
        try:
            return entry["path"], listed(program, path)
        except subprocess.TimeoutExpired:
            return entry["path"], None

    # The largest first: they take longest.
    with ThreadPoolExecutor(_WORKERS) as pool:
        theirs = dict(pool.map(one, sorted(entries, key=lambda it: -sum(it["cubins"].values()))))
    differing, same, unasked = [], 0, []
    for entry in entries:
        found = theirs[entry["path"]]
        if found is None:
            unasked.append(entry["path"])
        elif found == ours(entry):
            same += 1
        else:
            differing.append({"path": entry["path"], "gpu_code": ours(entry), "cuobjdump": found})
    figures.update(
        same=same,
        pieces=sum(sum(it["cubins"].values()) + sum(it["ptx"].values()) for it in entries),
        not_asked=unasked,
        differing=differing[:20],
    )
    assert not differing, f"{len(differing)} of {len(entries)} files differ"
    assert same, "nothing could be compared in the time"


main()
