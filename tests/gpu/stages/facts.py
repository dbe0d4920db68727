"""What the snapshot says of the GPU, the driver and the toolkit, against nvidia-smi, nvcc and torch."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from common import NotRunError, report
from tool import envbuilder

_TORCH = """
import json, torch
p = torch.cuda.get_device_properties(0)
print(json.dumps({"capability": f"{p.major}.{p.minor}", "memory": p.total_memory, "name": p.name, "cuda": torch.version.cuda,
                  "version": torch.__version__, "count": torch.cuda.device_count()}))
"""


def said(*command: str, timeout_s: float = 60) -> str:
    if shutil.which(command[0]) is None:
        raise NotRunError(f"there is no {command[0]} here")
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout_s).stdout


def main() -> None:
    this = report()
    path = Path(this.request["work"]) / "facts.json"
    facts: dict = {}
    with this.check("a snapshot is taken"):
        envbuilder(this.request, "doctor", "--env", sys.prefix, "--save", str(path), timeout_s=60)
        facts = json.loads(path.read_text(encoding="utf-8"))
    with this.check("GPU, capability, driver and memory as nvidia-smi says") as figures:
        this.require_gpu()
        query = "--query-gpu=name,compute_cap,driver_version,memory.total"
        name, capability, driver, memory = said("nvidia-smi", query, "--format=csv,noheader,nounits").splitlines()[0].split(", ")
        gpu = facts["nvml"]["gpus"][0]
        ours = {
            "name": gpu["name"],
            "capability": gpu["compute_capability"],
            "driver": facts["nvml"]["driver"],
            "mib": gpu["memory_total"] // 2**20,
        }
        theirs = {"name": name, "capability": capability, "driver": driver, "mib": int(memory)}
        figures.update(facts=ours, nvidia_smi=theirs)
        assert ours == theirs
    with this.check("the driver's CUDA as nvidia-smi's head says, its kernel module as /proc says") as figures:
        this.require_gpu()
        head = re.search(r"CUDA (?:UMD )?Version:\s*([\d.]+)", said("nvidia-smi"))
        figures.update(
            facts=facts["nvml"]["cuda"], nvidia_smi=head and head[1], loaded=facts["driver"]["loaded"], driver=facts["nvml"]["driver"]
        )
        assert head is not None
        assert facts["nvml"]["cuda"] == head[1]
        assert facts["driver"]["loaded"] == facts["nvml"]["driver"]
    with this.check("the toolkit as nvcc says") as figures:
        release = re.search(r"release ([\d.]+)", said("nvcc", "--version"))
        figures.update(
            nvcc=release and release[1], facts=[{key: it[key] for key in ("path", "release", "found_by")} for it in facts["toolkits"]]
        )
        assert release is not None
        assert release[1] in {it["release"] for it in facts["toolkits"] if it["nvcc"]}
    with this.check("torch's own account") as figures:
        this.require_gpu()
        torch = json.loads(said(sys.executable, "-c", _TORCH, timeout_s=80).splitlines()[-1])
        gpu, ours = facts["nvml"]["gpus"][0], facts["environment"]["torch"]
        figures.update(torch=torch, facts={"capability": gpu["compute_capability"], "memory": gpu["memory_total"], "torch": ours})
        assert torch["capability"] == gpu["compute_capability"]
        assert torch["name"] == gpu["name"]
        assert torch["count"] == len(facts["nvml"]["gpus"])
        # torch's figure leaves out what the driver keeps for itself.
        assert 0.95 <= torch["memory"] / gpu["memory_total"] <= 1.0


main()
