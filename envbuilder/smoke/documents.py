"""smoke.json: what was asked, what came back, what that proves, and what it does not."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from envbuilder.errors import SmokeError
from envbuilder.smoke import judging
from envbuilder.smoke.results import ANSWER, PROMPT, Device, QuantizeResult, ServeResult, Stage, Status

SCHEMA = "envbuilder/smoke/1"
_STAGES = ("quantize", "serve", "decode")
_TEXTS = ("bf16", "quantized", "served", "served_chat")


def not_run(reason: str, *, device: Device) -> dict[str, Any]:
    """Return the document for a target that this machine cannot try (another machine's environment, no GPU)."""
    stage = Stage(status=Status.NOT_RUN, reason=reason)
    return document(QuantizeResult(stage=stage, device=device), ServeResult(serve=stage, decode=stage, device=device))


def document(quantized: QuantizeResult, served: ServeResult | None) -> dict[str, Any]:
    """Put the two results together. Without `served`, serving was not tried because quantizing had failed."""
    if served is None:
        stage = Stage(status=Status.NOT_RUN, reason="there is no quantized model to serve")
        served = ServeResult(serve=stage, decode=stage, device=quantized.device)
    measured = quantized.measured
    decoded = {**(measured.decoded if measured else {}), **served.decoded}
    stages = {"quantize": quantized.stage, "serve": served.serve, "decode": served.decode}
    return {
        "schema": SCHEMA,
        "device": str(served.device),
        "stages": {name: asdict(stages[name]) for name in _STAGES},
        "prompt": PROMPT,
        "expected": ANSWER,
        "decoded": {name: decoded.get(name) for name in _TEXTS},
        "exact": all(decoded.get(name) == ANSWER for name in _TEXTS),
        "proved": _proved(quantized, served),
        "not_proved": _not_proved(quantized, served),
        "findings": [{"name": f.name, "text": f.text, "refs": list(f.refs)} for f in quantized.findings],
        "versions": {"quantize": measured.versions if measured else {}, "serve": served.versions},
        "checkpoints": {"base": asdict(measured.base), "quantized": asdict(measured.quantized)} if measured else {},
        "confidence": measured.confidence if measured else {},
        "kernel": {"reference": served.reference_kernel, "named": served.kernel},
        "speed": {
            "tokens_per_second": served.tokens_per_second,
            "ready_seconds": served.ready_seconds,
            "quantize_seconds": measured.seconds if measured else {},
        },
    }


def require(document: dict[str, Any]) -> None:
    """Raise SmokeError for the first stage that failed. A stage that was not run is no failure, and no proof."""
    for name in _STAGES:
        stage = document["stages"][name]
        if stage["status"] == Status.FAILED:
            raise SmokeError(f"the smoke test's {name} stage failed", why=stage["reason"], next=stage["next"])


def _proved(quantized: QuantizeResult, served: ServeResult) -> list[str]:
    proved = []
    measured = quantized.measured
    if measured and quantized.stage.status is Status.PASSED:
        proved += [
            "Gemma4Unified through transformers: trained in fp32 and cast to bf16, the text is exact",
            f"llmcompressor NVFP4A16: {len(measured.modules)} linear layers in the file are the quantized weights, the vision tower's too",
            "the quantized checkpoint, saved and reloaded by transformers, says the exact text",
        ]
        if judging.reload_is_right(measured):
            proved.append("every quantized weight that transformers reloads is the file's")
    if served.decode.status is Status.PASSED:
        proved.append(
            "vLLM reads the NVFP4 checkpoint's format and names, and its OpenAI-compatible server says the exact text (completions, chat)"
        )
        if served.device is Device.CUDA:
            proved.append(f"the GPU's NVFP4 kernel ({served.kernel or 'not named in the log'}) decodes the exact text")
    return proved


def _not_proved(quantized: QuantizeResult, served: ServeResult) -> list[str]:
    missing = []
    measured = quantized.measured
    if quantized.stage.status is not Status.PASSED:
        missing.append(f"quantizing: {quantized.stage.status}")
    if measured and not judging.reload_is_right(measured):
        missing.append("transformers' reload of the vision patch_dense: it computes with another weight than the file's")
    if served.decode.status is not Status.PASSED:
        missing.append(f"serving: {served.serve.status}, decoding over HTTP: {served.decode.status}")
    if served.reference_kernel:
        missing.append("the GPU's NVFP4 kernel: this project's reference kernel stood in on the CPU")
    elif served.decode.status is not Status.PASSED or served.device is Device.CPU:
        missing.append("the GPU's NVFP4 kernel")
    if served.device is Device.CUDA:
        missing.append("sampling with FlashInfer: the canary is greedy, and its server was started without that sampler")
    missing.append("images and sound: the canary knows a text, and the server was started for text only")
    missing.append("speed: a canary this small says nothing about a real model's")
    return missing
