"""The canary is made, quantized, reloaded and decoded, by the quantize environment."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from envbuilder import files, process
from envbuilder.errors import EnvbuilderError, VerificationError
from envbuilder.smoke import children, diagnosis, judging
from envbuilder.smoke.results import ANSWER, PROMPT, Control, Device, Measured, QuantizeResult, Stage, Status, from_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from envbuilder.console import Console

_MOST_STEPS = 300  # 102 were enough


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest:
    """`work` is emptied, and gets `base/` and `quantized/`, two model folders that vLLM and transformers read.

    `variables` are the target's.
    """

    python: Path
    work: Path
    log: Path
    device: Device = Device.CPU
    control: Control = Control.NONE
    variables: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 900.0


def quantize(request: QuantizeRequest, console: Console) -> QuantizeResult:
    """Make the canary and judge it. Never raises for a canary that failed: the result says so."""
    started = time.monotonic()
    argv = [request.python, children.INSIDE / "canary.py", request.work / "request.json"]
    env = children.variables(request.python, chosen=request.variables)
    remedy = f"Log: {request.log}\nReplay: {process.replay_line(argv, env=env, cwd=request.work)}"
    log_start = request.log.stat().st_size if request.log.exists() else 0
    measured: Measured | None = None
    verdict = judging.Verdict()
    try:
        measured = _measure(request, argv=argv, env=env)
        verdict = judging.judge_quantization(measured, ANSWER)
        reason = "; ".join(verdict.problems)
    except EnvbuilderError as error:
        cause = diagnosis.root_cause(diagnosis.read_from(request.log, log_start))
        reason = f"{error.what}: {cause or error.why}".rstrip(": ")
    status = Status.FAILED if reason else Status.PASSED
    stage = Stage(status=status, seconds=round(time.monotonic() - started, 1), reason=reason, next=remedy if reason else "")
    for finding in verdict.findings:
        console.line(f"  note: {finding.name} (known; smoke.json says more)")
    return QuantizeResult(stage=stage, device=request.device, measured=measured, findings=verdict.findings)


def _measure(request: QuantizeRequest, *, argv: list[Path], env: dict[str, str]) -> Measured:
    files.remove_tree(request.work)
    children.make_room(request.log)
    asked = {
        "prompt": PROMPT,
        "answer": ANSWER,
        "steps": 0 if request.control is Control.RANDOM_WEIGHTS else _MOST_STEPS,
        "bos": request.control is not Control.TEMPLATE_WITHOUT_BOS,
    }
    files.write_json(request.work / "request.json", asked)
    process.run(argv, log=request.log, env=env, timeout_s=request.timeout_s, what="making the canary", cwd=request.work)
    try:
        data = json.loads((request.work / "result.json").read_bytes())
        return from_json(Measured, data)
    except (OSError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        raise VerificationError("the canary left no result that can be read", why=str(error)) from error
