"""Everything that only a machine with an NVIDIA GPU can tell about envbuilder, in one run without a network.

  run.py --out DIR                        all stages
  run.py --out DIR --stage doctor --stage vllm-kernels
  run.py --list

Each stage runs in a child of its own, with a time limit; whatever happens to it, the others run, and DIR/result.json
says of each check: passed, failed or not-run, with figures and the reason. Without a GPU the parts that need one are
not-run. What the machine lacks comes from the folder that prepare.py filled (--carry). Exit code 0 when no check failed.

The interpreter that runs this is the one whose torch, transformers and extensions are looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCHEMA = "envbuilder/gpu-run/1"
_TAIL = 3000  # of a stage's log, kept where the stage failed


@dataclass(frozen=True)
class Stage:
    """A script below stages/, its time limit in seconds, and what it answers."""

    name: str
    limit_s: int
    question: str


STAGES = (
    Stage("doctor", 120, "does `envbuilder doctor` find this machine's target, and nothing wrong that is not"),
    Stage("facts", 90, "do its facts agree with nvidia-smi, nvcc and torch"),
    Stage("canary", 300, "does the canary say its sentence on the GPU: bf16, FP8, NVFP4A16"),
    Stage("vllm-kernels", 180, "do vLLM's kernels that were built elsewhere load, and compute what float64 says"),
    Stage("bandwidth", 120, "what memory bandwidth does the smoke test's measurement find, against a plain copy"),
    Stage("abi", 240, "is each verdict of `abi` the loader's own"),
    Stage("gpu-code", 300, "does `gpu-code` see the GPU code that cuobjdump sees, file by file"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the folder that gets result.json, h200-snapshot.json and logs.txt")
    parser.add_argument("--carry", type=Path, default=ROOT / ".gpu-carry", help="what prepare.py made (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="scratch folder (default: OUT/work, removed at the end)")
    parser.add_argument("--stage", action="append", choices=[stage.name for stage in STAGES], help="run this stage (repeatable)")
    parser.add_argument("--no-gpu", action="store_true", help="act as on a machine without a GPU")
    parser.add_argument(
        "--total", type=int, default=570, help="seconds for everything; what is left then is not-run (default: %(default)s)"
    )
    parser.add_argument("--list", action="store_true", help="list the stages and end")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(f"{stage.name:<12} {stage.limit_s:>4} s  {stage.question}" for stage in STAGES))
        return 0
    if arguments.out is None:
        parser.error("--out is needed")
    return Run(arguments).all()


class Run:
    """One run: where things lie, and what has been found."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.out: Path = arguments.out.absolute()
        self.work: Path = (arguments.work or self.out / "work").absolute()
        self.carry: Path = arguments.carry.absolute()
        self.gpu = not arguments.no_gpu and has_gpu()
        self.names = arguments.stage or [stage.name for stage in STAGES]
        self.deadline = time.monotonic() + arguments.total
        self.keep_work = arguments.work is not None
        self.results: dict[str, Any] = {}

    def all(self) -> int:
        self.out.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(parents=True, exist_ok=True)
        self._unpack()
        for stage in STAGES:
            if stage.name in self.names:
                print(f"== {stage.name}: {stage.question}", flush=True)
                self.results[stage.name] = self._run(stage)
                self._save()
                print(f"== {stage.name}: {self.results[stage.name]['status']}, {self.results[stage.name]['seconds']} s", flush=True)
        if not self.keep_work:
            shutil.rmtree(self.work, ignore_errors=True)
        self._summary()
        return 1 if any(result["status"] == "failed" for result in self.results.values()) else 0

    def _unpack(self) -> None:
        """Unpack the carried wheels, each set into a folder of its own: an environment's libraries must not shadow the machine's."""
        for name in ("tool", "quantize"):
            goal = self.work / name
            goal.mkdir(exist_ok=True)
            for wheel in sorted((self.carry / name).glob("*.whl")):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(goal)

    def _run(self, stage: Stage) -> dict[str, Any]:
        """Run one stage. Never raises for what happens to it."""
        left = self.deadline - time.monotonic()
        if left < 10:
            return {"status": "not-run", "seconds": 0, "reason": "no time was left", "checks": []}
        folder = self.work / "stages" / stage.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        request = {"root": str(ROOT), "carry": str(self.carry), "work": str(self.work), "out": str(self.out), "gpu": self.gpu}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        limit = min(stage.limit_s, left)
        started = time.monotonic()
        log = folder / "log"
        code = run_child(
            [sys.executable, str(HERE / "stages" / f"{stage.name.replace('-', '_')}.py"), str(folder / "request.json")],
            log=log,
            limit_s=limit,
        )
        seconds = round(time.monotonic() - started, 1)
        try:
            checks = json.loads((folder / "checks.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            checks = []
        text = log.read_text(encoding="utf-8", errors="replace")
        with (self.out / "logs.txt").open("a", encoding="utf-8") as file:
            file.write(f"== {stage.name}\n{text[-200_000:]}\n")
        reason = "" if code == 0 else f"stopped at its limit of {limit:.0f} s" if code is None else f"the stage itself ended with {code}"
        return {
            "status": status_of(checks, broken=bool(reason)),
            "seconds": seconds,
            "reason": reason,
            "checks": checks,
            **({"tail": text[-_TAIL:]} if reason else {}),
        }

    def _save(self) -> None:
        document = {
            "schema": SCHEMA,
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "machine": machine(),
            "stages": self.results,
        }
        self._write("result.json", json.dumps(document, indent=1) + "\n")
        if (self.out / "h200-snapshot.json").exists():
            self._write("h200-snapshot.json", (self.out / "h200-snapshot.json").read_text(encoding="utf-8"))

    def _write(self, name: str, text: str) -> None:
        """Write a file whole. Of the kernel's release only the number is kept, the rest names whoever built it; and no one's home."""
        temporary = self.out / f".{name}"
        home = str(Path.home())
        temporary.write_text(
            text.replace(platform.release(), kernel()).replace(f"{home}/", "~/").replace(f'{home}"', '~"'), encoding="utf-8"
        )
        temporary.replace(self.out / name)

    def _summary(self) -> None:
        for name, result in self.results.items():
            print(f"{name:<12} {result['status']:<8} {result['seconds']:>6} s  {result['reason']}")
            for check in result["checks"]:
                print(f"   {check['status']:<8} {check['name']:<44} {check['seconds']:>6} s  {check['reason'][:160]}")
                print(f"            {json.dumps(check['figures'])[:400]}")


def status_of(checks: list[dict[str, Any]], *, broken: bool) -> str:
    """Return a stage's status: one failure fails it, and where nothing passed nothing was run."""
    statuses = {check["status"] for check in checks}
    if broken or "failed" in statuses:
        return "failed"
    return "passed" if "passed" in statuses else "not-run"


def run_child(command: list[str], *, log: Path, limit_s: float) -> int | None:
    """Run a program in a session of its own; return its exit code, or None when it was stopped with all it had started."""
    variables = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=variables, start_new_session=True) as process,
    ):
        try:
            return process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None


def has_gpu() -> bool:
    """Whether the driver shows a GPU; asked of nvidia-smi, so that no CUDA context is made here."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        done = subprocess.run([program, "-L"], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and "GPU 0" in done.stdout


def kernel() -> str:
    return platform.release().partition("-")[0]


def machine() -> dict[str, Any]:
    """Say what machine this is: the GPU, the driver and what the interpreter has, and nothing that names the machine itself."""
    found: dict[str, Any] = {
        "arch": platform.machine(),
        "kernel": kernel(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
        found["gpus"] = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.strip().splitlines()
    import importlib.metadata

    found["versions"] = {}
    for name in ("torch", "transformers", "triton", "compressed-tensors", "llmcompressor"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found["versions"][name] = importlib.metadata.version(name)
    return found


if __name__ == "__main__":
    sys.exit(main())
